"""Finished trials -> the one alpha to recommend beside 0, what is sure of its gain, and which others are better than 0.

All of it from one family of intervals, so that no two of them can contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expo_search.evaluation.result import Evaluation
from expo_search.search.proposal import candidates, winner
from expo_search.stats.gain_curve import noise_covariance
from expo_search.stats.selection import critical, picked_interval, rivals


@dataclass(frozen=True)
class Recommendation:
    """What the trials say.

    Attributes:
        best: the trial to recommend if its interval lies above 0, and else the best one to look at.
        interval: 95 %, of its gain, corrected for its having been picked.
        better: the trials whose gains are shown to be above 0, all at once; `best` is one of them unless there is none.
        favourite: the one that looks best (`proposal.winner`). It is `best` unless it is not in `better`.
        n_able: trials among which the pick was (`proposal.candidates`).
        z: standard errors from an estimate to the lower end of its corrected interval, of normal errors.
    """

    best: Evaluation
    interval: tuple[float, float]
    better: tuple[Evaluation, ...]
    favourite: Evaluation
    n_able: int
    z: float


def recommend(evaluations: Sequence[Evaluation]) -> Recommendation | None:
    """The recommendation; None where no alpha but 0 was tried, or none may win."""
    favourite = winner(evaluations)
    if favourite is None:
        return None
    able = candidates(evaluations)
    covariance = noise_covariance(able)
    near = rivals(able.index(favourite), [e.gain for e in able], covariance)
    z = critical(covariance[np.ix_(near, near)])
    lower = [picked_interval(able[i].gain, z)[0] for i in near]
    better = [able[i] for i, low in zip(near, lower, strict=True) if low > 0]
    best = favourite
    if better and favourite not in better:
        best = able[near[int(np.argmax(lower))]]
    return Recommendation(
        best,
        picked_interval(best.gain, z),
        tuple(sorted(better, key=lambda e: e.alpha)),
        favourite,
        len(able),
        z,
    )
