"""What a search with a budget does once it is settled: it looks where the doubling's steps were too wide.

A peak may be narrower than a doubling, and a fit through its neighbours takes one good trial among them for luck. So a
thorough search fills the gaps between the alphas on a part of the prompts, and tries what stands out there on all of
them. Functions of numbers alone, as in `proposal.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from expo_search.search.proposal import bracketing, candidates, has_new, propose, settled
from expo_search.stats.gain_curve import Finished, collapsed

_NARROW = 1.25  # ratio of neighbouring alphas between which nothing more is looked for
_BESIDE = 1.01  # so near to an alpha that the truth is the same there
_SHOWN_Z = 2.0  # standard errors above 0 from which a trial on a part of the prompts stands out


def exploring(
    trials: Sequence[Finished], low: float, high: float, start: float | None, tolerance: float | None
) -> float | None:
    """The next alpha for which a part of the prompts is enough; None where all of them are wanted.

    It is a step of the bracketing, or, in a thorough search, the middle of the widest gap once it is settled.

    Args:
        tolerance: at which a search is settled; None: it is not thorough.
    """
    step = bracketing(trials, low, high, start)
    if step is not None or tolerance is None or not trials:
        return step
    if _outstanding(trials, low, high) is not None or not settled(trials, low, high, start, tolerance):
        return None
    return _widest_gap(trials, low, high)


def propose_thoroughly(
    trials: Sequence[Finished], low: float, high: float, start: float | None, tolerance: float
) -> float:
    """As `proposal.propose`, and beyond the point at which a search is settled."""
    step = exploring(trials, low, high, start, tolerance)
    if step is None and bracketing(trials, low, high, start) is None:
        best = _outstanding(trials, low, high)
        step = None if best is None else min(high, best * _BESIDE)
    return propose(trials, low, high, start) if step is None or not trials else step


def is_exhausted(trials: Sequence[Finished], low: float, high: float, start: float | None, tolerance: float) -> bool:
    """Whether a thorough search expects nothing more of going on, or could but evaluate an alpha once more."""
    if _outstanding(trials, low, high) is not None or bracketing(trials, low, high, start) is not None:
        return False
    if not settled(trials, low, high, start, tolerance):
        return not has_new(trials, low, high)
    return _widest_gap(trials, low, high) is None


def _widest_gap(trials: Sequence[Finished], low: float, high: float) -> float | None:
    """The middle of the widest gap, as a ratio, between the alphas above 0 up to the last that did not collapse.

    Of gaps whose middle lies in low .. high.
    """
    top = max((t.alpha for t in trials if not collapsed(t, trials)), default=0.0)
    alphas = sorted({t.alpha for t in trials if 0 < t.alpha <= top})
    gaps = [(b / a, math.sqrt(a * b)) for a, b in pairwise(alphas) if b > _NARROW * a]
    return max((gap for gap in gaps if low <= gap[1] <= high), default=(0.0, None))[1]


def _outstanding(trials: Sequence[Finished], low: float, high: float) -> float | None:
    """The alpha above 0, in low .. high, that a part of the prompts shows to be better than 0, and than whole trials.

    One that was tried on all of them is no more, also where that was stopped: the same answers would stop it again.
    """
    whole = [t for t in trials if t.outcome != "enough" and t.alpha > 0]
    best = max((t.gain.mean for t in candidates(trials) if t.outcome == "complete"), default=0.0)
    outstanding = [
        t
        for t in trials
        if t.outcome == "enough"
        and t.alpha > 0
        and low <= t.alpha <= high
        and not t.broken
        and not collapsed(t, trials)
        if t.gain.mean > _SHOWN_Z * t.gain.se and t.gain.mean - t.gain.se > best
        if all(abs(math.log(w.alpha / t.alpha)) > math.log(_NARROW) / 2 for w in whole)
    ]
    return max(outstanding, key=lambda t: t.gain.mean - t.gain.se).alpha if outstanding else None
