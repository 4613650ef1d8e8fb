"""A trial that the engine did not survive -> the trial that repeats it: the same alpha, its stored answers kept.

Optuna cannot set a failed trial going again, so the repetition is a trial of its own there. Its answers stay with the
first one's number, by which this package knows both: nothing is generated twice, and trial 0 stays the control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

FAILURE = "engine_failure"  # of a failed trial: what was said
REPEATS = "repeats"  # of a repetition: the number of the first one


def stands_for(trial: FrozenTrial | Trial) -> int:
    """The number under which a trial's answers are stored."""
    return int(trial.user_attrs.get(REPEATS, trial.number))


def to_repeat(study: Study) -> FrozenTrial | None:
    """The failed trial that nothing has repeated yet, if there is one."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    done = {stands_for(t) for t in trials if t.state in (TrialState.RUNNING, TrialState.COMPLETE)}
    failed = [t for t in trials if t.state == TrialState.FAIL and FAILURE in t.user_attrs]
    return next((t for t in failed if stands_for(t) not in done), None)


def n_first(study: Study) -> int:
    """How many trials there are, repetitions not counted: a sampler's seed must not depend on the engine's faults."""
    return len({stands_for(t) for t in study.get_trials(deepcopy=False)})


def repeat(study: Study, failed: FrozenTrial) -> Trial:
    """A running trial with the parameters of a failed one."""
    from optuna.trial import Trial, TrialState, create_trial

    again = create_trial(
        state=TrialState.RUNNING,
        params=failed.params,
        distributions=failed.distributions,
        user_attrs={REPEATS: stands_for(failed)},
    )
    # `add_trial` would do, but does not tell the trial's id
    return Trial(study, study._storage.create_new_trial(study._study_id, template_trial=again))
