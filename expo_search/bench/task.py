"""What a task is: items, what is asked for each, and how its answers are scored.

A task asks turn by turn: a request, its answer, the next request, until it wants no more; then it scores them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from expo_search.contracts import Prompt
from expo_search.store.bench_store import Answered, Scores

LEAST_ROOM = 64  # tokens that the context must leave an answer, where the task lets it have as many


@dataclass(frozen=True)
class Item:
    """One item of a task. `id` is unique in the task; `row` is what its data say of it."""

    id: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """One way to score a task's items; a higher mean is better.

    Attributes:
        name: as the task's scores have it. title: as people read it.
    """

    name: str
    title: str


class Task(Protocol):
    """A benchmark whose items are asked one by one.

    Attributes:
        name: what it is asked for by, and what its answers are stored under.
        title: as people read it.
        items: in their order.
        metrics: the first of them decides: sentence, test and guardrail are of its means. None: nothing is scored.
        settings: all that changes an answer or a score, for the database: sampling, checkers, data.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def items(self) -> Sequence[Item]: ...  # noqa: D102
    @property
    def metrics(self) -> Sequence[Metric]: ...  # noqa: D102
    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    def request(self, item: Item, answers: Sequence[str]) -> Prompt | None:
        """What is asked after these answers to the item; None where it has all it wants.

        A `Request`, which says how it is drawn, or a plain prompt, which is drawn as the study draws its own.
        """

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        """The scores of an item's answers, by the names of `metrics`."""


@runtime_checkable
class WrittenTask(Task, Protocol):
    """A task whose answers another program judges, and has a format for."""

    def file(self, generator: str, answered: Sequence[tuple[Item, Sequence[Answered]]]) -> tuple[str, bytes]:
        """The file's place below a folder, and its bytes; `generator`: what the answers go by there."""


@dataclass(frozen=True)
class TaskData:
    """Rows that a task is made from, and where they came from.

    Attributes:
        source: as people name it. digest: of the rows, 16 hex digits.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Sum up the rows."""
        text = json.dumps(list(self.rows), sort_keys=True, ensure_ascii=False, default=str)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16])


def generator_name(study: str, alpha: float) -> str:
    """What a model of a study goes by in files, as ExPO names its own: `zephyr_a0.1`."""
    return f"{study}_a{alpha!r}"
