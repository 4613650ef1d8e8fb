"""`prompts.jsonl` -> pairs to train the second judge on, and pairs to test it on, in the order of `--pair demo`.

To train on: those of the prompts from `--first` to `--last`, which neither the demo's search (its first 128) nor the
confirmation of the docs (its last 280) sees. To test on: all others. `--list` writes `second/trained_on.txt`, so that
the judge is asked about none of those that it was trained on.
"""

from __future__ import annotations

import argparse
from hashlib import sha256
from pathlib import Path

from training import read_rows, write_rows

from expo_search.inputs.prompts import load_prompts

PROMPTS = Path(__file__).parent / "prompts.jsonl"
SEED = 42  # of the demo's search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=128)
    parser.add_argument("--last", type=int, default=280, help="the first prompt that is not taken any more")
    parser.add_argument("--train", type=Path, required=True, help="file for the pairs to train on")
    parser.add_argument("--test", type=Path, required=True, help="file for the others")
    parser.add_argument("--list", type=Path, help="file for the hashes of the prompts to train on")
    options = parser.parse_args()
    rows = {row["prompt"].strip(): row for row in read_rows(PROMPTS)}
    ordered = [rows[prompt.text.strip()] for prompt in load_prompts(str(PROMPTS), "train_prefs", SEED)]
    train = ordered[options.first : options.last]
    if options.list:
        options.list.write_text("".join(sorted(f"{sha256(row['prompt'].encode()).hexdigest()}\n" for row in train)))
    write_rows(train, options.train)
    write_rows(ordered[: options.first] + ordered[options.last :], options.test)


if __name__ == "__main__":
    main()
