"""Several gains, of which the best is picked -> intervals that hold in spite of the pick, and what n prompts can tell.

The best of several noisy numbers overstates itself. Its interval's lower end therefore holds for all that might have
been picked at once (max-t over the correlated estimates: Dunnett 1955, by simulation with a fixed seed). Its upper end
needs no such care: a pick is too high sooner than too low. An alpha that is clearly worse than the pick might not have
been picked, and does not count (after the two steps of Romano, Shaikh and Wolf 2014).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expo_search.stats.paired import Estimate

_LEVEL = 0.025  # of a miss at each end
_DRAWS = 20_000
_CLEARLY = 2.8  # standard errors of the difference: once in 400 by chance
_POWER_Z = 0.84  # four times in five
_WORTH = 0.3  # standard deviations of a prompt's gain: what a search ought not to miss
_NEAR = 1.1  # where a gain a tenth larger than that is told, prompts are not called too few
USUAL_Z = 2.3  # `critical` of a search on the demo pair: a handful of alphas, whose gains share alpha = 0's answers


def rivals(pick: int, gains: Sequence[Estimate], covariance: NDArray[np.float64]) -> list[int]:
    """Indices of the gains that are not clearly worse than that of `pick`, which is one of them.

    Args:
        covariance: of the gains' errors, shape (len(gains), len(gains)), in the rewards' unit squared.
    """
    variance = np.diag(covariance)
    of_difference = np.sqrt(np.clip(variance + variance[pick] - 2 * covariance[pick], 1e-300, None))
    below = np.array([gains[pick].mean - g.mean for g in gains])
    return [i for i in range(len(gains)) if i == pick or below[i] <= _CLEARLY * of_difference[i]]


def critical(covariance: NDArray[np.float64]) -> float:
    """How many standard errors the largest of several correlated errors exceeds once in forty times.

    Args:
        covariance: of the errors, shape (K, K); only its correlations matter.
    """
    sd = np.sqrt(np.clip(np.diag(covariance), 1e-300, None))
    correlation = np.clip(covariance / np.outer(sd, sd), -1, 1)
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    draws = (np.random.default_rng(0).standard_normal((_DRAWS, len(sd))) @ root.T).max(axis=1)
    # the largest of several is never less often large than one alone, which draws may say by chance
    return max(statistics.NormalDist().inv_cdf(1 - _LEVEL), float(np.quantile(draws, 1 - _LEVEL)))


def picked_interval(e: Estimate, z: float) -> tuple[float, float]:
    """The 95 % interval of a picked gain: its lower end is `z` standard errors down (`critical`), its upper its own."""
    return e.mean - student(z, e.n) * e.se, e.high


def student(z: float, n: int) -> float:
    """The quantile of Student's t, of a mean over n prompts, at the level of the normal quantile z."""
    from scipy.stats import t

    return float(t.ppf(1 - math.erfc(z / math.sqrt(2)) / 2, max(1, n - 1)))


GAIN_UNIT = " standard deviations (of a prompt's gain)"  # before a search, which knows no other


@dataclass(frozen=True)
class Power:
    """What n prompts can tell.

    Attributes:
        sd: of a prompt's gain, in the gain's unit.
        n: prompts.
        z: standard errors above 0 from which a gain is shown, of normal errors (`critical`).
    """

    sd: float
    n: int
    z: float = USUAL_Z

    @property
    def least_gain(self) -> float:
        """The gain that is told from 0 four times in five."""
        return (student(self.z, self.n) + _POWER_Z) * self.sd / math.sqrt(self.n)

    @property
    def worth_telling(self) -> float:
        """A gain that nobody would want to miss."""
        return _WORTH * self.sd

    @property
    def n_needed(self) -> int:
        """Prompts that tell that gain from 0 four times in five, to two digits."""
        return int(float(f"{((self.z + _POWER_Z) / _WORTH) ** 2:.2g}"))

    @property
    def is_too_small(self) -> bool:
        """Whether n prompts are fewer than those."""
        return self.least_gain > self.worth_telling * _NEAR

    def sentence(self, unit: str = "") -> str:
        """For people; `unit` stands behind the gain."""
        if not self.is_too_small:
            return f"A gain of {self.least_gain:.2g}{unit} would be told from 0 four times in five."
        return (
            f"Too few prompts to tell a gain below {self.least_gain:.2g}{unit}: about {self.n_needed}, not {self.n}, "
            f"tell one of {self.worth_telling:.2g} from 0 four times in five."
        )


def few_prompts(n: int) -> str | None:
    """What to say before a search on so few prompts that it may well miss its gain; None: they are not so few."""
    power = Power(1.0, n)
    return power.sentence(GAIN_UNIT) if power.is_too_small else None
