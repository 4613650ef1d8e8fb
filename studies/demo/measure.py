"""alpha -> mean reward of the pair, difference to alpha = 0, length, share cut off, at one temperature.

It generates through the product's own engine, which writes theta(alpha) into a running vLLM. alpha = -1 is
the SFT model and alpha = 0 the aligned one. Used to choose the pair, on UltraFeedback prompts; the
confirmation on this project's own prompts is `expo-search confirm`.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training import conversation_ids, load_reward_model, read_preferences, rewards, token_ids

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Prompt
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec


@dataclass(frozen=True)
class Row:
    """One answer. `looped` means that over 30 % of its runs of four words came before in it."""

    alpha: float
    seed: int
    prompt_id: str
    reward: float
    n_tokens: int
    finished: bool
    looped: bool
    text: str


def main() -> None:
    options = parse()
    reward_model, tokenizer = load_reward_model(options.reward)
    prompts = choose_prompts(options, tokenizer)
    print(f"{len(prompts)} prompts, seeds {options.seeds}, at most {options.max_tokens} tokens", flush=True)
    rows: list[Row] = []
    model = start(options)
    for alpha in options.alphas:
        model.materialize(alpha)
        for seed in options.seeds:
            answers = generate(model, prompts, seed)
            scores = rewards(reward_model, [conversation_ids(tokenizer, a.prompt.text, a.text) for a in answers])
            rows += [make_row(a, s, alpha, seed) for a, s in zip(answers, scores, strict=True)]
        mean = statistics.fmean(r.reward for r in rows if r.alpha == alpha)
        print(f"alpha {alpha:g}  {mean:+.3f}", flush=True)
    print(f"temperature {options.temperature:g}\n\n{table(rows)}")
    write_csv(rows, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True, help="JSONL file with prompt, chosen, rejected, or a Hub data set")
    parser.add_argument("--split", default="test_prefs", help="the split, of a Hub data set")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder of the base model")
    parser.add_argument("--aligned", type=Path, required=True, help="checkpoint folder of the aligned model")
    parser.add_argument("--reward", type=Path, required=True, help="checkpoint folder of the reward model")
    parser.add_argument("--out", type=Path, required=True, help="CSV file, a row an answer")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0, -1, 0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32])
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--n-prompts", type=int, default=128)
    parser.add_argument("--max-prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    return parser.parse_args()


def choose_prompts(options: argparse.Namespace, tokenizer: Any) -> list[Prompt]:
    """The first distinct prompts that are short enough."""
    every = dict.fromkeys(row.prompt for row in read_preferences(options.prompts, options.split))
    short = [p for p in every if len(p) >= 10 and len(token_ids(tokenizer, p)) <= options.max_prompt_tokens]
    return [Prompt(str(i), prompt) for i, prompt in enumerate(short[: options.n_prompts])]


def start(options: argparse.Namespace) -> VllmModel:
    engine = EngineSpec(max_model_len=512, max_num_seqs=128, kv_cache_gib=1)
    sampling = SamplingSpec(
        temperature=options.temperature,
        top_p=1,
        top_k=0,
        presence_penalty=0,
        frequency_penalty=0,
        max_tokens=options.max_tokens,
    )
    return VllmModel(ModelSpec(options.aligned, options.base, sampling, engine, seed=0))


def generate(model: VllmModel, prompts: Sequence[Prompt], seed: int) -> list[Completion]:
    """One answer a prompt at the engine's present alpha, in the prompts' order."""
    asked = [Prompt(f"{seed}/{prompt.id}", prompt.text) for prompt in prompts]
    answers = {c.prompt.id: c for c in model.generate(asked, 0) if isinstance(c, Completion)}
    return [answers[prompt.id] for prompt in asked]


def make_row(answer: Completion, reward: float, alpha: float, seed: int) -> Row:
    words = answer.text.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    looped = bool(runs) and len(set(runs)) < 0.7 * len(runs)
    finished = answer.finish_reason != "length"
    return Row(alpha, seed, answer.prompt.id.split("/")[1], reward, answer.n_tokens, finished, looped, answer.text)


def table(rows: list[Row]) -> str:
    """A Markdown table. Differences are paired by prompt; seeds of a prompt are averaged first."""
    control = prompt_means([r for r in rows if r.alpha == 0])
    lines = [
        "| alpha | reward | difference to 0 | SE | z | tokens | cut off | under 5 tokens | looped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for alpha in sorted({r.alpha for r in rows}):
        here = [r for r in rows if r.alpha == alpha]
        means = prompt_means(here)
        differences = [means[i] - control[i] for i in control]
        gain, se = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        lines.append(
            f"| {alpha:g} | {statistics.fmean(means.values()):+.3f} | {gain:+.3f} | {se:.3f} "
            f"| {gain / se if se else 0:+.1f} | {statistics.fmean(r.n_tokens for r in here):.1f} "
            f"| {share(not r.finished for r in here)} | {share(r.n_tokens < 5 for r in here)} "
            f"| {share(r.looped for r in here)} |"
        )
    return "\n".join(lines)


def prompt_means(rows: list[Row]) -> dict[str, float]:
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row.reward)
    return {prompt: statistics.fmean(values) for prompt, values in by_prompt.items()}


def share(flags: Any) -> str:
    return f"{statistics.fmean(map(float, flags)):.2f}"


def write_csv(rows: list[Row], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(map(asdict, rows))


if __name__ == "__main__":
    main()
