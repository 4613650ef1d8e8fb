"""The data sets of lm-evaluation-harness's `openllm`, with made-up rows, as repositories of `hub_server`.

Paths, configurations, splits and columns are those that the harness's own files name; no text is the real sets'. Each
question says its split and number, so that a prompt's shots can be counted. Run as a program, it has a fake model
answer the group and writes down what was asked; a process of its own, because `datasets` reads HF_ENDPOINT when it is
imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]
CONTEXT = 16_384  # tokens, which are bytes here: no prompt is cut


def _arc(said: str, i: int) -> Row:
    choices = {"text": [f"{word} {i}" for word in ("stone", "river", "cloud", "grass")], "label": list("ABCD")}
    return {"id": said, "question": f"Which is it? {said}", "choices": choices, "answerKey": "ABCD"[i % 4]}


def _hellaswag(said: str, i: int) -> Row:
    endings = [f"{verb} the {i} boats." for verb in ("counts", "paints", "sells", "hides")]
    ctx_a, ctx_b = f"A man stands at the shore. {said}", "he"
    context = {"activity_label": "Boats", "ctx_a": ctx_a, "ctx_b": ctx_b, "ctx": f"{ctx_a} {ctx_b}", "ind": i}
    label = "" if said.startswith("(test") else str(i % 4)  # the real test split has none
    return context | {"endings": endings, "label": label, "split": "-", "split_type": "-", "source_id": said}


def _truthfulqa(said: str, i: int) -> Row:
    mc1 = {"choices": [f"It is {i}.", f"It is {i + 1}.", "It is a fish."], "labels": [1, 0, 0]}
    mc2 = {"choices": [f"It is {i}.", f"Just {i}.", "It is a fish.", "None."], "labels": [1, 1, 0, 0]}
    return {"question": f"How many is it? {said}", "mc1_targets": mc1, "mc2_targets": mc2}


def _mmlu(said: str, i: int) -> Row:
    return {"question": f"Pick one. {said}", "choices": [f"{c}{i}" for c in "wxyz"], "subject": "-", "answer": i % 4}


def _winogrande(said: str, i: int) -> Row:
    answer = "" if said.startswith("(test") else str(1 + i % 2)
    sentence = f"{said} The cup did not fit the box because the _ was too large."
    return {"sentence": sentence, "option1": "cup", "option2": "box", "answer": answer}


def _gsm8k(said: str, i: int) -> Row:
    return {"question": f"What is {i} and 1? {said}", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}


def write_leaderboard(datasets: Path, subjects: Iterable[str]) -> None:
    """A repository for each data set of the group, below `datasets`; MMLU has these subjects."""
    arc = {"ARC-Challenge": {"train": 30, "validation": 2, "test": 3}}
    mmlu = {subject: {"test": 2, "validation": 1, "dev": 5} for subject in subjects}
    _write(datasets / "allenai" / "ai2_arc", arc, _arc)
    _write(datasets / "Rowan" / "hellaswag", {"default": {"train": 12, "validation": 3, "test": 1}}, _hellaswag)
    _write(datasets / "truthfulqa" / "truthful_qa", {"multiple_choice": {"validation": 3}}, _truthfulqa)
    _write(datasets / "cais" / "mmlu", mmlu, _mmlu)
    _write(
        datasets / "allenai" / "winogrande", {"winogrande_xl": {"train": 8, "validation": 3, "test": 1}}, _winogrande
    )
    _write(datasets / "openai" / "gsm8k", {"main": {"train": 8, "test": 3}}, _gsm8k)


def _write(folder: Path, configs: Mapping[str, Mapping[str, int]], row: Callable[[str, int], Row]) -> None:
    """Parquet files of so many rows a split, and the card that says which are which."""
    card = []
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        for split, n in splits.items():
            rows = [row(f"({split} {i})", i) for i in range(n)]
            pq.write_table(pa.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{config}/{split}-*"} for split in splits]
        card.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\nMade-up rows.\n")


def main(database: str, limit: str, alphas: str) -> None:
    """Answer the group with a fake model, and print what was asked and what came of it, as JSON."""
    from bench_fakes import RatingModel, Recording
    from twins import make_tokenizer

    from expo_search.bench.harness_task import HarnessTask
    from expo_search.bench.registry import load_tasks
    from expo_search.bench.result import read_bench
    from expo_search.bench.run import run
    from expo_search.store.bench_store import BenchStore
    from expo_search.store.study_store import Store

    tokenizer = make_tokenizer()
    tasks = [
        task.on(tokenizer, CONTEXT)
        for task in load_tasks(["lm_eval:openllm"], {}, int(limit))
        if isinstance(task, HarnessTask)
    ]
    store, watcher, model = BenchStore(Store(f"sqlite:///{database}", "s")), Recording(), RatingModel()
    wanted = [float(alpha) for alpha in alphas.split(",")]
    run(model, store, tasks, wanted, seed=0, watcher=watcher)
    asked = [(alpha, tokenizer.decode(request.ids)) for alpha, request in model.requests]
    told = {"items": {task.name: list(task.item_ids) for task in tasks}, "starts": watcher.starts, "asked": asked}
    result = read_bench(store)
    json.dump(told | {"remarks": watcher.remarks, **result.as_json()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
