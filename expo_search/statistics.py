"""Rewards of two alphas on the same prompts -> differences and intervals. Everything is paired by prompt.

The same prompt and the same sampling seed at both alphas: sharing prompts halves the variance of a difference, so the
difference of two means with independent errors would be far too wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts, its standard error, and its 95 % interval (Student's t, n - 1 degrees of freedom)."""

    mean: float
    se: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self._half_width

    @property
    def high(self) -> float:
        return self.mean + self._half_width

    @property
    def _half_width(self) -> float:
        from scipy.stats import t

        return float(t.ppf(0.975, self.n - 1)) * self.se if self.n > 1 else math.inf


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of at least one value; the error of a single value is infinite."""
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    se = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(statistics.fmean(values), se, n)


def paired_difference(rewards: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Mean of reward minus control over the prompts that both have, keyed by prompt position.

    Raises:
        ValueError: no prompt in common.
    """
    common = sorted(rewards.keys() & control.keys())
    return estimate([rewards[k] - control[k] for k in common])
