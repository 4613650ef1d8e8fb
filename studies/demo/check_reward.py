"""How often the reward model scores the better of two answers higher, on rows it never saw."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negatives import Negatives
from training import Preference, conversation_ids, load_reward_model, read_preferences, rewards, token_ids

N_NEGATIVES = 60
Score = Callable[[list[tuple[str, str]]], list[float]]


def main() -> None:
    options = parse()
    model, tokenizer = load_reward_model(options.reward)

    def score(answers: list[tuple[str, str]]) -> list[float]:
        return rewards(model, [conversation_ids(tokenizer, prompt, answer) for prompt, answer in answers])

    rows = read_preferences(options.preferences, options.split)
    rows = [r for r in rows if len(token_ids(tokenizer, r.prompt)) <= options.max_prompt_tokens]
    for cap in options.caps:
        check_preferences(rows, cap, tokenizer, score, equal_length=options.equal_length)
    if options.negatives:
        check_negatives(rows, tokenizer, score)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preferences", required=True, help="JSONL file with prompt, chosen, rejected, or a Hub data set"
    )
    parser.add_argument("--split", default="test_prefs", help="the split, of a Hub data set")
    parser.add_argument("--reward", type=Path, required=True, help="checkpoint folder of the reward model")
    parser.add_argument("--caps", type=int, nargs="+", default=[64], help="cut both answers at so many tokens")
    parser.add_argument("--equal-length", action="store_true", help="cut at the shorter answer's length at most")
    parser.add_argument("--max-prompt-tokens", type=int, default=256)
    parser.add_argument("--negatives", action="store_true", help="also good answers against made-up bad ones")
    return parser.parse_args()


def check_preferences(rows: list[Preference], cap: int, tokenizer: Any, score: Score, *, equal_length: bool) -> None:
    """Chosen against rejected answers, both cut at `cap` tokens; and what length alone would say."""

    def length(row: Preference) -> int:
        ends = [cap, *(len(token_ids(tokenizer, text)) for text in (row.chosen, row.rejected))]
        return min(ends) if equal_length else cap

    texts = [(cut(tokenizer, r.chosen, length(r)), cut(tokenizer, r.rejected, length(r))) for r in rows]
    kept = [i for i, (chosen, rejected) in enumerate(texts) if chosen != rejected]
    sides = [[(rows[i].prompt, texts[i][side]) for i in kept] for side in (0, 1)]
    chosen, rejected = map(score, sides)
    report(f"chosen over rejected, cut at {cap} tokens", chosen, rejected)
    clear = [n for n, i in enumerate(kept) if rows[i].gap >= 2]
    report("  of these, rated 2 points apart or more", [chosen[n] for n in clear], [rejected[n] for n in clear])
    lengths = [[float(len(token_ids(tokenizer, text))) for _, text in side] for side in sides]
    report("  if the longer one were the better", *lengths)
    differ = [(a > b, n > m) for a, b, n, m in zip(chosen, rejected, *lengths, strict=True) if n != m]
    if differ:
        print(f"  of two answers it prefers the longer: {statistics.fmean(a == b for a, b in differ):.2f}")


def check_negatives(rows: list[Preference], tokenizer: Any, score: Score) -> None:
    """Chosen answers against bad ones made of them, kind by kind, and finished against broken-off ones."""
    negatives = Negatives(tokenizer, random.Random(1))
    good = [(r.prompt, token_ids(tokenizer, r.chosen)[:56]) for r in rows]
    good = [(prompt, ids) for prompt, ids in good if len(ids) >= 24][:N_NEGATIVES]
    better = score([(prompt, negatives.text(ids)) for prompt, ids in good])
    for kind, make in negatives.held_out_kinds().items():
        bad = [(prompt, make(ids, good[(i + 17) % len(good)][1])) for i, (prompt, ids) in enumerate(good)]
        report(f"chosen over {kind}", better, score(bad))
    ends = [(r.prompt, negatives.finished_and_cut(r.chosen, 16, 64)) for r in rows]
    both = [(prompt, *pair) for prompt, pair in ends if pair]
    report("finished over broken off", *(score([(row[0], row[side]) for row in both]) for side in (1, 2)))


def cut(tokenizer: Any, text: str, n_tokens: int) -> str:
    return str(tokenizer.decode(token_ids(tokenizer, text)[:n_tokens])).strip()


def report(name: str, better: list[float], worse: list[float]) -> None:
    """Print the share won (a tie counts half) with Wilson's 95 % interval, and the mean scores."""
    n, z = len(better), 1.96
    if n == 0:
        return
    share = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(better, worse, strict=True)) / n
    centre = (share + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / 4 / n / n) ** 0.5
    means = f"{statistics.fmean(better):+.2f} {statistics.fmean(worse):+.2f}"
    print(f"{name}: {share:.2f} [{centre - half:.2f}, {centre + half:.2f}], n = {n}, means {means}", flush=True)


if __name__ == "__main__":
    main()
