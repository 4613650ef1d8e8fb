"""Benchmarks and their limits -> which alphas may not be recommended, and why; which limits nothing was held to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from expo_search.bench.comparison import Compared
from expo_search.bench.result import Asked, BenchResult, TaskResult


def losses(bench: BenchResult, limits: Mapping[str, float]) -> dict[float, list[Compared]]:
    """Alpha -> the benchmarks on which it is shown to lose more than the study allows.

    That a loss is there at all must hold after the correction for the tasks, and the whole 95 % interval of its size
    lie beyond the limit.

    Args:
        limits: by task, how much lower than at alpha = 0 its deciding mean may be, in that metric's unit.
    """
    beyond = [
        c for c in bench.compared if c.decides and c.task in limits and c.word == "a loss" and c.high < -limits[c.task]
    ]
    return {alpha: [c for c in beyond if c.alpha == alpha] for alpha in sorted({c.alpha for c in beyond})}


def unmeasured(bench: BenchResult, limits: Mapping[str, float], alpha: float) -> dict[str, Asked | None]:
    """The tasks with a limit to which an alpha was not held, its items not all being scored there and at alpha = 0.

    Each with what its unfinished run was asked for; None: there is none such.
    """
    compared = {c.task for c in bench.at(alpha)}
    whole = {task.name for task in bench.tasks if task.name in compared and _is_whole(task, alpha)}
    asked = {task.name: task.asked for task in bench.tasks}
    return {task: asked.get(task) for task in limits if task not in whole}


def _is_whole(task: TaskResult, alpha: float) -> bool:
    """Whether a task that is compared at an alpha is finished there; another alpha's items may be missing."""
    asked = task.asked
    if asked is None or asked.n_items is None or alpha not in asked.alphas:
        return True
    return all(task.n_items.get(at, 0) >= asked.n_items for at in (0.0, alpha))


def not_measured(tasks: Collection[str]) -> str:
    """For people, within a sentence, of at least one task with a limit."""
    which, were = ("guardrails", "were") if len(tasks) > 1 else ("guardrail", "was")
    return f"{which} {', '.join(tasks)} {were} not measured"


def sentences(lost: Mapping[float, Sequence[Compared]], limits: Mapping[str, float]) -> list[str]:
    """For people: one an alpha."""
    return [
        f"alpha = {alpha:.4g} is not recommended: it loses more than its guardrail allows, "
        + ", ".join(f"{c.measured()} where {c.shown(limits[c.task])} may go" for c in of_alpha)
        + "."
        for alpha, of_alpha in lost.items()
    ]
