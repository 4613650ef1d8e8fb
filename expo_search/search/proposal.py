"""Finished trials -> the next alpha to evaluate, whether more trials would help, and which alpha wins.

Functions of numbers alone: nothing here knows Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from expo_search.stats.gain_curve import Finished, Fit, collapsed, fit
from expo_search.stats.paired import Estimate

T = TypeVar("T", bound=Finished)
_BAD_Z = 2.0  # standard errors below the best from which an alpha bounds the bracket
_SURE_Z = 5.0  # the same, from one trial alone
_CLIFF_RATIO = 1.6  # a cliff is closed in on until the last good alpha and the first fallen one are this near
_LEAST_WHOLE = 2  # whole trials before a search with a gain may end early
_LEAST_ALPHA = 0.01


@dataclass(frozen=True)
class Known:
    """A trial that other code than ours told, as the fit sees it: its value, with no error known."""

    trial: int
    alpha: float
    gain: Estimate
    outcome: str = "complete"
    broken: tuple[str, ...] = ()
    covariances: Mapping[str, float] = field(default_factory=dict)


def believing(trials: Sequence[Finished], waiting: Sequence[float]) -> list[Finished]:
    """The trials, and those that still run as if each had gained what its nearest neighbour did."""
    believed = list(trials)
    for i, alpha in enumerate(sorted(waiting, key=abs), 1):
        near = min(believed, key=lambda t: abs(t.alpha - alpha), default=None)
        if near is None or alpha == 0:
            estimate = Estimate(0.0, 0.0, 1 if near is None else near.gain.n)
        else:
            estimate = Estimate(near.gain.mean, math.sqrt(_trial_noise(believed)), near.gain.n)
        believed.append(Known(-i, alpha, estimate))
    return believed


def propose(trials: Sequence[Finished], low: float, high: float, start: float | None = None) -> float:
    """The next alpha, in low .. high, to evaluate after these trials."""
    if not any(t.alpha == 0 for t in trials) and (not trials or low <= 0 <= high):
        return min(max(0.0, low), high)
    step = bracketing(trials, low, high, start)
    return refine(trials, low, high) if step is None else step


def bracketing(trials: Sequence[Finished], low: float, high: float, start: float | None = None) -> float | None:
    """The next alpha of the doubling, in low .. high; None once the best one lies between two alphas that are worse.

    Upwards it goes on until the gain is gone, not only lower than the best: there may be a second, higher bump, and
    one more step costs little, since a trial that is worse stops early.
    """
    step = _bracketing_step(trials, low, high, start)
    # the range of a study may have been narrowed, and a step from trials beyond it may lie there as well
    return step if step is not None and low <= step <= high else None


def _bracketing_step(trials: Sequence[Finished], low: float, high: float, start: float | None) -> float | None:
    above = sorted((t for t in trials if t.alpha > 0), key=lambda t: t.alpha)
    if not above:
        return min(high, max(low, start if start else high / 4)) if high > 0 else _step_back(trials, high)
    best, gains = _front_runner(trials), _gains_above_0(trials)
    top = above[-1]
    if not _is_past(above, trials) and top.alpha < high * (1 - 1e-9):
        return min(high, 2 * top.alpha)
    standing = [t for t in above if not collapsed(t, trials)]
    fallen = [t.alpha for t in above if collapsed(t, trials) and (not standing or t.alpha > standing[-1].alpha)]
    may_rise = bool(standing) and not _is_worse(standing[-1], best, trials)  # right up to the cliff
    if may_rise and fallen and fallen[0] > _CLIFF_RATIO * standing[-1].alpha:
        return math.sqrt(standing[-1].alpha * fallen[0])
    worse = [t for t in above if _is_worse(t, None, trials)]
    first = start if start else high / 4
    too_far = len(worse) == len(above) or (not gains and above[0].alpha >= first and above[0].gain.mean < 0)
    if too_far:  # perhaps even the smallest step is one too far
        nearer = _nearer(above[0].alpha, low)
        if nearer is not None:
            return nearer
    if low < 0 and worse and not gains and not any(t.alpha < 0 for t in trials):
        lost = [t.alpha for t in worse if t.outcome != "degenerate" and not t.broken]
        if lost or len(worse) == len(above):
            return max(low, -min([0.5, *lost]))
    return None


def _step_back(trials: Sequence[Finished], high: float) -> float | None:
    """In a range below 0, what is nearer to it than those that all collapsed."""
    below = [t for t in trials if t.alpha < 0]
    if not below or not all(collapsed(t, trials) for t in below):
        return None
    nearer = _nearer(min(-t.alpha for t in below), -high)
    return None if nearer is None else -nearer


def _nearer(nearest: float, near: float) -> float | None:
    """A step back from an alpha in a range that begins at `near`, both > 0 as one side sees them; None: too small."""
    if nearest / 4 >= max(near, _LEAST_ALPHA):
        return nearest / 4
    return math.sqrt(near * nearest) if near > 0 and nearest > _CLIFF_RATIO * near else None


def _is_past(above: Sequence[Finished], trials: Sequence[Finished]) -> bool:
    """Whether the doubling has gone past everything: off a cliff, or below alpha = 0 twice, or far below it once.

    Once by two standard errors happens by chance to one trial in forty, and would end many a search at its first step.
    """
    top = above[-1]
    if collapsed(top, trials) or top.outcome == "degenerate":
        return True
    last = [_is_worse(t, None, trials) for t in above[-2:]]
    return (len(last) == 2 and all(last)) or top.gain.mean + _SURE_Z * top.gain.se < 0


def refine(trials: Sequence[Finished], low: float, high: float) -> float:
    """The alpha at which one more trial is expected to add most to the best evaluated one."""
    curve = posterior(trials, low, high)
    known = np.array(_known_places(trials, curve))
    inside, new = _places(trials, curve, low, high)
    places = np.flatnonzero(new if new.any() else inside)
    if not places.size:  # all collapsed, up to the range's end
        return min(max(float(curve.alphas[0]), low), high)
    worth = curve.worth(places, known, _trial_noise(trials))
    # the mean breaks ties where everything that could be learnt is known
    return float(curve.alphas[places[int(np.argmax(worth + 1e-9 * curve.mean[places]))]])


def has_new(trials: Sequence[Finished], low: float, high: float) -> bool:
    """Whether `refine` has an alpha to propose that is not beside one that was evaluated."""
    return bool(_places(trials, posterior(trials, low, high), low, high)[1].any())


def _places(trials: Sequence[Finished], curve: Fit, low: float, high: float) -> tuple[Any, Any]:
    """Which of a fit's alphas may be tried, and which of these are not beside one that was: two masks."""
    inside = (curve.alphas >= low) & (curve.alphas <= high)
    return inside, inside & ~_too_near(curve, [t.alpha for t in trials])


