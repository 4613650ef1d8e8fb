"""Stored scores of a study's benchmarks -> means, and comparisons with alpha = 0. Needs neither tasks nor data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expo_search.bench.comparison import Compared, compare, corrected, mean_of
from expo_search.bench.task import Metric
from expo_search.store.bench_store import BenchStore, Scores


@dataclass(frozen=True)
class TaskResult:
    """What is stored of one task.

    Attributes:
        metrics: the first one decides; none of a task whose answers are written out and not scored.
        n_items: items that are done, by alpha.
        means: by alpha and metric.
        settings: what its answers were made under.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    n_items: Mapping[float, int]
    means: Mapping[float, Mapping[str, float]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class BenchResult:
    """A study's benchmarks: its tasks, and each metric at each alpha against alpha = 0."""

    tasks: Sequence[TaskResult] = ()
    compared: Sequence[Compared] = ()

    def at(self, alpha: float) -> list[Compared]:
        """The comparisons that decide at an alpha, one a task."""
        return [c for c in self.compared if c.decides and c.alpha == alpha]

    def sentences(self) -> list[str]:
        """For people: one a task and alpha."""
        alphas = list(dict.fromkeys(c.alpha for c in self.compared))
        told = []
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
        items: task -> the items that count.
    """
    tasks: list[TaskResult] = []
    compared: list[Compared] = []
    for name, there in store.tasks().items():
        if items is not None and name not in items:
            continue
        settings = store.settings(name)
        metrics = _metrics(settings)
        title = str(settings.get("title", name))
        scores = {
            alpha: _of(store.scores(name, alpha), None if items is None else items[name], metrics)
            for alpha in there
            if alphas is None or alpha in alphas
        }
        means = {
            alpha: {m.name: mean_of([s[m.name] for s in at.values()]) for m in metrics}
            for alpha, at in scores.items()
            if at
        }
        made_under = {key: value for key, value in settings.items() if key not in ("title", "metrics")}
        n_items = {alpha: len(at) for alpha, at in scores.items()}
        tasks.append(TaskResult(name, title, metrics, n_items, means, made_under))
        zero = scores.get(0.0, {})
        for alpha, at in scores.items():
            if alpha != 0:
                compared += compare(name, title, metrics, alpha, at, zero)
    by_alpha = sorted({c.alpha for c in compared})
    return BenchResult(tasks, [c for a in by_alpha for c in corrected([c for c in compared if c.alpha == a])])


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
