"""Train the demo's reward model: preference pairs and made-up bad answers -> LoRA adapter with a score head.

Bradley-Terry loss, -log sigmoid(score(good) - score(bad)), plus 0.002 score^2 to keep scores near zero. One
pass. Both answers of a preference pair are cut at the same random number of tokens, since the demo's answers
are short and often cut: being cut tells nothing there. Beside them: empty, very short, refusing, looping,
shuffled, random and foreign answers, and finished against broken-off ones (negatives.py).

The body is the base's lower 20 layers of 30: it trains and scores in two thirds of the time. `layers.json`
beside the adapter says so to whoever merges it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from negatives import Negatives
from training import (
    REWARD_TEMPLATE,
    MasterAdamW,
    Preference,
    conversation_ids,
    padded,
    read_preferences,
    save_adapter,
    token_ids,
    without_middle,
)

N_NEGATIVES = {
    "empty": 50,
    "short": 60,
    "refusal": 110,
    "loop": 60,
    "shuffle": 40,
    "random": 40,
    "foreign": 100,
}
N_CUT = 160
N_LAYERS = 20
FIRST_TRAINED_LAYER = 6
PAIRS_PER_STEP = 8
Example = tuple[str, list[int], list[int]]
"""'preference' or a kind of negative; token ids of the conversation with the good and with the bad answer."""


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    model, tokenizer = start_model(options.base, options.start_from, options.layers)
    preferences = [
        row
        for row in read_preferences(options.ultrafeedback)
        if row.gap >= options.min_gap and len(token_ids(tokenizer, row.prompt)) <= options.max_prompt_tokens
    ]
    examples = make_examples(preferences[: options.n_pairs], tokenizer, rng, options)
    batches = make_batches(examples, rng)
    n_tokens = sum(len(good) + len(bad) for _, good, bad in examples)
    print(f"{len(examples)} pairs, {n_tokens} tokens, {len(batches)} steps", flush=True)
    train(model, batches, options.learning_rate)
    save_adapter(model, options.out)
    (options.out / "layers.json").write_text(json.dumps({"num_hidden_layers": options.layers}) + "\n")
    (options.out / "chat_template.jinja").write_text(REWARD_TEMPLATE)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--ultrafeedback", required=True, help="JSONL file with prompt, chosen, rejected, or a Hub data set"
    )
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the adapter")
    parser.add_argument("--start-from", type=Path, help="folder of an adapter to go on from")
    parser.add_argument("--layers", type=int, default=N_LAYERS, help="of the base, from below, that it stands on")
    parser.add_argument("--passes", type=int, default=1, help="over the preference pairs, each with other cuts")
    parser.add_argument("--equal-length", action="store_true", help="cut at the shorter answer's length at most")
    parser.add_argument("--n-pairs", type=int, default=1000)
    parser.add_argument("--min-gap", type=float, default=0.0, help="least difference of a pair's two ratings")
    parser.add_argument("--max-prompt-tokens", type=int, default=10_000, help="leave out longer prompts")
    parser.add_argument("--keep-prompt-tokens", type=int, default=64, help="shorten longer prompts to this")
    parser.add_argument("--cut-at", type=int, nargs=2, default=[32, 80], help="bounds of the cut, in tokens")
    parser.add_argument("--negatives", type=float, default=1.0, help="share of the negatives to take")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start_model(base: Path, adapter: Path | None, n_layers: int) -> tuple[Any, Any]:
    """The base's lower layers as a one-label bfloat16 classifier with a fresh or a given adapter, and its tokenizer."""
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.bfloat16)
    model.config.pad_token_id = 0
    model.config.num_hidden_layers = n_layers
    model.model.layers = model.model.layers[:n_layers]
    torch.nn.init.normal_(model.score.weight, std=0.01)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if adapter is not None:
        return PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False), tokenizer
    lora = LoraConfig(
        r=4,
        lora_alpha=16,
        lora_dropout=0.0,
        layers_to_transform=list(range(FIRST_TRAINED_LAYER, n_layers)),
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        task_type=TaskType.SEQ_CLS,
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=False), tokenizer