def doubled(trials: Sequence[Finished], alpha: float, high: float) -> float | None:
    """What comes after an alpha that is evaluated now, if it is a step of the doubling, and not the last one."""
    top = max([0.0, *(t.alpha for t in trials)])
    return min(high, 2 * alpha) if top < alpha < high * (1 - 1e-9) else None


def posterior(trials: Sequence[Finished], low: float, high: float) -> Fit:
    """The fit between the ends of what may be tried.

    On each side it reaches half way from the last good alpha to a collapsed one; above 0 no further than `bracketing`
    went, below 0 only where no alpha above it gains and, unless all of those lose, where one below was tried and is not
    clearly worse.
    """
    positive = [t for t in trials if t.alpha > 0]
    open_below = not _gains_above_0(trials) and any(t.alpha < 0 and not _is_worse(t, None, trials) for t in trials)
    if low < 0 < high and not open_below and not (positive and all(t.gain.mean + t.gain.se < 0 for t in positive)):
        low = 0.0
    above, below = _before_the_cliff(trials, 1, max(low, 0.0)), _before_the_cliff(trials, -1, max(-high, 0.0))
    high = min([high, max([t.alpha for t in positive], default=high), *above])
    low = max([low, *(-a for a in below)])
    return fit(trials, low, max(high, low + 1e-9))


def _before_the_cliff(trials: Sequence[Finished], side: int, near: float) -> list[float]:
    """Half way, as a ratio, from a side's last good alpha to the collapsed one beyond it, if there is one; > 0.

    `near`: where the range begins on that side, which is as good a place as any to look from.
    """
    top = max([near, *(side * t.alpha for t in trials if not collapsed(t, trials))])
    beyond = [side * t.alpha for t in trials if side * t.alpha > top and collapsed(t, trials)]
    return [math.sqrt(max(top, min(beyond) / 16) * min(beyond))] if beyond else []


def expected_regret(trials: Sequence[Finished], low: float, high: float) -> float:
    """The expected gain of the true best alpha less that of the best one to recommend, as far as the fit knows.

    What can be recommended is alpha = 0, and a trial of all prompts where there is one.
    """
    curve = posterior(trials, low, high)
    ends = curve.alphas[0] - 1e-9, curve.alphas[-1] + 1e-9
    known = [curve.at(t.alpha) for t in candidates(trials) if ends[0] <= t.alpha <= ends[1]] + [curve.at(0.0)]
    return max(0.0, curve.expected_best() - float(curve.mean[known].max()))


def settled(trials: Sequence[Finished], low: float, high: float, start: float | None, tolerance: float) -> bool:
    """Whether going on is expected to add no more than a share `tolerance` of the gain, or than noise would hide.

    Noise: half a standard error of a whole trial, which more alphas on the same prompts do not make smaller.
    """
    whole = [t for t in trials if t.outcome == "complete" and t.alpha != 0]
    if tolerance == 0 or not any(t.alpha != 0 for t in trials) or bracketing(trials, low, high, start) is not None:
        return False
    curve_best = winner(trials)
    if curve_best is not None and curve_best.gain.mean > 0 and len(whole) < _LEAST_WHOLE:
        return False
    noise = math.sqrt(_trial_noise(trials))
    gain = 0.0 if curve_best is None else curve_best.gain.mean
    return expected_regret(trials, low, high) <= max(tolerance * gain, noise / 2)


