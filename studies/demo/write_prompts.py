"""Written rows -> `prompts.jsonl` in UltraFeedback-binarized's columns, shuffled, without training prompts.

In: JSONL files with prompt, chosen, rejected, score_chosen, score_rejected. A row is dropped when its prompt
is written twice, is one of the training prompts, or shares a run of eight words with one.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
from pathlib import Path
from typing import Any

from training import read_preferences, read_rows, write_rows

RUN_WORDS = 8


def main() -> None:
    options = parse()
    seen_runs: set[tuple[str, ...]] = set()
    seen: set[tuple[str, ...]] = set()
    for source in options.training:
        for trained in read_preferences(source):
            seen.add(words(trained.prompt))
            seen_runs |= runs(trained.prompt)
    rows = [row for file in options.written for row in read_rows(file)]
    kept: list[dict[str, Any]] = []
    for row in rows:
        if words(row["prompt"]) not in seen and not runs(row["prompt"]) & seen_runs:
            seen.add(words(row["prompt"]))
            kept.append(columns(row))
    random.Random(options.seed).shuffle(kept)
    write_rows(kept, options.out)
    print(f"{len(kept)} rows written, {len(rows) - len(kept)} dropped")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--written", type=Path, nargs="+", required=True, help="JSONL files with the written rows")
    parser.add_argument("--training", nargs="+", required=True, help="data sets whose prompts must not occur")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of eight words."""
    every = words(text)
    return {every[i : i + RUN_WORDS] for i in range(len(every) - RUN_WORDS + 1)}


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """One row in the columns of HuggingFaceH4/ultrafeedback_binarized."""
    prompt = row["prompt"].strip()
    chosen, rejected = (
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": row[side].strip()}]
        for side in ("chosen", "rejected")
    )
    return {
        "prompt": prompt,
        "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": float(row["score_chosen"]),
        "score_rejected": float(row["score_rejected"]),
    }


if __name__ == "__main__":
    main()
