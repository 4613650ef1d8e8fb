"""Scores of two alphas on the same items -> how far they differ, and whether that is shown. Everything is paired.

Right and wrong is compared by McNemar's exact test and Tango's interval, other scores by Student's t on the items'
differences. Over the tasks of one alpha the tests are corrected by Holm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expo_search.bench.task import Metric
from expo_search.stats.paired import estimate
from expo_search.stats.proportions import holm, mcnemar, paired_interval
from expo_search.store.bench_store import Score, Scores

_LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """One metric of one task at an alpha, against alpha = 0 on the items that both have.

    Attributes:
        n: items.
        mean, control: of the metric at alpha, and at 0.
        low, high: 95 % interval of mean - control, this comparison alone.
        p, corrected: of no difference, two-sided; corrected for the tasks that were compared at this alpha.
        decides: the metric is its task's first, which the sentence is of.
    """

    task: str
    title: str
    metric: str
    alpha: float
    n: int
    mean: float
    control: float
    low: float
    high: float
    p: float
    corrected: float
    decides: bool = True

    @property
    def difference(self) -> float:
        """How much higher the mean is than at alpha = 0."""
        return self.mean - self.control

    @property
    def word(self) -> str:
        """What is shown, after the correction: "a loss", "a gain" or "no evidence of a loss"."""
        if self.corrected < _LEVEL and self.difference:
            return "a gain" if self.difference > 0 else "a loss"
        return "no evidence of a loss"

    def sentence(self, n_tasks: int = 1) -> str:
        """For people, in percentage points where the scores are shares; `n_tasks`: that the test was corrected for."""
        alone = self.low > 0 or self.high < 0
        doubt = alone and self.word == "no evidence of a loss"
        p = f" (p = {self.corrected:.2f}{f', corrected for {n_tasks} tasks' if n_tasks > 1 else ''})" if doubt else ""
        return f"{self.measured()}: {self.word}{p}"

    def measured(self) -> str:
        """The task, the difference and its interval."""
        low, high = (self.shown(x, signed=True) for x in (self.low, self.high))
        return f"{self.title} {self.shown(self.difference, signed=True)} [{low}, {high}]"

    def shown(self, value: float, *, signed: bool = False) -> str:
        """A mean or a difference: in percentage points, where both means are shares."""
        is_share = all(0 <= mean <= 1 for mean in (self.mean, self.control))
        scaled = 100 * value if is_share else value
        return f"{scaled:{'+' if signed else ''}.{1 if is_share else 3}f}"

    def as_json(self) -> dict[str, Any]:
        """For machines; shares are 0 .. 1."""
        ends = [end if math.isfinite(end) else None for end in (self.low, self.high)]
        return {
            "task": self.task,
            "metric": self.metric,
            "alpha": self.alpha,
            "items": self.n,
            "mean": self.mean,
            "at_alpha_0": self.control,
            "difference": self.difference,
            "interval_95": ends,
            "p": self.p,
            "p_corrected": self.corrected,
            "verdict": self.word,
        }


def compare(
    task: str, title: str, metrics: Sequence[Metric], alpha: float, at: Mapping[str, Scores], zero: Mapping[str, Scores]
) -> list[Compared]:
    """Every metric of a task at an alpha; p values are not corrected yet (`corrected`). Empty without a common item."""
    common = [item for item in zero if item in at]
    return [
        _compared(
            task,
            title if i == 0 else metric.title,
            metric.name,
            alpha,
            [at[k][metric.name] for k in common],
            [zero[k][metric.name] for k in common],
            decides=i == 0,
        )
        for i, metric in enumerate(metrics)
        if common
    ]


def corrected(compared: Sequence[Compared]) -> list[Compared]:
    """Several tasks' comparisons at one alpha, with p values corrected for the tasks; by Holm over what decides.

    A metric that decides nothing goes with its own p, which no sentence uses.
    """
    of = [i for i, c in enumerate(compared) if c.decides]
    p_values = dict(zip(of, holm([compared[i].p for i in of]), strict=True))
    return [replace(c, corrected=p_values.get(i, c.p)) for i, c in enumerate(compared)]


def mean_of(scores: Sequence[Score]) -> float:
    """The weighted mean of at least one score."""
    return math.fsum(s.value * s.weight for s in scores) / math.fsum(s.weight for s in scores)


def _compared(
    task: str, title: str, metric: str, alpha: float, at: Sequence[Score], zero: Sequence[Score], *, decides: bool
) -> Compared:
    n, means = len(at), (mean_of(at), mean_of(zero))
    if all(s.value in (0, 1) and s.weight == 1 for s in (*at, *zero)):
        gained = sum(a.value > z.value for a, z in zip(at, zero, strict=True))
        lost = sum(a.value < z.value for a, z in zip(at, zero, strict=True))
        interval, p = paired_interval(gained, lost, n), mcnemar(gained, lost)
    else:
        interval, p = _student(at, zero)
    return Compared(task, title, metric, alpha, n, *means, *interval, p, p, decides)


def _student(at: Sequence[Score], zero: Sequence[Score]) -> tuple[tuple[float, float], float]:
    """Interval and p of the difference of the weighted means, the weights being the items' own, the same at both."""
    from scipy.stats import t

    mean_weight = math.fsum(z.weight for z in zero) / len(zero)
    d = estimate([(a.value - z.value) * z.weight / mean_weight for a, z in zip(at, zero, strict=True)])
    if d.n == 1:
        return (-math.inf, math.inf), 1.0
    if not d.se:  # every item differs by the same: of that many coins each fell on one side
        return (d.low, d.high), mcnemar(d.n, 0) if d.mean else 1.0
    return (d.low, d.high), 2 * float(t.sf(abs(d.mean) / d.se, d.n - 1))
