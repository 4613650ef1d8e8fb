"""past trials -> next alpha.

`ExpoSampler`, a noise-aware Optuna sampler made for this problem, first brackets the optimum by doubling, on few
prompts, then refines it where the fit (see `fit.py`) expects to gain most, on all of them. Optuna's own samplers can
be chosen instead.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from expo_search.config.spec import SearchSpec
from expo_search.search.retry import stands_for
from expo_search.stats.gain_curve import Finished, Fit, collapsed, fit
from expo_search.stats.paired import Estimate

if TYPE_CHECKING:
    from optuna import Study

T = TypeVar("T", bound=Finished)

N_START = 5
WIDEST = (-1.0, 64.0)  # alpha = -1 is the sft model; published optima reach 25
EXPLORE_SHARE, EXPLORE_LEAST = 1 / 4, 32  # prompts of a bracketing trial
_BAD_Z = 2.0  # standard errors below the best from which an alpha bounds the bracket
_SURE_Z = 5.0  # the same, from one trial alone
_CLIFF_RATIO = 1.6  # a cliff is closed in on until the last good alpha and the first fallen one are this near
_LEAST_WHOLE = 2  # whole trials before a search with a gain may end early
_LEAST_ALPHA = 0.01
_DELTA_TIMES_ALPHA = 1e-3  # of the weights' norm: the first step when nothing is published


@dataclass(frozen=True)
class Known:
    """A trial that other code than ours told, as the fit sees it: its value, with no error known."""

    trial: int
    alpha: float
    gain: Estimate
    outcome: str = "complete"
    broken: tuple[str, ...] = ()
    covariances: Mapping[str, float] = field(default_factory=dict)


class ExpoSampler(BaseSampler):
    """Samples one float parameter, alpha, from trials that carry `gain`, `gain_se`, `n_prompts` (user attributes).

    The same trials give the same proposal: nothing is random, and nothing is kept between calls. Other parameters
    are drawn at random. Works in `study.optimize` and with ask/tell; what is asked for and not told yet is not proposed
    again, so several trials may run at a time. Without these attributes a trial's value counts
    against that of the trial nearest to alpha = 0.

    Args:
        start: the first alpha to try beside 0; a quarter of the range by default.
        seed: of the random sampler for other parameters.
    """

    def __init__(self, *, start: float | None = None, parameter: str = "alpha", seed: int | None = None) -> None:
        self._start, self._parameter = start, parameter
        self._random = RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}  # there is one parameter: everything is sampled "independently"

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name != self._parameter or not isinstance(param_distribution, FloatDistribution):
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        d = param_distribution
        alpha = propose(believing(self._history(study), self._waiting(study, trial)), d.low, d.high, self._start)
        return float(min(max(alpha, d.low), d.high))

    def _waiting(self, study: Study, trial: FrozenTrial) -> list[float]:
        """The alphas of other trials that were asked for and have not been told."""
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [
            float(t.params[self._parameter]) for t in others if t.number != trial.number and self._parameter in t.params
        ]

    def _history(self, study: Study) -> list[Finished]:
        sign = -1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1.0
        found: list[Finished] = []
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if self._parameter not in t.params or t.value is None:
                continue
            a = t.user_attrs
            estimate = Estimate(a["gain"], a["gain_se"], a["n_prompts"]) if "gain_se" in a else None
            found.append(
                Known(
                    stands_for(t),
                    float(t.params[self._parameter]),
                    estimate or Estimate(sign * t.value, 0.0, 1 << 20),
                    a.get("outcome", "complete"),
                    tuple(a.get("broken", ())),
                    a.get("covariances", {}),
                )
            )
        if found and all(t.gain.se == 0 for t in found):
            found = _against_control(found)
        return found


def believing(trials: Sequence[Finished], waiting: Sequence[float]) -> list[Finished]:
    """The trials, and those that still run as if each had gained what its nearest neighbour did."""
    found = list(trials)
    for i, alpha in enumerate(sorted(waiting, key=abs), 1):
        near = min(found, key=lambda t: abs(t.alpha - alpha), default=None)
        if near is None or alpha == 0:
            estimate = Estimate(0.0, 0.0, 1 if near is None else near.gain.n)
        else:
            estimate = Estimate(near.gain.mean, math.sqrt(_trial_noise(found)), near.gain.n)
        found.append(Known(-i, alpha, estimate))
    return found


def propose(trials: Sequence[Finished], low: float, high: float, start: float | None = None) -> float:
    """The next alpha, in low .. high, to evaluate after these trials."""
    if not any(t.alpha == 0 for t in trials) and (not trials or low <= 0 <= high):
        return min(max(0.0, low), high)
    step = bracketing(trials, low, high, start)
    return refine(trials, low, high) if step is None else step


def bracketing(trials: Sequence[Finished], low: float, high: float, start: float | None = None) -> float | None:
    """The next alpha of the doubling; None once the best one lies between two alphas that are worse.

    Upwards it goes on until the gain is gone, not only lower than the best: there may be a second, higher bump, and
    one more step costs little, since a trial that is worse stops early.
    """
    above = sorted((t for t in trials if t.alpha > 0), key=lambda t: t.alpha)
    if not above:
        return min(high, max(low, start if start else high / 4)) if high > 0 else None
    best = _front_runner(trials)
    top = above[-1]
    if not _is_past(above, trials) and top.alpha < high * (1 - 1e-9):
        return min(high, 2 * top.alpha)
    standing = [t for t in above if not collapsed(t, trials)]
    fallen = [t.alpha for t in above if collapsed(t, trials) and (not standing or t.alpha > standing[-1].alpha)]
    may_rise = bool(standing) and not _is_worse(standing[-1], best, trials)  # right up to the cliff
    if may_rise and fallen and fallen[0] > _CLIFF_RATIO * standing[-1].alpha:
        return math.sqrt(standing[-1].alpha * fallen[0])
    if all(_is_worse(t, None, trials) for t in above):  # even the smallest step is one too far
        if above[0].alpha / 4 >= max(low, _LEAST_ALPHA):
            return above[0].alpha / 4
        if low < 0 and not any(t.alpha < 0 for t in trials):
            return max(low, -0.5)
    return None


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
    inside = (curve.alphas >= low) & (curve.alphas <= high)
    new = inside & ~_too_near(curve, [t.alpha for t in trials])
    candidates = np.flatnonzero(new if new.any() else inside)
    worth = curve.worth(candidates, known, _trial_noise(trials))
    # the mean breaks ties where everything that could be learnt is known
    return float(curve.alphas[candidates[int(np.argmax(worth + 1e-9 * curve.mean[candidates]))]])


def posterior(trials: Sequence[Finished], low: float, high: float) -> Fit:
    """The fit between the ends of what may be tried: on each side up to half way from the last good alpha to a
    collapsed one; above 0 no further than `bracketing` went, below 0 only where no alpha above it gains."""
    positive = [t for t in trials if t.alpha > 0]
    if low < 0 < high and not (positive and all(t.gain.mean + t.gain.se < 0 for t in positive)):
        low = 0.0
    high = min([high, max([t.alpha for t in positive], default=high), *_before_the_cliff(trials, 1)])
    low = max([low, *(-a for a in _before_the_cliff(trials, -1))])
    return fit(trials, low, max(high, low + 1e-9))


def _before_the_cliff(trials: Sequence[Finished], side: int) -> list[float]:
    """Half way, as a ratio, from a side's last good alpha to the collapsed one beyond it, if there is one; > 0."""
    top = max([0.0, *(side * t.alpha for t in trials if not collapsed(t, trials))])
    beyond = [side * t.alpha for t in trials if side * t.alpha > top and collapsed(t, trials)]
    return [math.sqrt(max(top, min(beyond) / 16) * min(beyond))] if beyond else []


