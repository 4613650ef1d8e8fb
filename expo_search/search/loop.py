"""ask -> evaluate -> tell, until a study has N finished trials or is settled. Create and resume are the same call.

Trial 0 is always alpha = 0: the control with which every other trial is paired.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from expo_search.config.spec import SearchSpec
from expo_search.errors import EngineDied, StoreError
from expo_search.evaluation.objective import Objective, Stopped, looks
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.alpha_range import ALPHA, bounds, first_step, next_point, start_points
from expo_search.search.budget import Budget, more
from expo_search.search.expo_sampler import without_gain
from expo_search.search.proposal import doubled, expected_regret, settled
from expo_search.search.retry import Attempts, enqueue_repetition, n_first, to_repeat
from expo_search.search.samplers import make_sampler
from expo_search.search.thorough import exploring, is_exhausted
from expo_search.stats.gain_curve import Finished
from expo_search.store.attributes import StudyAttributes, stands_for
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from optuna import Study, Trial

_EXPLORE_SHARE, _EXPLORE_LEAST = 1 / 4, 32  # prompts of a bracketing trial


def search(
    store: Store,
    objective: Objective,
    spec: SearchSpec,
    n_trials: int,
    *,
    published_alpha: float | None = None,
    relative_delta: float | None = None,
    before_tell: Callable[[Trial, Evaluation], None] | None = None,
    on_trial: Callable[[Evaluation], None] | None = None,
    on_failure: Callable[[EngineDied], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    budget: Budget | None = None,
) -> list[Evaluation]:
    """Run a study until it has n_trials finished trials, or is settled; all of them, in order.

    With a budget it goes on when it is settled, and looks more closely (`thorough.py`), as long as the next trial and a
    confirmation can be paid.

    A trial that a killed process left running is finished first, from its stored answers. A trial that the engine does
    not survive fails, with the reason; a new engine repeats it, once.

    Args:
        on_failure: gets the reason, before the engine is started anew.
        stop: asked after each look at a trial and after each trial; the search then ends with what it has.
        budget: what may be spent on it, with a confirmation.
        relative_delta: ||aligned - sft|| / ||aligned||; gives the first step where no alpha is published.
        before_tell: gets each trial when it is evaluated and not told yet, for artifacts.

    Raises:
        EngineDied: the second time in one trial.
    """
    start = store.attributes.first_step
    if start is None:
        start = first_step(spec, published_alpha, relative_delta)
        store.keep(StudyAttributes(first_step=start))
    points = start_points(spec, published_alpha, n_trials)
    thorough = None if budget is None else spec.tolerance
    with store.owned():
        study = store.study
        attempts = Attempts(store, objective, on_failure, stop)
        while not stop() and why_done(study, spec, n_trials, published_alpha, budget, objective.n_prompts) is None:
            store.check_owned()
            evaluated = evaluations(study)
            trial = _next_trial(study, spec, published_alpha, points, start, thorough)
            alpha = _alpha(trial, spec, published_alpha)
            seen = [*evaluated, *without_gain(study, evaluated, ALPHA)]
            n_most = _n_most(seen, alpha, objective.n_prompts, spec, published_alpha, start, thorough)
            brackets = n_most is not None and len(evaluated) + 1 < n_trials
            evaluate = partial(
                objective.evaluate,
                stands_for(trial),
                alpha,
                others={e.trial: e.gain.n for e in evaluated},
                best=rival(evaluated) if spec.racing else None,
                n_most=n_most,
                ahead=doubled(evaluated, alpha, bounds(spec, published_alpha)[1]) if brackets else None,
                on_look=partial(report, trial),
                stop=stop,
            )
            try:
                evaluation = attempts.evaluated(trial, evaluate)
            except Stopped:
                break
            if evaluation is None:
                continue
            keep(store, trial, evaluation)
            if before_tell is not None:
                before_tell(trial, evaluation)
            store.tell(trial, evaluation.gain.mean)
            if on_trial is not None:
                on_trial(evaluation)
    return evaluations(store.study)


def why_done(
    study: Study,
    spec: SearchSpec,
    n_trials: int,
    published_alpha: float | None,
    budget: Budget | None = None,
    n_prompts: int = 0,
) -> str | None:
    """Why a study is at its end, for people; None: it is not.

    It has its trials, or `expo` expects no more from going on (see `proposal.settled`); no other sampler ends early. Or
    the budget does not pay the next trial, on n_prompts or a part of them, and a confirmation after it.
    """
    from optuna.trial import TrialState

    ends = bounds(spec, published_alpha)
    if study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) or to_repeat(study, *ends) is not None:
        return None
    evaluated = evaluations(study)
    if len(evaluated) >= n_trials:
        return f"{len(evaluated)} finished trials"
    seen = [*evaluated, *without_gain(study, evaluated, ALPHA)]  # as the sampler sees them
    start = StudyAttributes.of(study.user_attrs).first_step
    if budget is not None:
        explores = spec.sampler == "expo" and spec.racing
        few = exploring(seen, *ends, start, spec.tolerance) if explores and evaluated else None
        if not budget.fits(evaluated, n_prompts if few is None else n_explore(n_prompts)):
            # of alpha = 0 alone the fit knows nothing, not even the reward's unit
            regret = expected_regret(evaluated, *ends) if any(e.alpha != 0 for e in evaluated) else None
            after = f"{len(evaluated)} trial{'' if len(evaluated) == 1 else 's'}"
            return f"budget: {budget.spent(evaluated)} after {after}; {more(evaluated, regret)}"
    if spec.sampler != "expo" or start is None:
        return None
    if budget is not None:
        if not is_exhausted(seen, *ends, start, spec.tolerance):
            return None
        return f"settled after {len(evaluated)} trials, with {budget.spent(evaluated)}: more would hardly gain more"
    if not settled(seen, *ends, start, spec.tolerance):
        return None
    return (
        f"settled after {len(evaluated)} trials: going on would hardly gain more (--tolerance 0 goes on to {n_trials})"
    )


def n_explore(n_prompts: int) -> int:
    """Prompts from which a bracketing trial has told enough: up to the first look at a quarter of them."""
    least = min(n_prompts, max(_EXPLORE_LEAST, n_prompts * _EXPLORE_SHARE))
    return next(end for end in looks(n_prompts) if end >= least)


def rival(evaluated: Sequence[Evaluation]) -> int:
    """The trial to race against: the best so far that was evaluated on all prompts; alpha = 0 is one of them."""
    whole = [e for e in evaluated if not e.broken and not e.stopped_early]
    return max(whole, key=lambda e: e.gain.mean).trial if whole else CONTROL


def _n_most(
    seen: Sequence[Finished],
    alpha: float,
    n_prompts: int,
    spec: SearchSpec,
    published_alpha: float | None,
    start: float,
    thorough: float | None,
) -> int | None:
    """A trial that only brackets the optimum, or looks into a gap, needs few prompts; any other all of them (None)."""
    if spec.sampler != "expo" or not spec.racing:
        return None
    step = exploring(seen, *bounds(spec, published_alpha), start, thorough)
    return n_explore(n_prompts) if step is not None and abs(step - alpha) < 1e-9 else None


def _next_trial(
    study: Study,
    spec: SearchSpec,
    published_alpha: float | None,
    points: Sequence[float],
    start: float,
    thorough: float | None,
) -> Trial:
    """The next trial to evaluate.

    In this order: one that a killed process left running, a failed one to repeat, the next of the points that a study
    begins with, a new one from the sampler. Only one trial is ever queued, so that the next `ask` is sure to take it.
    """
    from optuna.trial import Trial, TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if running:
        study.sampler = make_sampler(spec, stands_for(running[0]), start, thorough)
        # Optuna has no public way to take up a running trial; its number is told, but attributes need the id.
        return Trial(study, running[0]._trial_id)
    study.sampler = make_sampler(spec, n_first(study), start, thorough)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        failed = to_repeat(study, *bounds(spec, published_alpha))
        asked = [t.params[ALPHA] for t in study.get_trials(deepcopy=False) if ALPHA in t.params]
        if failed is not None:
            enqueue_repetition(study, failed)
        elif (point := next_point(spec, points, asked)) is not None:
            study.enqueue_trial({ALPHA: point})
    return study.ask()


def _alpha(trial: Trial, spec: SearchSpec, published_alpha: float | None) -> float:
    """The trial's alpha, drawn now unless it was drawn before."""
    with warnings.catch_warnings():
        # alpha = 0 is evaluated whatever the range is, and Optuna warns where it lies outside
        warnings.filterwarnings("ignore", message="Fixed parameter")
        return trial.suggest_float(ALPHA, *bounds(spec, published_alpha))


def report(trial: Trial, seen: Evaluation) -> None:
    """The gain so far, as the trial's intermediate value at that number of prompts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resumed trial reports again what it has reported
        trial.report(seen.gain.mean, seen.gain.n)


def keep(store: Store, trial: Trial, evaluation: Evaluation) -> None:
    """The evaluation as the trial's attributes, and the guardrails as Optuna's constraints (kept: at most 0)."""
    store.keep_with_trial(trial, evaluation.attributes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, excess in evaluation.excess.items():
            trial.set_constraint(name, excess)


def evaluations(study: Study) -> list[Evaluation]:
    """The finished trials of a study, in order.

    Raises:
        StoreError: trials that this package did not make.
    """
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    try:
        evaluated = [Evaluation.from_attributes(stands_for(t), t.params[ALPHA], t.user_attrs) for t in finished]
    except (KeyError, TypeError) as fault:
        raise StoreError(
            where=f"study {study.study_name}",
            found=f"trials without {fault}",
            expected="trials that this version of expo-search made",
            do="give another study",
        ) from None
    return sorted(evaluated, key=lambda e: e.trial)
