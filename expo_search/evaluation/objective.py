"""One alpha -> one `Evaluation`: materialize, generate, score, store, compare with alpha = 0, in looks at the prompts.

After each look a trial that races ends early if it cannot win any more (`hopeless`), if its answers have degenerated,
or if the search has learnt enough from it. Looks are the front parts of one order of prompts, the same at every alpha,
racing or not: after each of them an evaluation can be stopped, with everything stored (`answering.py`).

`Model` and `Scorer` (`contracts.py`) are all that this module and the search know of vLLM and transformers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache

from expo_search.config.spec import GuardrailSpec
from expo_search.contracts import Model, Part, Prompt, Rated, Switch, Watcher
from expo_search.evaluation.answering import Answering, AnyScorer, Effort
from expo_search.evaluation.ensemble import Ensemble
from expo_search.evaluation.result import CONTROL, Evaluation, Outcome
from expo_search.stats.paired import (
    Kind,
    estimate,
    gain,
    hopeless,
    mean_covariance,
    prompt_gains,
    rise_beyond_chance,
    win_rate,
)
from expo_search.stats.repetition import LOOPS_FROM, repetition
from expo_search.store.answer_rows import Stored
from expo_search.store.study_store import Store

FIRST_LOOK = 1 / 8  # of the prompts: with doubling there are four looks at a trial
LEAST_LOOK = 16  # prompts below which no look is taken: a t-test on fewer is not to be trusted
WRONG_DROP = 0.01  # probability that racing drops the best alpha of a search, spent evenly over the looks at it


class Stopped(Exception):
    """An evaluation that was asked to stop did so after a look, with everything stored. It is no error."""


def looks(n: int) -> list[int]:
    """How many of n prompts have been evaluated at each look: an eighth of them, then twice as many, up to all."""
    sizes, size = [], max(LEAST_LOOK, math.ceil(n * FIRST_LOOK))  # rounded down, the fourth one would miss a few
    while size < n:
        sizes.append(size)
        size *= 2
    return [*sizes, n]


def _up_to(ends: Sequence[int], n: int) -> list[int]:
    """The looks up to the first one that sees n prompts."""
    return [end for i, end in enumerate(ends) if i == 0 or ends[i - 1] < n]


class Objective:
    """Evaluates alphas on one fixed list of prompts, keeping every answer and reward as soon as it is there."""

    def __init__(
        self,
        model: Model,
        scorer: AnyScorer,
        store: Store,
        prompts: Sequence[Prompt],
        watcher: Watcher,
        *,
        seed: int = 0,
        part: Part = "search",
        kind: Kind = "reward",
        guardrails: GuardrailSpec | None = None,
        scores_beside: bool = False,
        n_parallel: int = 1,
        ensemble: Ensemble | None = None,
    ) -> None:
        """`seed`, `scores_beside` and `ensemble`: see `Answering`; `n_parallel`: see `Evaluation`."""
        self._model, self._store, self._watcher = model, store, watcher
        self._prompts, self._part, self._kind = prompts, part, kind
        self._answering = Answering(
            model, scorer, store, watcher, prompts, seed, part, scores_beside=scores_beside, ensemble=ensemble
        )
        self._guardrails, self._n_parallel = guardrails or GuardrailSpec(), n_parallel
        self._controls: dict[int, _Control] = {}  # by how many of the first prompts
        self._control_loops: dict[int, bool] = {}
        self._control_rated: Mapping[int, Rated] = {}  # alpha = 0's rewards, read once an evaluation
        self._finished_gains = cache(self._gains)

    @property
    def n_prompts(self) -> int:
        """How many prompts a whole evaluation answers."""
        return len(self._prompts)

    def restart(self) -> None:
        """Start the model anew after an `EngineDied`."""
        self._model.restart()

    def evaluate(
        self,
        trial: int,
        alpha: float,
        *,
        others: Mapping[int, int] | None = None,
        best: int | None = None,
        n_most: int | None = None,
        ahead: float | None = None,
        on_look: Callable[[Evaluation], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Evaluate one alpha, going on from what is stored of this trial.

        Args:
            others: finished trials, whose covariances with this one are wanted, and over how many prompts they are.
            best: the trial to race against; CONTROL races against a gain of 0. None: there is no race.
            n_most: the prompts from which enough is learnt, taken up to a whole look; not of CONTROL.
            ahead: the alpha that may be evaluated next, on as many prompts; a model with room may begin with it.
            on_look: gets what is known after each look of a race, and at the end.
            stop: asked after each look but the last.

        Raises:
            Stopped: `stop` said so.
            SettingsChanged: the weights at this alpha are not those of the stored answers.
        """
        run = _Run(started=time.perf_counter())
        if trial == CONTROL:  # whose answers may be others than those that are kept here
            self._controls, self._control_loops = {}, run.loops
        n_stored = self._store.n_completions(trial, self._part, len(self._prompts))
        self._watcher.started(trial, alpha, len(self._prompts), n_stored)
        switch = self._model.materialize(alpha)
        self._store.pin_weights(trial, self._part, alpha, switch.fingerprint)
        self._control_rated = {} if trial == CONTROL else self._store.rated(CONTROL, self._part)
        # long answers are long at every alpha
        expected = {p: r.length for p, r in self._control_rated.items()}
        racing = best is not None and trial != CONTROL
        every_look = looks(len(self._prompts))
        is_partial = n_most is not None and trial != CONTROL
        ends = _up_to(every_look, n_most) if is_partial and n_most is not None else every_look
        rival = self._finished_gains(best, len(self._prompts)) if racing and best not in (None, CONTROL) else {}
        outcome: Outcome = "complete"
        with closing(self._answering.ready(trial, ends, run.effort, expected, ahead)) as ready:
            for answers in ready:
                n = len(answers)
                if racing or n == ends[-1]:
                    seen = self._evaluation(trial, alpha, answers, switch, run)
                    if on_look is not None:
                        on_look(seen)
                if n == every_look[-1]:
                    break
                verdict = self._stop(seen, answers, rival, len(every_look)) if racing else None
                if verdict is not None or n == ends[-1]:
                    outcome = verdict or "enough"
                    break
                if stop():
                    raise Stopped
        covariances = self._covariances(trial, seen.gain.n, others or {})
        n_tokens = self._store.n_tokens(trial, self._part)
        return replace(
            seen,
            outcome=outcome,
            covariances=covariances,
            n_generated=run.effort.n_generated,
            n_tokens=n_tokens,
            other_s=run.other_s(switch),
        )

    def _stop(
        self, seen: Evaluation, answers: Sequence[Stored], rival: Mapping[int, float], n_looks: int
    ) -> Outcome | None:
        """Why a race is lost after this look, if it is."""
        control, limits, n = self._control_on(answers), self._guardrails, len(answers)
        if rise_beyond_chance(seen.share_cut, control.share_cut, n, limits.cut_off_rise) or rise_beyond_chance(
            seen.share_repeating, control.share_repeating, n, limits.repeating_rise
        ):
            return "degenerate"
        mine = prompt_gains(_rated(answers), control.rated, self._kind)
        if hopeless(mine, rival or dict.fromkeys(mine, 0.0), WRONG_DROP / n_looks):
            return "hopeless"
        return None

    def _evaluation(
        self,
        trial: int,
        alpha: float,
        answers: Sequence[Stored],
        switch: Switch,
        run: _Run,
    ) -> Evaluation:
        """What is known after a look, as of a trial that goes on to its end."""
        n, rated = len(answers), _rated(answers)
        control = self._control_on(answers, is_control=trial == CONTROL)
        length = sum(s.completion.n_tokens for s in answers) / n
        share_cut, share_repeating = _share_cut(answers), _share_repeating(answers, run.loops)
        length_ratio = length / max(control.length, 1e-9)
        limits = self._guardrails
        excess = {
            "cut off": share_cut - control.share_cut - limits.cut_off_rise,
            "repeating": share_repeating - control.share_repeating - limits.repeating_rise,
            "length": length_ratio - limits.length_ratio,
        }
        return Evaluation(
            trial=trial,
            alpha=alpha,
            reward=estimate([r.reward for r in rated.values()]),
            difference=gain(rated, control.rated, "reward"),
            gain=gain(rated, control.rated, self._kind),
            win_rate=win_rate(rated, control.rated),
            length_controlled=gain(rated, control.rated, "length-controlled"),
            outcome="complete",
            broken=tuple(name for name, by in excess.items() if by > 0),
            excess=excess,
            mean_length=length,
            length_ratio=length_ratio,
            share_cut=share_cut,
            share_repeating=share_repeating,
            n_reward_cut=run.effort.n_reward_cut,
            fingerprint=switch.fingerprint,
            switch_s=switch.seconds,
            generate_s=run.effort.generate_s,
            score_s=run.effort.score_s,
            other_s=run.other_s(switch),
            n_generated=run.effort.n_generated,
            n_tokens=sum(s.completion.n_tokens for s in answers),
            covariances={},
            n_parallel=self._n_parallel,
        )

    def _control_on(self, answers: Sequence[Stored], *, is_control: bool = False) -> _Control:
        """Alpha = 0's answers to the same prompts, kept by their number once all of them are there with rewards."""
        n = len(answers)
        if not is_control and n in self._controls:
            return self._controls[n]
        own = answers
        if not is_control:
            positions = {s.position for s in answers}
            stored = self._store.completions(CONTROL, self._part, self._prompts)
            own = [s for s in stored if s.position in positions]
        control = _Control(
            rated=_rated(own),
            length=sum(s.completion.n_tokens for s in own) / len(own),
            share_cut=_share_cut(own),
            share_repeating=_share_repeating(own, self._control_loops),
        )
        if not is_control and len(control.rated) == n:
            self._controls[n] = control
        return control

    def _gains(self, trial: int, n: int) -> Mapping[int, float]:
        """A stored trial's gain on each of the first n prompts; answers beyond them may be there, and do not count."""
        rated = self._store.rated(trial, self._part)
        return prompt_gains({p: r for p, r in rated.items() if p < n}, self._control_rated, self._kind)

    def _covariances(self, trial: int, n: int, others: Mapping[int, int]) -> dict[str, float]:
        """Of a trial's gain on the first n prompts with others' (by their number), each on as many as it was given."""
        mine = self._gains(trial, n)
        return {
            str(other): mean_covariance(mine, self._finished_gains(other, n_other))
            for other, n_other in others.items()
            if other not in (CONTROL, trial)
        }