def expected_regret(trials: Sequence[Finished], low: float, high: float) -> float:
    """The expected gain of the true best alpha less that of the best evaluated one, as far as the fit knows."""
    curve = posterior(trials, low, high)
    return max(0.0, curve.expected_best() - float(curve.mean[_known_places(trials, curve)].max()))


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


def winner(trials: Sequence[T]) -> T | None:
    """The evaluated alpha other than 0 to recommend; None where every one broke a guardrail or collapsed.

    By the fit, which weighs the neighbours in; beside a cliff, where a fit may bridge what it should not, by each
    trial's own data, less a standard error.
    """
    able = [t for t in trials if t.alpha != 0 and _may_win(t, trials)]
    if not able:
        return None
    if any(collapsed(t, trials) and t.alpha > 0 for t in trials):
        whole = [t for t in able if t.outcome == "complete"] or able
        return max(whole, key=lambda t: (t.gain.mean - t.gain.se, -abs(t.alpha)))
    curve = fit(trials, min(0.0, *(t.alpha for t in able)), max(0.0, *(t.alpha for t in able)))
    return max(able, key=lambda t: (float(curve.mean[curve.at(t.alpha)]), -abs(t.alpha)))


def _front_runner(trials: Sequence[Finished]) -> Finished | None:
    """The trial with the highest lower bound above alpha = 0's; None: alpha = 0."""
    able = [t for t in trials if t.alpha != 0 and _may_win(t, trials)]
    best = max(able, key=lambda t: t.gain.mean - t.gain.se, default=None)
    return best if best is not None and best.gain.mean - best.gain.se > 0 else None


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
    se = math.sqrt(max(trial.gain.se**2 + best.gain.se**2 - 2 * shared, 1e-12))
    return trial.gain.mean - best.gain.mean < -_BAD_Z * se


