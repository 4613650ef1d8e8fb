"""Train the demo's aligned model from the base: a short DPO run on its own answers -> LoRA adapter.

Loss: -log sigmoid(beta * (log-ratio of the chosen - log-ratio of the rejected answer)), log-ratios against
the base (Rafailov et al., arXiv 2305.18290, equation 7). It is stopped early on purpose: extrapolation finds
what is left on the way the training was going. The base's log-probabilities come from the sampling engine
(its bfloat16 kernels are not torch's: about 0.1 nat an answer, which beta makes 0.01). Only the upper layers
are trained, so that the change per weight is large enough to survive bfloat16.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import MasterAdamW, padded, read_rows, save_adapter

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Sequence = tuple[list[int], int]
"""Token ids of prompt and answer, and how many of them are prompt."""


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    rows = read_rows(options.pairs)
    model, tokenizer = start_model(options)
    train(model, tokenizer, make_batches(rows, options.pairs_per_step, random.Random(options.seed)), options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True, help="what pair_answers.py wrote")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder of the base model")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the adapters, one folder step-N a saved step"
    )
    parser.add_argument("--steps", type=int, default=64, help="steps; past the last pair the pairs come again")
    parser.add_argument("--save-at", type=int, nargs="*", default=[], help="further steps to save at")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--first-layer", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_batches(rows: list[dict[str, Any]], size: int, rng: random.Random) -> list[list[dict[str, Any]]]:
    """Shuffled batches of like prompt length: sorted within stretches of eight batches."""
    shuffled = rng.sample(rows, len(rows))
    stretches = [shuffled[i : i + 8 * size] for i in range(0, len(rows), 8 * size)]
    ordered = [row for stretch in stretches for row in sorted(stretch, key=lambda r: len(r["prompt"]))]
    batches = [ordered[i : i + size] for i in range(0, len(ordered) - size + 1, size)]
    return rng.sample(batches, len(batches))


def start_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """The base in bfloat16 with a fresh adapter on its upper layers, and its tokenizer."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.bfloat16)
    lora = LoraConfig(
        r=options.rank,
        lora_alpha=4 * options.rank,
        lora_dropout=0.0,
        layers_to_transform=list(range(options.first_layer, model.config.num_hidden_layers)),
        target_modules=PROJECTIONS,
        task_type=TaskType.CAUSAL_LM,
    )
    return get_peft_model(model, lora, autocast_adapter_dtype=False), AutoTokenizer.from_pretrained(options.base)


def encode(tokenizer: Any, prompt: str, answer_ids: list[int]) -> Sequence:
    """The conversation as the engine shows it to the model, followed by the answer's own tokens."""
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids + answer_ids, len(ids)


def answer_log_probabilities(model: Any, sequences: list[Sequence]) -> Tensor:
    """Log-probability of each answer, (N,) float32. The output layer runs on answer tokens only."""
    base = model.get_base_model()
    ids, mask = padded([ids for ids, _ in sequences])
    hidden = base.model(input_ids=ids, attention_mask=mask).last_hidden_state
    states = torch.cat([hidden[i, start - 1 : len(ids) - 1] for i, (ids, start) in enumerate(sequences)])
    targets = torch.tensor([token for ids, start in sequences for token in ids[start:]])
    owner = torch.tensor([i for i, (ids, start) in enumerate(sequences) for _ in ids[start:]])
    chosen = torch.log_softmax(base.lm_head(states).float(), -1).gather(1, targets[:, None])[:, 0]
    return torch.zeros(len(sequences)).index_add(0, owner, chosen)


def train(model: Any, tokenizer: Any, batches: list[list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """DPO steps at a constant rate after a warm-up of an eighth; saves adapters on the way."""
    optimiser = MasterAdamW([([p for p in model.parameters() if p.requires_grad], options.learning_rate)])
    start, n = time.monotonic(), options.pairs_per_step
    for step in range(1, options.steps + 1):
        batch = batches[(step - 1) % len(batches)]
        sequences = [
            encode(tokenizer, r["prompt"], r[side]["token_ids"]) for side in ("chosen", "rejected") for r in batch
        ]
        reference = torch.tensor([r[side]["log_probability"] for side in ("chosen", "rejected") for r in batch])
        ratios = answer_log_probabilities(model, sequences) - reference
        margins = options.beta * (ratios[:n] - ratios[n:])
        loss = -torch.nn.functional.logsigmoid(margins).mean()
        torch.autograd.backward(loss)
        optimiser.step(min(1.0, step / max(1, options.steps // 8)))
        print(
            f"step {step}  loss {loss.item():.4f}  right {(margins > 0).float().mean():.2f}  "
            f"log-ratios {ratios[:n].mean():+.2f} {ratios[n:].mean():+.2f}  {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if step in {*options.save_at, options.steps}:
            save_adapter(model, options.out / f"step-{step}")


if __name__ == "__main__":
    main()
