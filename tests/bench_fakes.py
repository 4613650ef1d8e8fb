"""A task and a model for benchmarks: which items are answered right follows from alpha and the item alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fakes import FakeModel, unit

from expo_search.bench.task import Item, Metric
from expo_search.contracts import Completion, Prompt, Request
from expo_search.store.bench_store import Answered, Score, Scores


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
