"""A trial that the engine does not survive -> the trial that repeats it: the same alpha, its stored answers kept.

Optuna cannot set a failed trial going again, so the repetition is a trial of its own there. Its answers stay with the
first one's number, by which this package knows both: nothing is generated twice, and trial 0 stays the control.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from expo_search.errors import EngineDied, MaterializeError
from expo_search.evaluation.objective import Objective, Stopped
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.alpha_range import ALPHA
from expo_search.store.attributes import engine_failure, keep_engine_failure, repeats, stands_for
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_ATTEMPTS = 4  # of one trial, in two runs: what ends a new engine in another process, too, is its alpha


class Attempts:
    """Evaluates the trials of a study; one that the engine does not survive fails, with the reason, and is repeated."""

    def __init__(
        self,
        store: Store,
        objective: Objective,
        on_failure: Callable[[EngineDied], None] | None,
        stop: Callable[[], bool],
    ) -> None:
        """`on_failure` gets the reason, before the engine is started anew."""
        self._store, self._objective, self._on_failure, self._stop = store, objective, on_failure, stop
        self._failed_once: int | None = None

    def evaluated(self, trial: Trial, evaluate: Callable[[], Evaluation]) -> Evaluation | None:
        """What `evaluate` finds; None: the engine was started anew, and the trial is to be repeated.

        Raises:
            Stopped: `stop` said so.
            EngineDied: the second time in one trial; says so where the next run leaves it out.
            MaterializeError: the trial's weights cannot be made; it is not to be gone on with, but for alpha = 0.
        """
        from optuna.trial import TrialState

        try:
            return evaluate()
        except EngineDied as fault:
            if self._stop():  # whatever ends this process ends the engine's as well
                raise Stopped from None
            keep_engine_failure(trial, str(fault))
            self._store.tell(trial, state=TrialState.FAIL)
            if self._failed_once == stands_for(trial):
                if not _goes_on(trial, _n_failed(self._store.study)):
                    place = ", ".join(f"{name} = {value:g}" for name, value in trial.params.items())  # or a shape's
                    fault = EngineDied(
                        where=fault.where,
                        found=f"{fault.found}, at {place} for the {_ATTEMPTS}th time",
                        expected=fault.expected,
                        do=f"{fault.do}; the same command goes on without this trial",
                    )
                raise fault
            self._failed_once = stands_for(trial)
            if self._on_failure is not None:
                self._on_failure(fault)
            self._objective.restart()
            return None
        except MaterializeError:
            if stands_for(trial) != CONTROL:  # which every trial is compared with: the next run goes on with it
                self._store.tell(trial, state=TrialState.FAIL)
            raise


def with_one_restart(
    evaluate: Callable[[], Evaluation],
    objective: Objective,
    on_failure: Callable[[EngineDied], None] | None,
    stop: Callable[[], bool],
) -> Evaluation:
    """What `evaluate` finds, the second time where the engine died; for what is no trial of Optuna's that could fail.

    Raises:
        Stopped: `stop` said so.
        EngineDied: the second time.
    """
    try:
        return evaluate()
    except EngineDied as fault:
        if stop():  # it went down with what stopped us: no failure
            raise Stopped from None
        if on_failure is not None:
            on_failure(fault)
        objective.restart()
        return evaluate()


def to_repeat(study: Study, low: float = -math.inf, high: float = math.inf) -> FrozenTrial | None:
    """The failed trial that nothing has repeated yet, if there is one.

    Not one whose alpha is beyond low .. high, the range as it is now, or ended as many engines as two runs have; but
    alpha = 0, which every trial is compared with, always.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    there = {stands_for(t) for t in trials if t.state != TrialState.FAIL}
    n_failed = _n_failed(study)
    for trial in trials:
        is_in = stands_for(trial) == CONTROL or low <= trial.params.get(ALPHA, low) <= high
        if engine_failure(trial) is not None and stands_for(trial) not in there and is_in and _goes_on(trial, n_failed):
            return trial
    return None


def _n_failed(study: Study) -> Counter[int]:
    """How often the engine failed at each trial, by the number that its repetitions stand for."""
    from optuna.trial import TrialState

    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return Counter(stands_for(t) for t in failed if engine_failure(t) is not None)


def _goes_on(trial: Trial | FrozenTrial, n_failed: Counter[int]) -> bool:
    return stands_for(trial) == CONTROL or n_failed[stands_for(trial)] < _ATTEMPTS


def n_first(study: Study) -> int:
    """How many trials there are, repetitions not counted: a sampler's seed must not depend on the engine's faults."""
    return len({stands_for(t) for t in study.get_trials(deepcopy=False)})


def enqueue_repetition(study: Study, failed: FrozenTrial) -> None:
    """Queue a trial with the parameters of a failed one; the next `ask` takes it up where nothing else is queued."""
    study.enqueue_trial(failed.params, user_attrs=repeats(failed))
