"""Rewards of two alphas on the same prompts -> differences, intervals and tests. Everything is paired by prompt.

The same prompt and the same sampling seed at both alphas: sharing prompts halves the variance of a difference, so the
difference of two means with independent errors would be far too wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from expo_search.contracts import Rated

Kind = Literal["reward", "win-rate", "length-controlled"]
_LEVEL = 0.05
_ROUNDING = 1e-9  # of a mean: a spread no larger is of the last digits


@dataclass(frozen=True)
class Estimate:
    """A mean over n prompts, its standard error, and its 95 % interval (Student's t, n - 1 degrees of freedom)."""

    mean: float
    se: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval; -inf with one prompt."""
        return self.mean - self._half_width

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval; inf with one prompt."""
        return self.mean + self._half_width

    @property
    def _half_width(self) -> float:
        from scipy.stats import t

        return float(t.ppf(1 - _LEVEL / 2, self.n - 1)) * self.se if self.n > 1 else math.inf


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


def prompt_gains(answers: Mapping[int, Rated], control: Mapping[int, Rated], kind: Kind) -> dict[int, float]:
    """Gain of an alpha over the control on each prompt; their mean is the gain of the trial, 0 where there is none.

    - reward: the difference of the two rewards.
    - win-rate: 1/2 for the better answer, -1/2 for the worse, 0 for a tie: the mean is the win rate less 1/2.
    - length-controlled: its part in the intercept of the least-squares line of reward differences over length
      differences: the mean is the gain at equal lengths (after AlpacaEval's length-controlled win rate, Dubois et
      al. 2024, on rewards), and the spread has the slope's error in it, which is most of it where answers grow.
    """
    common = sorted(answers.keys() & control.keys())
    differences = {k: answers[k].reward - control[k].reward for k in common}
    if kind == "win-rate":
        return {k: float(np.sign(d)) / 2 for k, d in differences.items()}
    if kind == "length-controlled":
        longer = np.array([answers[k].length - control[k].length for k in common], float)
        parts = _parts_of_intercept(longer, np.array(list(differences.values())))
        return dict(zip(common, parts.tolist(), strict=True))
    return differences


def gain(answers: Mapping[int, Rated], control: Mapping[int, Rated], kind: Kind) -> Estimate:
    """Mean and standard error of `prompt_gains`. Raises as `mean_gain`."""
    return mean_gain(prompt_gains(answers, control, kind))


def mean_gain(gains: Mapping[int, float]) -> Estimate:
    """Mean and standard error of what `prompt_gains` gives.

    Where all of n prompts gained the same, as where each was won, the next one may not: the error is then 2 |mean| / n,
    by which fewer than six of them show nothing, as in a sign test.

    Raises:
        ValueError: there are none.
    """
    result = estimate(list(gains.values()))
    if result.mean and result.se <= _ROUNDING * abs(result.mean):
        return Estimate(result.mean, 2 * abs(result.mean) / result.n, result.n)
    return result


def win_rate(answers: Mapping[int, Rated], control: Mapping[int, Rated]) -> Estimate:
    """Share (0..1) of prompts whose answer has the higher reward; a tie counts half."""
    over_half = gain(answers, control, "win-rate")
    return Estimate(over_half.mean + 0.5, over_half.se, over_half.n)


def mean_covariance(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Covariance of two means over prompts, of which the shorter's are a part of the longer's.

    Only the common prompts' covariance enters: cov = S_ab * n_common / (n_a n_b). 0 with fewer than 3 in common.
    """
    common = sorted(a.keys() & b.keys())
    if len(common) < 3:
        return 0.0
    s = float(np.cov([a[k] for k in common], [b[k] for k in common])[0, 1])
    return s * len(common) / (len(a) * len(b))


def hopeless(candidate: Mapping[int, float], best: Mapping[int, float], error: float) -> bool:
    """Whether a candidate's mean gain lies below the best's, by a one-sided paired t-test at level `error`.

    Below 8 common prompts the test's assumption of a normal mean is not to be trusted, and the answer is no.
    """
    from scipy.stats import t

    common = candidate.keys() & best.keys()
    if len(common) < 8:
        return False
    d = paired_difference(candidate, best)
    return d.mean < -float(t.ppf(1 - error, d.n - 1)) * d.se


def rise_beyond_chance(share: float, control: float, n: int, limit: float) -> bool:
    """Whether a share of n answers exceeds the control's by more than `limit` and by two standard errors more."""
    se = math.sqrt((share * (1 - share) + control * (1 - control)) / n)
    return share - control > limit + 2 * se


def _parts_of_intercept(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values, shape (n,), whose mean is the intercept of the least-squares line of y over x.

    Their standard error is that intercept's (by the jackknife: HC3 of MacKinnon and White 1985). Where x does not vary,
    or with fewer than three points, they are y itself.
    """
    n = len(x)
    centred = x - x.mean() if n > 2 else np.zeros(n)
    spread = float(centred @ centred)
    if not spread:
        return y
    slope = float(centred @ y) / spread
    intercept = y.mean() - slope * x.mean()
    free = 1 - 1 / n - centred**2 / spread  # 1 - leverage; 0: the line passes through the point whatever its y
    left = np.divide(y - intercept - slope * x, free, out=np.zeros(n), where=free > 1e-9)
    parts = (1 - n * x.mean() * centred / spread) * left
    return np.asarray(intercept + parts - parts.mean())
