"""Record a table of real answers of a pair: every alpha of a dense list on every prompt, scored.

    python benchmarks/record.py --out benchmarks/demo_table.csv

`benchmarks/search.py` replays it through the real search loop, where a search costs milliseconds. Rows are written as
each alpha is finished, and a run that is started again goes on after the last one.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path

from expo_search.config.presets import load_study
from expo_search.evaluation.conversation_scorer import ConversationScorer
from expo_search.session.preflight import check
from expo_search.session.running import start
from expo_search.stats.repetition import repetition

ALPHAS = (
    0, 5, 16, 8, 2, 4, 1, 10, 3, 6, 0.5, 12, 7, -0.5, 24, 1.5, 20, 32, -1, 9, 2.5, 14, 0.25, 3.5, 4.5, 5.5, 11, 0.75,
)  # fmt: skip
COLUMNS = ("alpha", "prompt_id", "reward", "n_tokens", "finish_reason", "repetition")


def main() -> None:
    """Generate and score; append to the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--n-prompts", type=int, default=240)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done = set()
    if options.out.exists():
        with options.out.open(newline="") as file:
            done = {float(row["alpha"]) for row in csv.DictReader(file)}
    spec = load_study(preset=options.pair, overrides={"prompts": {"n": options.n_prompts}})
    with tempfile.TemporaryDirectory() as folder:
        checked = check(spec, f"sqlite:///{folder}/record.db", print)
        running = start(checked, print)
        for alpha in ALPHAS:
            if alpha in done:
                continue
            running.model.materialize(alpha)
            answers = [
                c
                for c in running.model.generate(checked.search_prompts, checked.spec.search.seed)
                if not isinstance(c, int)
            ]
            assert isinstance(running.scorer, ConversationScorer), "a preset's"
            rewards, _ = running.scorer.score(answers, lambda _: None)
            rows = [
                (f"{alpha:g}", c.prompt.id[:8], f"{r:.4f}", c.n_tokens, c.finish_reason, f"{repetition(c.text):.3f}")
                for c, r in zip(answers, rewards, strict=True)
            ]
            new = not options.out.exists()
            with options.out.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(COLUMNS)
                rows.sort(key=lambda row: row[1])
                writer.writerows(rows)
            print(f"alpha {alpha:g}: {sum(rewards) / len(rewards):.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
