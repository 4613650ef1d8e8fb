"""One alpha that was found -> a search for a shape of it, an alpha for each weight, paired with that one alpha.

A search for a shape is a study of its own beside the one that it starts from, in the same database and under the same
settings. Trial 0 is alpha = 0, as in every study, and trial 1 the uniform alpha: their answers are those of the study
that it starts from, and cost nothing. A Gaussian process (Optuna's `GPSampler`) proposes the shape's 2 to 4 numbers; it
is told the gain over the uniform alpha, paired by prompt. All else of a trial, also how it goes on when it was killed,
is that of `loop.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Part, Prompt
from expo_search.errors import EngineDied
from expo_search.evaluation.objective import Objective, Stopped
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.confirm import confirm
from expo_search.search.loop import keep, report, rival
from expo_search.search.retry import Attempts, enqueue_repetition, n_first, to_repeat, with_one_restart
from expo_search.search.shapes import (
    UNIFORM,
    Beginning,
    finished_trials,
    gain_against_uniform,
    read_beginning,
    read_trials,
)
from expo_search.store.attributes import StudyAttributes, stands_for
from expo_search.store.study_store import Store
from expo_search.weights.shape import Shape, dimensions, shape_of, shaped

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler

_SEED_STEP = 7919  # between the samplers of two trials, as in `samplers.py`
_WORST = 2.0  # gains over alpha = 0 below the uniform one: what is worse is told as so much, not to bend the whole fit


def begin(store: Store, source: Store, beginning: Beginning, uniform: Evaluation, control: Evaluation) -> None:
    """Make a study of shapes in `store`, if it is new: the settings of the study it starts from, and its answers.

    The study that it starts from then names it.

    Args:
        source: the study it starts from, with `uniform` at the alpha to start from and `control` at 0.

    Raises:
        SettingsChanged: it was made under others.
    """
    there = source.attributes
    if there.settings is not None and there.spec is not None:
        store.pin_settings(there.settings, there.spec)
    same = StudyAttributes(contents=there.contents, environment=there.environment, calibration=there.calibration)
    store.keep(replace(same, folder=there.folder, shapes=asdict(beginning)))
    store.put_prompts("search", source.prompts("search"))
    for number, e in ((CONTROL, control), (UNIFORM, uniform)):
        store.pin_weights(number, "search", e.alpha, e.fingerprint)
        _take_over(store, number, source, e.trial, "search")
    if store.name not in (there.shaped or ()):
        source.keep(StudyAttributes(shaped=[*(there.shaped or ()), store.name]))


def _take_over(store: Store, number: int, source: Store, trial: int, part: Part) -> None:
    """Keep another study's answers of a trial under a number here, where they are not there yet."""
    prompts, theirs = store.prompts(part), source.prompts(part)
    n = min(len(prompts), len(theirs))
    if prompts[:n] != theirs[:n]:  # a position would mean another prompt
        return
    prompts = prompts[:n]
    there = {s.position for s in store.completions(number, part, prompts)}
    new = [s for s in source.completions(trial, part, prompts) if s.position not in there]
    if new:
        store.add_completions(number, part, {s.position: s.completion for s in new})
        store.add_rewards(number, part, {s.position: s.reward for s in new if s.reward is not None})


