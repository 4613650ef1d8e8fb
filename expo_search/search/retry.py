"""A trial that the engine did not survive -> the trial that repeats it: the same alpha, its stored answers kept.

Optuna cannot set a failed trial going again, so the repetition is a trial of its own there. Its answers stay with the
first one's number, by which this package knows both: nothing is generated twice, and trial 0 stays the control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_search.store.attributes import engine_failure, repeats, stands_for

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def to_repeat(study: Study) -> FrozenTrial | None:
    """The failed trial that nothing has repeated yet, if there is one."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    there = {stands_for(t) for t in trials if t.state != TrialState.FAIL}
    failed = [t for t in trials if t.state == TrialState.FAIL and engine_failure(t) is not None]
    return next((t for t in failed if stands_for(t) not in there), None)


def n_first(study: Study) -> int:
    """How many trials there are, repetitions not counted: a sampler's seed must not depend on the engine's faults."""
    return len({stands_for(t) for t in study.get_trials(deepcopy=False)})


def enqueue_repetition(study: Study, failed: FrozenTrial) -> None:
    """Queue a trial with the parameters of a failed one; the next `ask` takes it up where nothing else is queued."""
    study.enqueue_trial(failed.params, user_attrs=repeats(failed))
