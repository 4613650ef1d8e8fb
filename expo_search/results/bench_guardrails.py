"""Benchmarks and their limits -> which alphas may not be recommended, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expo_search.bench.comparison import Compared
from expo_search.bench.result import BenchResult


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


def sentences(lost: Mapping[float, Sequence[Compared]], limits: Mapping[str, float]) -> list[str]:
    """For people: one an alpha."""
    return [
        f"alpha = {alpha:.4g} is not recommended: it loses more than its guardrail allows, "
        + ", ".join(f"{c.measured()} where {c.shown(limits[c.task])} may go" for c in of_alpha)
        + "."
        for alpha, of_alpha in lost.items()
    ]
