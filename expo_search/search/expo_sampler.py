"""Past trials -> the next alpha, through Optuna's interface for samplers.

`ExpoSampler`, a noise-aware sampler made for this problem, first brackets the optimum by doubling, on few prompts,
then refines it where the fit (`gain_curve.py`) expects to gain most, on all of them (`proposal.py` has the steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from expo_search.search.proposal import Known, believing, propose
from expo_search.search.thorough import propose_thoroughly
from expo_search.stats.gain_curve import Finished
from expo_search.stats.paired import Estimate
from expo_search.store.attributes import StudyAttributes, stands_for

if TYPE_CHECKING:
    from optuna import Study, Trial


_NO_ERROR_KNOWN = 1 << 20  # prompts of a value that came without an error: their number tells nothing


class ExpoSampler(BaseSampler):
    """Proposes one float parameter, alpha, from what finished trials measured. Works in any study of one objective.

    It reads these user attributes of a trial, which `record_gain` writes (those of other forms it leaves alone):

    - `gain`, `gain_se`, `n_prompts`: gain over alpha = 0, its standard error, and over how many prompts;
    - `outcome`: "complete", "enough", "hopeless" or "degenerate"; `broken`: names of guardrails that it breaks;
    - `covariances`: of its gain with other trials', by their number; `repeats`: the number of the trial it repeats.

    Where no trial has the first three their values count, against that of the trial nearest to alpha = 0, with a tenth
    of the values' spread as their error; where some have them the others are left out, but for alpha = 0. The same
    trials give the same proposal: nothing is random, and nothing is kept between calls. Other parameters are drawn at
    random. Works in `study.optimize` and with ask/tell; what is asked for and not told yet is not proposed again, so
    several trials may run at a time.

    An alpha other than 0 that was pruned, that failed twice, or whose value is not finite counts as one at which
    answers degenerate; one that failed once is proposed again, since what it failed for may have passed.

    Args:
        start: the first alpha to try beside 0; a quarter of the range by default.
        parameter: the name of alpha.
        seed: of the random sampler for other parameters.
        thorough: the tolerance at which a search is settled, after which it looks between the doubling's steps as well
            (`thorough.py`); None: it does not.
    """

    def __init__(
        self,
        *,
        start: float | None = None,
        parameter: str = "alpha",
        seed: int | None = None,
        thorough: float | None = None,
    ) -> None:
        self._start, self._parameter, self._thorough = start, parameter, thorough
        self._random = RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        """Optuna's: seed the random sampler of other parameters anew; alpha is not drawn at random."""
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """Optuna's: empty, since no parameter is drawn together with others."""
        return {}  # there is one parameter: everything is sampled "independently"

    def sample_relative(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Optuna's: empty, as the relative search space is."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Optuna's: the next alpha, within its distribution and on its steps; another parameter's value at random.

        Reads the study's finished and running trials, writes nothing.
        """
        if param_name != self._parameter or not isinstance(param_distribution, FloatDistribution):
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        d = param_distribution
        known = self._history(study)
        trials = believing([*known, *without_gain(study, known, self._parameter)], self._waiting(study, trial))
        tried = [t.alpha for t in trials]
        if d.step is not None and tried and d.low <= 0 <= d.high and _on_steps(0.0, d, ()) != 0:
            # the control would be asked for again and again, and no step is there
            trials.append(Known(-1 - len(trials), 0.0, Estimate(0.0, 0.0, trials[0].gain.n)))
        if self._thorough is None:
            alpha = propose(trials, d.low, d.high, self._start)
        else:
            alpha = propose_thoroughly(trials, d.low, d.high, self._start, self._thorough)
        alpha = float(min(max(alpha, d.low), d.high))
        return alpha if d.step is None else _on_steps(alpha, d, tried)

    def _waiting(self, study: Study, trial: FrozenTrial) -> list[float]:
        """The alphas of other trials that were asked for and have not been told."""
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [
            float(t.params[self._parameter]) for t in others if t.number != trial.number and self._parameter in t.params
        ]

    def _history(self, study: Study) -> list[Finished]:
        sign = -1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else 1.0
        known: list[Finished] = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            alpha = trial.params.get(self._parameter)
            if isinstance(alpha, float | int) and trial.value is not None and math.isfinite(trial.value):
                known.append(_known(trial, float(alpha), sign * trial.value))
        measured = [t for t in known if t.gain.n != _NO_ERROR_KNOWN]
        if not measured:
            return _against_control(known) if known else []
        n = max(t.gain.n for t in measured)
        return [
            *measured,
            *(Known(t.trial, 0.0, Estimate(0.0, 0.0, n)) for t in known if t.alpha == 0 and t not in measured),
        ]


def without_gain(study: Study, known: Sequence[Finished], parameter: str) -> list[Finished]:
    """The alphas other than 0 that gave no gain and are not to be tried again, as degenerate ones.

    In a study that this package searches itself one failure is enough: what is worth it is repeated before.
    """
    is_ours = StudyAttributes.of(study.user_attrs).first_step is not None
    n = max((t.gain.n for t in known), default=1)
    outcome = "degenerate" if known else "enough"  # where nothing stands yet, nothing fell off from it
    places, failed = [t.alpha for t in known], list[float]()
    without: list[Finished] = []
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for trial in study.get_trials(deepcopy=False, states=states):
        alpha = trial.params.get(parameter)
        if not isinstance(alpha, float | int) or alpha == 0 or _is_among(alpha, places):
            continue
        if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
            continue
        if trial.state == TrialState.FAIL and not is_ours and not _is_among(alpha, failed):
            failed.append(alpha)
            continue
        places.append(alpha)
        without.append(Known(trial.number, float(alpha), Estimate(0.0, 0.0, n), outcome))
    return without


def record_gain(
    trial: Trial,
    gain: Estimate,
    *,
    outcome: str = "complete",
    broken: Sequence[str] = (),
    covariances: Mapping[int, float] | None = None,
) -> None:
    """Tell `ExpoSampler` what a trial measured, as the trial's user attributes, before its value is told.

    Args:
        gain: over alpha = 0, paired, with its standard error and number of prompts; of alpha = 0 itself it is 0 ± 0.
        outcome: "complete"; "enough" where it was evaluated on a part of the prompts; "hopeless" or "degenerate" where
            it was stopped for that.
        broken: names of guardrails that it breaks; such an alpha is not recommended.
        covariances: of this gain with those of earlier trials, by their number, where they share prompts.
    """
    values = {
        "gain": gain.mean,
        "gain_se": gain.se,
        "n_prompts": gain.n,
        "outcome": outcome,
        "broken": list(broken),
        "covariances": {str(number): value for number, value in (covariances or {}).items()},
    }
    for key, value in values.items():
        trial.set_user_attr(key, value)


def _known(trial: FrozenTrial, alpha: float, value: float) -> Known:
    """A finished trial as the fit sees it; attributes of other forms than ours are somebody else's, and not read."""
    a = trial.user_attrs
    numbers: list[Any] = [a.get(key) for key in ("gain", "gain_se", "n_prompts")]
    if not all(isinstance(x, float | int) and math.isfinite(x) for x in numbers) or numbers[1] < 0 or numbers[2] < 1:
        return Known(trial.number, alpha, Estimate(value, 0.0, _NO_ERROR_KNOWN))
    outcome, broken, shared = a.get("outcome", "complete"), a.get("broken", ()), a.get("covariances", {})
    return Known(
        stands_for(trial),
        alpha,
        Estimate(float(numbers[0]), float(numbers[1]), int(numbers[2])),
        outcome if isinstance(outcome, str) else "complete",
        tuple(map(str, broken)) if isinstance(broken, list | tuple) else (),
        shared if isinstance(shared, dict) and all(isinstance(x, float | int) for x in shared.values()) else {},
    )


def _on_steps(alpha: float, d: FloatDistribution, tried: Sequence[float]) -> float:
    """The step of a distribution that is nearest to alpha; one that was not tried, where there are any left."""
    assert d.step is not None
    place, last = (alpha - d.low) / d.step, round((d.high - d.low) / d.step)
    taken = {round((a - d.low) / d.step) for a in tried}
    near = min(max(round(place), 0), last)
    around = range(max(near - len(taken), 0), min(near + len(taken), last) + 1)
    nearest = min((i for i in around if i not in taken), key=lambda i: abs(i - place), default=near)
    value = min(d.low + nearest * d.step, d.high)  # which rounding may miss by a last bit, as it may 0
    return 0.0 if abs(value) < 1e-9 * d.step else value


def _is_among(alpha: float, alphas: Sequence[float]) -> bool:
    return any(math.isclose(alpha, a, rel_tol=1e-9) for a in alphas)


def _against_control(trials: Sequence[Finished]) -> list[Finished]:
    """Values of no known error as gains over the trial nearest to 0; as error a tenth of their spread."""
    level = min(trials, key=lambda t: abs(t.alpha)).gain.mean
    guess = 0.1 * float(np.std([t.gain.mean for t in trials])) or 1e-9
    return [Known(t.trial, t.alpha, Estimate(t.gain.mean - level, guess, t.gain.n)) for t in trials]