def _covariance(a: Finished, b: Finished) -> float:
    return a.covariances.get(str(b.trial), b.covariances.get(str(a.trial), 0.0))


def _trial_noise(trials: Sequence[Finished]) -> float:
    """Variance of the error of a whole trial's gain."""
    n = max(t.gain.n for t in trials)
    errors = [t.gain.se**2 * t.gain.n / n for t in trials if t.alpha != 0 and not collapsed(t, trials)]
    return float(np.median(errors)) if errors else max((t.gain.se**2 for t in trials), default=1e-6) + 1e-12


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


def _against_control(trials: Sequence[Finished]) -> list[Finished]:
    """Values of no known error as gains over the trial nearest to 0; as error a tenth of their spread."""
    level = min(trials, key=lambda t: abs(t.alpha)).gain.mean
    guess = 0.1 * float(np.std([t.gain.mean for t in trials])) + 1e-9
    return [Known(t.trial, t.alpha, Estimate(t.gain.mean - level, guess, t.gain.n)) for t in trials]


def bounds(search: SearchSpec, published_alpha: float | None) -> tuple[float, float]:
    """The range as numbers. "auto" is the widest there is for `expo`, which finds its own, else 0 .. twice the
    published alpha, at least 1."""
    wide = search.sampler == "expo"
    given_low = None if isinstance(search.alpha_min, str) else search.alpha_min
    given_high = None if isinstance(search.alpha_max, str) else search.alpha_max
    if given_high is None:
        low = given_low if given_low is not None else WIDEST[0] if wide else 0.0
        return low, max(WIDEST[1] if wide else 1.0, 2 * (published_alpha or 0.0), 2 * low)
    if given_low is None:
        given_low = min(WIDEST[0] if wide else 0.0, given_high - 1.0)
    return given_low, given_high


def first_step(search: SearchSpec, published_alpha: float | None, relative_delta: float | None) -> float:
    """The first alpha above 0: the published one; in a range that was given a quarter of it; else one that moves the
    weights by a thousandth of their norm, `relative_delta` being ||aligned - sft|| / ||aligned||."""
    low, high = bounds(search, published_alpha)
    if published_alpha is not None and max(low, 0) < published_alpha <= high:
        return published_alpha
    if search.alpha_max != "auto":
        return max(low, 0.0) + (high - max(low, 0.0)) / 4
    if not relative_delta:
        return 0.25
    # two digits: the norm's last bits differ between machines, and a resumed study must propose the same
    return float(f"{min(max(_DELTA_TIMES_ALPHA / relative_delta, 0.05), 4.0):.2g}")


def n_explore(n_prompts: int) -> int:
    """Prompts from which a bracketing trial has told enough."""
    return max(EXPLORE_LEAST, round(n_prompts * EXPLORE_SHARE))


def make_sampler(search: SearchSpec, trial: int, start: float | None = None) -> BaseSampler:
    """The sampler for one trial. Its seed depends on the trial's number, not on how often the search was resumed.

    Optuna's Gaussian process is not told that the objective is deterministic: fixed seeds make a run repeatable, not
    the curve smooth.
    """
    seed = (search.seed + 7919 * trial) % 2**31
    if search.sampler == "expo":
        return ExpoSampler(start=start, seed=seed)
    if search.sampler in ("random", "grid"):  # a grid is enqueued whole (`start_points`); beyond it, at random
        return RandomSampler(seed=seed)
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_START, deterministic_objective=False)


def start_points(search: SearchSpec, published_alpha: float | None, n_trials: int) -> list[float]:
    """The alphas a study begins with: 0, the published one, then points that halve down from the upper end.

    Published optima span 0.1 to 25, so the points are spread on a logarithmic scale. A grid is all of its points.
    `expo` finds its own after 0.
    """
    low, high = bounds(search, published_alpha)
    if search.sampler == "expo":
        return [0.0]
    if search.sampler == "grid":
        taken = 1 + (published_alpha is not None and low <= published_alpha <= high) - (low == 0)
        n = max(1, n_trials - taken)
        wanted = [low + (high - low) * i / max(1, n - 1) for i in range(n)]
    elif search.sampler == "random":
        wanted = []
    else:
        wanted = [high / 4, high / 2, high / 8, high]
    if published_alpha is not None:
        wanted = [published_alpha, *wanted]
    points = [0.0]
    for alpha in wanted:
        if low <= alpha <= high and all(abs(alpha - p) > 1e-9 for p in points):
            points.append(alpha)
    return points if search.sampler == "grid" else points[:N_START]
