"""ask -> evaluate -> tell, until a study has N finished trials. Create and resume are the same call.

Trial 0 is always alpha = 0: the control with which every other trial is paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from expo_search.errors import MaterializeError
from expo_search.objective import Evaluation, Objective
from expo_search.sampler import make_sampler, start_points
from expo_search.store import Store
from expo_search.study import SearchSpec

if TYPE_CHECKING:
    from optuna import Study, Trial

ALPHA = "alpha"


def search(
    store: Store,
    objective: Objective,
    spec: SearchSpec,
    n_trials: int,
    *,
    published_alpha: float | None = None,
    on_trial: Callable[[Evaluation], None] | None = None,
) -> list[Evaluation]:
    """Run a study until it has n_trials finished trials; all of them, in order.

    A trial that a killed process left running is finished first, from its stored answers.
    """
    from optuna.trial import TrialState

    study = store.study
    for alpha in start_points(spec, published_alpha, n_trials):
        study.enqueue_trial({ALPHA: alpha}, skip_if_exists=True)
    with store.owned():
        while len(evaluations(study)) < n_trials:
            trial = _next_trial(study, spec)
            try:
                evaluation = objective.evaluate(trial.number, _alpha(trial, spec))
            except MaterializeError:
                study.tell(trial, state=TrialState.FAIL)  # not to be gone on with: the same alpha fails again
                raise
            for key, value in evaluation.attributes().items():
                trial.set_user_attr(key, value)
            study.tell(trial, evaluation.reward.mean)
            if on_trial is not None:
                on_trial(evaluation)
    return evaluations(study)


def _next_trial(study: Study, spec: SearchSpec) -> Trial:
    """The trial that a killed process left running, if there is one, else a new one."""
    from optuna.trial import Trial, TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        study.sampler = make_sampler(spec, running[0].number)
        # Optuna has no public way to take up a running trial; its number is told, but attributes need the id.
        return Trial(study, running[0]._trial_id)
    study.sampler = make_sampler(spec, len(study.get_trials(deepcopy=False)))
    return study.ask()


def _alpha(trial: Trial, spec: SearchSpec) -> float:
    """The trial's alpha, drawn now unless it was drawn before."""
    with warnings.catch_warnings():
        # alpha = 0 is evaluated whatever the range is, and Optuna warns where it lies outside
        warnings.filterwarnings("ignore", message="Fixed parameter")
        return trial.suggest_float(ALPHA, spec.alpha_min, spec.alpha_max)


def evaluations(study: Study) -> list[Evaluation]:
    """The finished trials of a study, in order."""
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [Evaluation.from_attributes(t.number, t.params[ALPHA], t.user_attrs) for t in finished]
