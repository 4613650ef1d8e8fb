"""Tasks and alphas -> answers and scores in the study's database, on one model that is switched between alphas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from expo_search.bench.asking import Asking, BenchWatcher, Key
from expo_search.bench.task import Item, Task
from expo_search.contracts import Model, Prompt
from expo_search.errors import EngineDied
from expo_search.store.bench_store import ASKED, Answered, BenchStore, Scores


class Benchmark(Protocol):
    """A task and those of its items that are wanted: what is run at each alpha."""

    @property
    def name(self) -> str:
        """What its answers are stored under."""

    @property
    def title(self) -> str:
        """As people read it."""

    @property
    def item_ids(self) -> Sequence[str]:
        """The items that are wanted, in their order."""

    def kept(self) -> Mapping[str, Any]:
        """What is pinned with its answers: what they are made under, and how to show them without the task."""

    def answer(self, asking: Asking, store: BenchStore, watcher: BenchWatcher) -> None:
        """Answer and score the items that are not scored yet at `asking.alpha`. Raises as `Asking.ask`."""


@dataclass(frozen=True)
class Chosen:
    """A `Benchmark` whose items are asked one by one.

    Attributes:
        items: the first of the task's, but those that leave no room for an answer in the context.
        fits: whether a prompt does; one of a later turn that does not is answered by nothing.
    """

    task: Task
    items: Sequence[Item]
    fits: Callable[[Prompt], bool] = field(default=lambda _: True)

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    @property
    def title(self) -> str:
        """The task's."""
        return self.task.title

    @property
    def item_ids(self) -> Sequence[str]:
        """Of `items`."""
        return [item.id for item in self.items]

    def n_requests(self, item: Item) -> int:
        """How many turns an item has, whatever is answered."""
        n = 0
        while self.task.request(item, [""] * n) is not None:
            n += 1
        return n

    def kept(self) -> Mapping[str, Any]:
        """The task's settings, title and metrics."""
        metrics = [[m.name, m.title] for m in self.task.metrics]
        return {"title": self.title, "metrics": metrics, **self.task.settings}

    def answer(self, asking: Asking, store: BenchStore, watcher: BenchWatcher) -> None:
        """Turn by turn, until no item wants more."""
        _Round(asking, store, self, watcher).go()


def is_done(store: BenchStore, benchmark: Benchmark, alpha: float) -> bool:
    """Whether each item of a benchmark is scored at an alpha."""
    return not _open(store, benchmark, alpha)


def _open(store: BenchStore, benchmark: Benchmark, alpha: float) -> set[str]:
    """The items of a benchmark that are not scored yet at an alpha."""
    return set(benchmark.item_ids) - store.scores(benchmark.name, alpha).keys()


def run(
    model: Model,
    store: BenchStore,
    benchmarks: Sequence[Benchmark],
    alphas: Sequence[float],
    *,
    seed: int,
    watcher: BenchWatcher,
    stop: Callable[[], bool] = lambda: False,
    on_failure: Callable[[EngineDied], None] = lambda _: None,
    asked: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Answer and score what is not yet: alpha by alpha, since a switch empties the cache, and task by task.

    `asked`: by task, what is kept with it of what was asked for (`result.Asked`).

    Raises:
        Stopped: `stop` said so; everything that was answered is stored.
        EngineDied: the second time in one task at one alpha.
        SettingsChanged: a task's stored answers, or an alpha's weights, are of other settings.
    """
    for benchmark in benchmarks:
        store.pin(benchmark.name, benchmark.kept())
        if asked is not None:
            store.describe(benchmark.name, {ASKED: asked[benchmark.name]})
    n_open = {alpha: [(each, len(_open(store, each, alpha))) for each in benchmarks] for alpha in alphas}
    watcher.planned({(each.name, alpha): n for alpha, of_alpha in n_open.items() for each, n in of_alpha if n})
    for alpha, of_alpha in n_open.items():
        open_ones = [each for each, n in of_alpha if n]
        if not open_ones:
            continue
        store.pin_weights(alpha, model.materialize(alpha).fingerprint)
        for benchmark in open_ones:
            asking = Asking(
                model, store, benchmark.name, alpha, seed=seed, watcher=watcher, stop=stop, on_failure=on_failure
            )
            benchmark.answer(asking, store, watcher)


class _Round:
    """One task at one alpha: turn by turn, until no item wants more."""

    def __init__(self, asking: Asking, store: BenchStore, chosen: Chosen, watcher: BenchWatcher) -> None:
        self._asking, self._store, self._chosen, self._watcher = asking, store, chosen, watcher
        scored = store.scores(asking.task, asking.alpha)
        self._open = {item.id: (i, item) for i, item in enumerate(chosen.items) if item.id not in scored}
        stored = store.answers(asking.task, asking.alpha)
        self._answers = {item: list(stored.get(item, ())) for item in self._open}

    def go(self) -> None:
        n = sum(map(self._chosen.n_requests, self._chosen.items))
        n_left = sum(self._chosen.n_requests(item) - len(self._answers[id]) for id, (_, item) in self._open.items())
        self._watcher.started(self._chosen.name, self._chosen.title, self._asking.alpha, n, n - n_left)
        while asked := self._next():
            self._asking.ask(asked, self._take)

    def _next(self) -> dict[Key, Prompt]:
        """The next prompt of each item; one that wants none is scored, where it is not."""
        asked: dict[Key, Prompt] = {}
        task = self._chosen.task
        for name in list(self._open):
            position, item = self._open[name]
            given = self._answers[name]
            prompt = task.request(item, [a.text for a in given])
            no_room: dict[Key, Answered] = {}
            while prompt is not None and not self._chosen.fits(prompt):
                given.append(Answered("", 0, "length"))
                no_room[name, len(given) - 1] = given[-1]
                prompt = task.request(item, [a.text for a in given])
            scores: dict[Key, Scores] = {}
            if prompt is None:
                scores[name, position] = task.score(item, given)
                del self._open[name]
            else:
                asked[name, len(given)] = prompt
            if no_room or scores:
                self._store.add(task.name, self._asking.alpha, no_room, scores)
        return asked

    def _take(self, name: str, answer: Answered) -> tuple[int, Scores] | None:
        """An item's next answer; its position and scores, where that was the last one."""
        position, item = self._open[name]
        given = self._answers[name]
        given.append(answer)
        if self._chosen.task.request(item, [a.text for a in given]) is not None:
            return None
        scores = self._chosen.task.score(item, given)
        del self._open[name]
        return position, scores