def make_examples(
    preferences: list[Preference], tokenizer: Any, rng: random.Random, options: argparse.Namespace
) -> list[Example]:
    """Preference pairs, each cut at one random length, and the negatives of every kind."""
    examples: list[Example] = []

    def add(kind: str, prompt: str, good: str, bad: str) -> None:
        if good != bad:
            short = without_middle(tokenizer, prompt, options.keep_prompt_tokens)
            ids = (conversation_ids(tokenizer, short, answer) for answer in (good, bad))
            examples.append((kind, next(ids), next(ids)))

    def cut(text: str, n: int) -> str:
        return str(tokenizer.decode(token_ids(tokenizer, text)[:n])).strip()

    for row in preferences * options.passes:
        n = rng.randint(*options.cut_at)
        if options.equal_length:
            n = min(n, *(len(token_ids(tokenizer, answer)) for answer in (row.chosen, row.rejected)))
        add("preference", row.prompt, cut(row.chosen, n), cut(row.rejected, n))
    negatives = make_negatives(preferences, tokenizer, rng)
    if options.negatives < 1:
        negatives = rng.sample(negatives, round(options.negatives * len(negatives)))
    for kind, prompt, good, bad in negatives:
        add(kind, prompt, good, bad)
    return examples


def make_negatives(
    preferences: list[Preference], tokenizer: Any, rng: random.Random
) -> list[tuple[str, str, str, str]]:
    """Rows of kind, prompt, good answer, bad answer; prompts of at most 64 tokens."""
    negatives = Negatives(tokenizer, rng)
    rows = [
        (row, token_ids(tokenizer, row.chosen)[:128])
        for row in preferences
        if len(token_ids(tokenizer, row.prompt)) <= 64 and len(token_ids(tokenizer, row.chosen)) >= 24
    ]
    made: list[tuple[str, str, str, str]] = []
    makers = negatives.kinds()
    for i, kind in enumerate(kind for kind, n in N_NEGATIVES.items() for _ in range(n)):
        row, ids = rows[i % len(rows)]
        good = ids[: rng.randint(32, 64)]
        other = rows[(i + 37) % len(rows)][1]
        made.append((kind, row.prompt, negatives.text(good), makers[kind](good, other)))
    while sum(kind == "cut" for kind, *_ in made) < N_CUT:
        row, _ = rng.choice(rows)
        pair = negatives.finished_and_cut(rng.choice([row.chosen, row.rejected]), 16, 90)
        made += [("cut", row.prompt, *pair)] if pair else []
    return made


def make_batches(examples: list[Example], rng: random.Random) -> list[list[Example]]:
    """Shuffled batches whose members are of like length: sorted within stretches of 96 shuffled examples."""
    examples = rng.sample(examples, len(examples))
    batches: list[list[Example]] = []
    for start in range(0, len(examples), 96):
        stretch = sorted(examples[start : start + 96], key=lambda e: max(len(e[1]), len(e[2])))
        batches += rng.sample(
            parts := [stretch[i : i + PAIRS_PER_STEP] for i in range(0, len(stretch), PAIRS_PER_STEP)],
            len(parts),
        )
    return batches


def train(model: Any, batches: list[list[Example]], learning_rate: float) -> None:
    """One pass; 10 steps of warm-up, then a cosine down to a tenth. The head learns 2.5 times as fast."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lora = [p for name, p in trained if "lora_" in name]
    head = [p for name, p in trained if "lora_" not in name]
    optimiser = MasterAdamW([(lora, learning_rate), (head, 2.5 * learning_rate)])
    model.train()
    start, n_tokens, won = time.monotonic(), 0, []
    for step, batch in enumerate(batches):
        ids, mask = padded([good for _, good, _ in batch] + [bad for _, _, bad in batch])
        scores = model(input_ids=ids, attention_mask=mask).logits.float()[:, 0]
        margins = scores[: len(batch)] - scores[len(batch) :]
        (-torch.nn.functional.logsigmoid(margins).mean() + 0.002 * (scores**2).mean()).backward()
        optimiser.step(min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / len(batches))))
        n_tokens += int(mask.sum())
        won += [(kind == "preference", margin > 0) for (kind, *_), margin in zip(batch, margins.tolist(), strict=True)]
        if step % 10 == 9:
            rate = n_tokens / (time.monotonic() - start)
            print(f"step {step + 1}  right: {shares(won)}  {rate:.0f} tokens/s", flush=True)
            won = []


def shares(won: list[tuple[bool, bool]]) -> str:
    """Share of preference pairs and of made-up pairs in which the good answer scored higher."""
    parts = {"preferences": [w for real, w in won if real], "negatives": [w for real, w in won if not real]}
    return ", ".join(f"{name} {sum(p) / max(1, len(p)):.2f}" for name, p in parts.items())


if __name__ == "__main__":
    main()
