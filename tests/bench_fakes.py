"""Tasks and models for benchmarks: which items are answered right follows from alpha and the item alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakes import FakeModel, unit

from expo_search.bench.task import Item, Metric
from expo_search.contracts import Completion, Likelihood, Prompt, Request
from expo_search.store.bench_store import Answered, Score, Scores

TEXT = "Rivers carry water to the sea."
CHOICE: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
}


def write_task(folder: Path, name: str, n: int, *, n_train: int = 0, **config: Any) -> str:
    """A task of the harness over n local rows, and so many to take shots from; its YAML file."""
    files = {}
    for split, size in {"test": n, "train": n_train}.items():
        if size:
            rows = [
                {"q": f"{TEXT} {split} {i}?", "choices": [f" {c}{i}" for c in "abc"], "gold": i % 3}
                for i in range(size)
            ]
            file = folder / f"{name}{'' if split == 'test' else '_train'}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[split] = str(file)
    data: dict[str, Any] = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    splits = {"test_split": "test"} | ({"training_split": "train"} if n_train else {})
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({"task": name} | splits | data | config))  # YAML has JSON in it
    return str(file)


@dataclass
class TurnsTask:
    """Items of one turn, or two where their number is odd; an item is right where its last answer says "yes"."""

    name: str = "turns"
    title: str = "Turns"
    n: int = 12
    metrics: Sequence[Metric] = (Metric("right", "right"), Metric("length", "length"))
    settings: Mapping[str, Any] = field(default_factory=lambda: {"data": "abc"})
    scored: list[str] = field(default_factory=list)

    @property
    def items(self) -> Sequence[Item]:
        return [Item(f"i{k}", {"turns": 1 + k % 2}) for k in range(self.n)]

    def request(self, item: Item, answers: Sequence[str]) -> Prompt | None:
        if len(answers) == item.row["turns"]:
            return None
        before = tuple(pair for said in answers for pair in (("user", "ask"), ("assistant", said)))
        return Request(f"{self.name}/{item.id}/{len(answers)}", "ask", before=before)

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        self.scored.append(item.id)
        last = answers[-1].text
        return {"right": Score(float(last == "yes")), "length": Score(len(last), item.row["turns"])}


@dataclass
class YesModel(FakeModel):
    """Says "yes" to a share of a benchmark's requests, `share(alpha)` of them, and "no" to the others."""

    share: Callable[[float], float] = lambda alpha: 0.5 - 0.5 * alpha

    def says(self, alpha: float, prompt: Prompt) -> str:
        return "yes" if unit("yes", prompt.id) < self.share(alpha) else "no"

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        for part in super().generate(prompts, seed):
            if isinstance(part, Completion) and isinstance(part.prompt, Request):
                yield replace(part, text=self.says(self.alphas[-1], part.prompt))
            else:
                yield part


@dataclass
class RatingModel(FakeModel):
    """Rates what it is asked to rate, by default each text otherwise at each alpha. `requests`: of (alpha, request)."""

    rates: Callable[[float, Request], float] = lambda alpha, request: -9 * unit(alpha, request.ids)
    requests: list[tuple[float, Request]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        for part in super().generate(prompts, seed):
            if not isinstance(part, Completion):
                yield part
                continue
            request, alpha = part.prompt, self.alphas[-1]
            assert isinstance(request, Request)
            self.requests.append((alpha, request))
            if request.n_rated:
                yield Likelihood(request, "", 0, "stop", self.rates(alpha, request), False)
            else:
                yield replace(part, text=f"It is #### {unit(alpha, request.ids) > 0.5:d}")


@dataclass
class Recording:
    """A `BenchWatcher` that keeps what it is told."""

    plans: list[Mapping[tuple[str, float], int]] = field(default_factory=list)
    starts: list[tuple[str, str, float, int, int]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    n_answers: int = 0
    n_tokens: int = 0

    def planned(self, n_items: Mapping[tuple[str, float], int]) -> None:
        self.plans.append(n_items)

    def started(self, task: str, title: str, alpha: float, n_requests: int, n_stored: int) -> None:
        self.starts.append((task, title, alpha, n_requests, n_stored))

    def generated(self, n_tokens: int, n_answers: int) -> None:
        self.n_tokens += n_tokens
        self.n_answers += n_answers

    def remark(self, text: str) -> None:
        self.remarks.append(text)