def candidates(trials: Sequence[T]) -> list[T]:
    """The trials that may be recommended: where some saw all prompts, those alone, since a part tells too little."""
    able = [t for t in trials if t.alpha != 0 and _may_win(t, trials)]
    return [t for t in able if t.outcome == "complete"] or able


def winner(trials: Sequence[T]) -> T | None:
    """The evaluated alpha other than 0 to recommend; None where every one broke a guardrail or collapsed.

    One of those evaluated on all prompts, where there are any. By the fit, which weighs the neighbours in; beside a
    cliff, where a fit may bridge what it should not, by each trial's own data, less a standard error.
    """
    able = candidates(trials)
    if not able:
        return None
    if any(collapsed(t, trials) and t.alpha > 0 for t in trials):
        return max(able, key=lambda t: (t.gain.mean - t.gain.se, -abs(t.alpha)))
    curve = fit(trials, min(0.0, *(t.alpha for t in able)), max(0.0, *(t.alpha for t in able)))
    return max(able, key=lambda t: (float(curve.mean[curve.at(t.alpha)]), -abs(t.alpha)))


def _front_runner(trials: Sequence[Finished]) -> Finished | None:
    """The trial with the highest lower bound above alpha = 0's; None: alpha = 0."""
    able = [t for t in trials if t.alpha != 0 and _may_win(t, trials)]
    best = max(able, key=lambda t: t.gain.mean - t.gain.se, default=None)
    return best if best is not None and best.gain.mean - best.gain.se > 0 else None


def _gains_above_0(trials: Sequence[Finished]) -> bool:
    """Whether an alpha above 0 seems to gain: by the trials on all prompts where there are any, for others are luck."""
    able = [t for t in trials if t.alpha > 0 and _may_win(t, trials)]
    return any(t.gain.mean > t.gain.se for t in [t for t in able if t.outcome == "complete"] or able)


def _may_win(trial: Finished, trials: Sequence[Finished]) -> bool:
    return trial.outcome in ("complete", "enough") and not trial.broken and not collapsed(trial, trials)


def _is_worse(trial: Finished, best: Finished | None, trials: Sequence[Finished]) -> bool:
    """Whether a trial lies clearly below another (None: alpha = 0), so that it bounds the bracket."""
    if trial is best:
        return False
    if trial.broken or trial.outcome == "degenerate" or collapsed(trial, trials):
        return True
    if best is None:
        return trial.gain.mean + _BAD_Z * trial.gain.se < 0
    if trial.outcome == "hopeless":
        return True
    shared = _covariance(trial, best)
    se = math.sqrt(max(trial.gain.se**2 + best.gain.se**2 - 2 * shared, _least_variance(trials)))
    return trial.gain.mean - best.gain.mean < -_BAD_Z * se


def _covariance(a: Finished, b: Finished) -> float:
    return a.covariances.get(str(b.trial), b.covariances.get(str(a.trial), 0.0))


def _trial_noise(trials: Sequence[Finished]) -> float:
    """Variance of the error of a whole trial's gain."""
    n = max(t.gain.n for t in trials)
    errors = [t.gain.se**2 * t.gain.n / n for t in trials if t.alpha != 0 and not collapsed(t, trials)]
    # none where no two answers differ, or a judge cannot tell any two apart
    typical = float(np.median(errors)) if errors else max(t.gain.se**2 for t in trials)
    return max(typical, _least_variance(trials))


def _least_variance(trials: Sequence[Finished]) -> float:
    """So little that it is none, in the gains' unit squared, whatever that is; never 0."""
    told = [t.gain for t in trials if math.isfinite(t.gain.se) and not collapsed(t, trials)]
    return 1e-12 * (max((g.mean**2 + g.se**2 for g in told), default=0.0) or 1.0)


def _known_places(trials: Sequence[Finished], curve: Fit) -> list[int]:
    """Grid points of the evaluated alphas that may win; of alpha = 0 where none may."""
    low, high = curve.alphas[0] - 1e-9, curve.alphas[-1] + 1e-9
    return [curve.at(t.alpha) for t in trials if _may_win(t, trials) and low <= t.alpha <= high] or [curve.at(0.0)]


def _too_near(curve: Fit, alphas: Sequence[float]) -> Any:
    """Grid points that a trial has been so near to that another there would say the same."""
    low, high = curve.alphas[0] - 1e-9, curve.alphas[-1] + 1e-9  # an end is itself to 12 digits
    places = np.array([curve.warped[curve.at(a)] for a in alphas if low <= a <= high])
    gap = np.ptp(curve.warped) / 64
    return (np.abs(curve.warped[:, None] - places[None, :]) < gap).any(axis=1) if len(places) else np.zeros(0, bool)
