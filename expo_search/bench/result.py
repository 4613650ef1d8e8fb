"""Stored scores of a study's benchmarks -> means, and comparisons with alpha = 0. Needs neither tasks nor data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expo_search.bench.comparison import Compared, compare, corrected, mean_of
from expo_search.bench.task import Metric
from expo_search.store.bench_store import ASKED, BenchStore, Scores


@dataclass(frozen=True)
class Asked:
    """What a task's last run was asked for: it tells whether that was finished, and what to type to go on.

    Attributes:
        tasks, data, limit: of the run, as they were typed; `tasks` are all of it, this one among them.
        alphas: 0 among them. n_items: of this task, at each of them; None and no alphas: an older version kept neither.
    """

    tasks: Sequence[str]
    data: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    alphas: Sequence[float] = ()
    n_items: int | None = None


@dataclass(frozen=True)
class TaskResult:
    """What is stored of one task.

    Attributes:
        metrics: the first one decides; none of a task whose answers are written out and not scored.
        n_items: items that are done, by alpha.
        means: by alpha and metric.
        settings: what its answers were made under.
        asked: what its last run was asked for, where that was not finished.
        unfinished: for people, how far that run is; empty where it was finished.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    n_items: Mapping[float, int]
    means: Mapping[float, Mapping[str, float]]
    settings: Mapping[str, Any]
    asked: Asked | None = None
    unfinished: str = ""


@dataclass(frozen=True)
class BenchResult:
    """A study's benchmarks: its tasks, and each metric at each alpha against alpha = 0."""

    tasks: Sequence[TaskResult] = ()
    compared: Sequence[Compared] = ()

    def at(self, alpha: float) -> list[Compared]:
        """The comparisons that decide at an alpha, one a task."""
        return [c for c in self.compared if c.decides and c.alpha == alpha]

    def sentences(self) -> list[str]:
        """For people: one a task that is not finished, then one a task and alpha."""
        alphas = list(dict.fromkeys(c.alpha for c in self.compared))
        told = [f"{task.title} is not finished: {task.unfinished}." for task in self.tasks if task.unfinished]
        for alpha in alphas:
            at = self.at(alpha)
            told += [f"alpha = {alpha:.4g}: {c.sentence(len(at))}" for c in at]
        return told

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "tasks": [
                {
                    "task": t.name,
                    "title": t.title,
                    "settings": dict(t.settings),
                    "alphas": [
                        {"alpha": alpha, "items": n, "means": dict(t.means.get(alpha, {}))}
                        for alpha, n in t.n_items.items()
                    ],
                    "unfinished": t.unfinished or None,
                }
                for t in self.tasks
            ],
            "compared": [c.as_json() for c in self.compared],
        }


def read_bench(
    store: BenchStore,
    items: Mapping[str, Collection[str]] | None = None,
    alphas: Collection[float] | None = None,
) -> BenchResult:
    """What is stored of these tasks' items at these alphas; of all of them by default.

    Args:
        items: task -> the items that count, which are known to be done.
    """
    tasks: list[TaskResult] = []
    compared: list[Compared] = []
    scored = store.tasks()
    begun = {} if items is not None else {name: list[float]() for name in store.asked() if name not in scored}
    for name, there in (scored | begun).items():
        if items is not None and name not in items:
            continue
        settings = store.settings(name)
        metrics = _metrics(settings)
        title = str(settings.get("title", name))
        stored = {alpha: store.scores(name, alpha) for alpha in there if alphas is None or alpha in alphas}
        scores = {alpha: _of(at, None if items is None else items[name], metrics) for alpha, at in stored.items()}
        means = {
            alpha: {m.name: mean_of([s[m.name] for s in at.values()]) for m in metrics}
            for alpha, at in scores.items()
            if at
        }
        made_under = {key: value for key, value in settings.items() if key not in ("title", "metrics", ASKED)}
        n_items = {alpha: len(at) for alpha, at in scores.items()}
        asked, unfinished = None, ""
        if items is None:
            asked = _asked(name, settings, there)
            unfinished = "" if asked is None else _standing(asked, {alpha: len(at) for alpha, at in stored.items()})
        tasks.append(
            TaskResult(name, title, metrics, n_items, means, made_under, asked if unfinished else None, unfinished)
        )
        zero = scores.get(0.0, {})
        for alpha, at in scores.items():
            if alpha != 0:
                compared += compare(name, title, metrics, alpha, at, zero)
    by_alpha = sorted({c.alpha for c in compared})
    return BenchResult(tasks, [c for a in by_alpha for c in corrected([c for c in compared if c.alpha == a])])


def _asked(name: str, settings: Mapping[str, Any], alphas: Sequence[float]) -> Asked | None:
    """What a task's last run was asked for; None where it is not known, and there are answers to compare."""
    if ASKED in settings:
        return Asked(**settings[ASKED])
    return Asked([name]) if list(alphas) == [0.0] else None


def _standing(asked: Asked, n_done: Mapping[float, int]) -> str:
    """How many items are answered at each alpha, for people; empty where all are."""
    if asked.n_items is None:
        return f"{n_done[0.0]} item{'' if n_done[0.0] == 1 else 's'} answered at alpha = 0, none at another"
    n = asked.n_items
    if all(n_done.get(alpha, 0) >= n for alpha in asked.alphas):
        return ""
    first, *others = (f"{min(n_done.get(alpha, 0), n)} of {n}" for alpha in asked.alphas)
    at_others = "".join(f", {told} at {alpha:.4g}" for told, alpha in zip(others, asked.alphas[1:], strict=True))
    return f"{first} items answered at alpha = {asked.alphas[0]:.4g}{at_others}"


def _metrics(settings: Mapping[str, Any]) -> list[Metric]:
    """A task's, but the harness's `perplexity`, from before 2026-11-30: its sign is wrong."""
    metrics = [Metric(*pair) for pair in settings.get("metrics", ())]
    is_harness = "versions" in settings
    return [m for m in metrics if not is_harness or m.name.partition(",")[0] != "perplexity"]


def _of(scores: Mapping[str, Scores], items: Collection[str] | None, metrics: Sequence[Metric]) -> dict[str, Scores]:
    """The scores of these items that have every metric; one that no judge has judged has none."""
    return {
        item: s for item, s in scores.items() if (items is None or item in items) and all(m.name in s for m in metrics)
    }