def search_shapes(
    store: Store,
    objective: Objective,
    spec: SearchSpec,
    n_trials: int,
    *,
    on_trial: Callable[[Evaluation], None] | None = None,
    on_failure: Callable[[EngineDied], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Evaluate shapes until n_trials of them are finished; a trial that a killed process left goes on first.

    Args: as of `loop.search`; the study was begun (`begin`).

    Raises:
        EngineDied: the second time in one trial.
        SettingsChanged: the engine's weights are not those of the answers that were taken over.
    """
    beginning, kind = read_beginning(store), spec.objective
    with store.owned():
        study = store.study
        attempts = Attempts(store, objective, on_failure, stop)
        try:
            _evaluate_references(study, objective, beginning, on_failure, stop)
            while not stop() and len(finished_trials(study)) - 1 < n_trials:
                store.check_owned()
                known = read_trials(store)
                trial = _next_trial(study, beginning, spec.seed)
                alpha = shaped(beginning.alpha, _drawn(trial, beginning))
                best = rival(known) if spec.racing else None
                evaluate = partial(
                    objective.evaluate, stands_for(trial), alpha, best=best, on_look=partial(report, trial), stop=stop
                )
                evaluation = attempts.evaluated(trial, evaluate)
                if evaluation is None:
                    continue
                keep(store, trial, evaluation)
                gain = gain_against_uniform(store, evaluation.trial, "search", kind, evaluation.gain.n).mean
                store.tell(trial, max(gain, -_WORST * abs(known[UNIFORM].gain.mean)))
                if on_trial is not None:
                    on_trial(evaluation)
        except Stopped:
            return


def _evaluate_references(
    study: Study,
    objective: Objective,
    beginning: Beginning,
    on_failure: Callable[[EngineDied], None] | None,
    stop: Callable[[], bool],
) -> None:
    """Trials 0 and 1, of the answers that were taken over. Alpha = 0 is no shape, so the sampler is not told of it."""
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState, create_trial

    def measured(number: int, alpha: float) -> Evaluation:
        return with_one_restart(partial(objective.evaluate, number, alpha, stop=stop), objective, on_failure, stop)

    n = len(study.get_trials(deepcopy=False))
    if n <= CONTROL:
        control = measured(CONTROL, 0.0)
        study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=control.attributes()))
    if n <= UNIFORM:
        uniform = measured(UNIFORM, beginning.alpha)
        numbers = dimensions(beginning.kind)
        study.add_trial(
            create_trial(
                params={d.name: d.neutral for d in numbers},
                distributions={d.name: FloatDistribution(d.low, d.high) for d in numbers},
                value=0.0,
                user_attrs=uniform.attributes(),
                constraints=dict(uniform.excess),
            )
        )


def _next_trial(study: Study, beginning: Beginning, seed: int) -> Trial:
    """As that of `loop.py`: a running one, one to repeat, the next of those a study begins with, a proposed one."""
    from optuna.trial import Trial, TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    number = stands_for(running[0]) if running else n_first(study)
    study.sampler = _sampler((seed + _SEED_STEP * number) % 2**31, len(dimensions(beginning.kind)))
    if running:
        return Trial(study, running[0]._trial_id)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        failed, asked = to_repeat(study), [t.params for t in study.get_trials(deepcopy=False)]
        if failed is not None:
            enqueue_repetition(study, failed)
        elif (first := next((p for p in _first_points(beginning.kind) if p not in asked), None)) is not None:
            study.enqueue_trial(first)
    return study.ask()


def _first_points(kind: str) -> list[dict[str, float]]:
    """The shapes that a search begins with: one number at a time half the way to an end, up and down in turn."""
    numbers = dimensions(kind)
    neutral = {d.name: d.neutral for d in numbers}
    ends = [(d, d.high if i % 2 else d.low) for i, d in enumerate(numbers)]
    return [neutral | {d.name: (d.neutral + end) / 2} for d, end in ends]


def _sampler(seed: int, n_numbers: int) -> BaseSampler:
    """Optuna's Gaussian process, once it has the uniform alpha and the first points."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1 + n_numbers, deterministic_objective=False)


def _drawn(trial: Trial, beginning: Beginning) -> Shape:
    """The trial's shape, drawn now unless it was drawn before."""
    for d in dimensions(beginning.kind):
        trial.suggest_float(d.name, d.low, d.high)
    return beginning.shape(trial)


def confirm_shape(
    store: Store,
    source: Store,
    objective: Objective,
    shape: Evaluation,
    prompts: Sequence[Prompt],
    stop: Callable[[], bool] = lambda: False,
    on_failure: Callable[[EngineDied], None] = lambda _: None,
) -> None:
    """Answer fresh prompts at alpha = 0, at the uniform alpha and with a shape, and keep what was measured.

    What a confirmation of the study it starts from has answered of them is taken over: it chose no shape. Raises as
    `confirm.confirm`.
    """
    beginning = read_beginning(store)
    assert shape_of(shape.alpha) is not None
    with store.owned():
        store.put_prompts("confirm", prompts)
        for number, trial in ((CONTROL, CONTROL), (UNIFORM, beginning.trial)):
            _take_over(store, number, source, trial, "confirm")
        confirm(store, objective, UNIFORM, beginning.alpha, prompts, stop, on_failure)
        if stop():
            raise Stopped
        confirm(store, objective, shape.trial, shape.alpha, prompts, stop, on_failure)
