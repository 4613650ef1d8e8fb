"""Past trials -> the next alpha, through Optuna's interface for samplers.

`ExpoSampler`, a noise-aware sampler made for this problem, first brackets the optimum by doubling, on few prompts,
then refines it where the fit (`gain_curve.py`) expects to gain most, on all of them (`proposal.py` has the steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from expo_search.search.proposal import Known, believing, propose
from expo_search.stats.gain_curve import Finished
from expo_search.stats.paired import Estimate
from expo_search.store.attributes import stands_for

if TYPE_CHECKING:
    from optuna import Study


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


def _against_control(trials: Sequence[Finished]) -> list[Finished]:
    """Values of no known error as gains over the trial nearest to 0; as error a tenth of their spread."""
    level = min(trials, key=lambda t: abs(t.alpha)).gain.mean
    guess = 0.1 * float(np.std([t.gain.mean for t in trials])) + 1e-9
    return [Known(t.trial, t.alpha, Estimate(t.gain.mean - level, guess, t.gain.n)) for t in trials]
