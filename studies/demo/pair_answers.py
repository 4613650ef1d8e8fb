"""Pair the reward model's best answer with its worst, prompt by prompt: the DPO pairs."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from training import conversation_ids, load_reward_model, read_rows, rewards, write_rows


def main() -> None:
    options = parse()
    model, tokenizer = load_reward_model(options.reward)
    rows = read_rows(options.answers)[: options.n_prompts]
    flat = [(row["prompt"], answer["text"]) for row in rows for answer in row["answers"]]
    scores = iter(rewards(model, [conversation_ids(tokenizer, *pair) for pair in flat]))
    scored = [(row, [next(scores) for _ in row["answers"]]) for row in rows]
    pairs = [make_pair(row["prompt"], row["answers"], group) for row, group in scored]
    kept = [p for p in pairs if p["chosen"]["reward"] - p["rejected"]["reward"] >= options.min_margin]
    within = statistics.fmean(statistics.stdev(group) for _, group in scored)
    print(f"mean reward {statistics.fmean(s for _, g in scored for s in g):+.3f}, sd by prompt {within:.3f}")
    describe(kept)
    write_rows(kept, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, required=True, help="what sample_answers.py wrote")
    parser.add_argument("--reward", type=Path, required=True, help="checkpoint folder of the reward model")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file for the pairs")
    parser.add_argument("--n-prompts", type=int, default=320)
    parser.add_argument("--min-margin", type=float, default=0.3, help="least difference of the two rewards")
    return parser.parse_args()


def make_pair(prompt: str, answers: list[dict[str, Any]], scores: list[float]) -> dict[str, Any]:
    """The best and the worst answer to one prompt. The ids of a finished answer end with the stop token."""
    scored = sorted(zip(scores, range(len(answers)), strict=True))
    sides = {"rejected": scored[0], "chosen": scored[-1]}
    return {"prompt": prompt} | {side: answers[i] | {"reward": score} for side, (score, i) in sides.items()}


def describe(pairs: list[dict[str, Any]]) -> None:
    """Print how the two sides of the pairs differ."""
    for side in ("chosen", "rejected"):
        answers = [pair[side] for pair in pairs]
        reward = statistics.fmean(a["reward"] for a in answers)
        length = statistics.fmean(len(a["token_ids"]) for a in answers)
        finished = statistics.fmean(a["finished"] for a in answers)
        print(f"{len(pairs)} {side}: reward {reward:+.3f}, {length:.1f} tokens, {finished:.2f} finished")


if __name__ == "__main__":
    main()