@dataclass
class _Run:
    """One run of a trial: when it began, what it took, and which answers loop (by position)."""

    started: float
    effort: Effort = field(default_factory=Effort)
    loops: dict[int, bool] = field(default_factory=dict)

    def other_s(self, switch: Switch) -> float:
        """Seconds so far that were spent on neither switching, generating nor scoring."""
        return time.perf_counter() - self.started - switch.seconds - self.effort.generate_s - self.effort.score_s


@dataclass(frozen=True)
class _Control:
    """Alpha = 0 on some prompts."""

    rated: Mapping[int, Rated]
    length: float
    share_cut: float
    share_repeating: float


def _rated(answers: Sequence[Stored]) -> dict[int, Rated]:
    return {s.position: Rated(s.reward, s.completion.n_tokens) for s in answers if s.reward is not None}


def _share_cut(answers: Sequence[Stored]) -> float:
    return sum(s.completion.finish_reason == "length" for s in answers) / len(answers)


def _share_repeating(answers: Sequence[Stored], loops: dict[int, bool]) -> float:
    """Of answers, those that loop. `loops`: which do, by position, as far as it is known; gets the others."""
    for s in answers:
        if s.position not in loops:
            loops[s.position] = repetition(s.completion.text) >= LOOPS_FROM
    return sum(loops[s.position] for s in answers) / len(answers)
