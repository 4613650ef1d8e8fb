"""Sample several answers of the base model to each training prompt, at one temperature: the demo's.

Answers at several temperatures would teach the aligned model to sharpen its distribution, which raises
rewards at high temperature and at no other.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path

from engine import sample, start_engine
from training import read_preferences, token_ids, write_rows


def main() -> None:
    options = parse()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    held_out = read_preferences(options.held_out, "test_prefs") if options.held_out else []
    left_out = {row.prompt for row in held_out}
    every = dict.fromkeys(row.prompt for row in read_preferences(options.ultrafeedback))
    short = [p for p in every if len(p) >= 10 and len(token_ids(tokenizer, p)) <= options.max_prompt_tokens]
    prompts = [p for p in short if p not in left_out][: options.n_prompts]
    print(f"{len(prompts)} prompts", flush=True)
    engine = start_engine(options.base)
    groups = sample(engine, prompts, options.n_answers, options.temperature, options.max_tokens, options.seed)
    every_answer = [answer for group in groups for answer in group]
    finished = statistics.fmean(answer.finished for answer in every_answer)
    length = statistics.fmean(len(answer.token_ids) for answer in every_answer)
    print(f"{len(every_answer)} answers, {finished:.2f} finished, {length:.1f} tokens")
    rows = zip(prompts, groups, strict=True)
    write_rows(({"prompt": p, "answers": [asdict(a) for a in group]} for p, group in rows), options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultrafeedback", required=True, help="JSONL with prompt, chosen, rejected, or a Hub data set")
    parser.add_argument("--held-out", help="the same, for the prompts to leave out")
    parser.add_argument("--base", type=Path, required=True, help="checkpoint folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file for the answers")
    parser.add_argument("--n-prompts", type=int, default=400)
    parser.add_argument("--n-answers", type=int, default=6)
    parser.add_argument("--max-prompt-tokens", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
