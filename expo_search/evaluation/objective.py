"""One alpha -> one `Evaluation`: materialize, generate, score, store, compare with alpha = 0, in chunks of prompts.

After each chunk a trial that races ends early if it cannot win any more (`hopeless`), if its answers have degenerated,
or if the search has learnt enough from it. Chunks are the front parts of one order of prompts, the same at every alpha,
racing or not: after each of them an evaluation can be stopped, with everything stored.

`Model` and `Scorer` (`contracts.py`) are all that this module and the search know of vLLM and transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from expo_search.config.spec import GuardrailSpec
from expo_search.contracts import Completion, Model, Part, Prompt, Rated, Scorer, Switch, Watcher
from expo_search.errors import EngineError
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
from expo_search.store.study_store import Store, Stored

FIRST_LOOK = 1 / 8  # of the prompts: with doubling there are four looks at a trial
LEAST_LOOK = 16  # prompts below which no look is taken: a t-test on fewer is not to be trusted
WRONG_DROP = 0.01  # probability that racing drops the best alpha of a search, spent evenly over the looks at it
_FLUSH_S = 1.0
_TRIALS_KEPT = 64  # finished trials whose gains stay in memory


class Stopped(Exception):
    """An evaluation that was asked to stop did so after a chunk, which is stored. No error, and nothing to say."""


def looks(n: int) -> list[int]:
    """How many of n prompts have been evaluated at each look: an eighth of them, then twice as many, up to all."""
    sizes, size = [], max(LEAST_LOOK, round(n * FIRST_LOOK))
    while size < n:
        sizes.append(size)
        size *= 2
    return [*sizes, n]


class Objective:
    """Evaluates alphas on one fixed list of prompts, keeping every answer and reward as soon as it is there."""

    def __init__(
        self,
        model: Model,
        scorer: Scorer,
        store: Store,
        prompts: Sequence[Prompt],
        watcher: Watcher,
        *,
        seed: int = 0,
        part: Part = "search",
        kind: Kind = "reward",
        guardrails: GuardrailSpec | None = None,
    ) -> None:
        self._model, self._scorer, self._store, self._watcher = model, scorer, store, watcher
        self._prompts, self._seed, self._part, self._kind = prompts, seed, part, kind
        self._guardrails = guardrails or GuardrailSpec()
        self._control: _Control | None = None
        self._finished_gains = lru_cache(_TRIALS_KEPT)(self._gains)

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
        others: Sequence[int] = (),
        best: int | None = None,
        n_most: int | None = None,
        on_look: Callable[[Evaluation], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation:
        """Evaluate one alpha, going on from what is stored of this trial.

        Args:
            others: finished trials, whose covariances with this one are wanted.
            best: the trial to race against; CONTROL races against a gain of 0. None: there is no race.
            n_most: the prompts from which enough is learnt, taken up to a whole look; not of CONTROL.
            on_look: gets what is known after each chunk of a race, and at the end.
            stop: asked after each chunk but the last.

        Raises:
            Stopped: `stop` said so.
            SettingsChanged: the weights at this alpha are not those of the stored answers.
        """
        run = _Run(started=time.perf_counter())
        n_stored = self._store.n_completions(trial, self._part, len(self._prompts))
        self._watcher.started(trial, alpha, len(self._prompts), n_stored)
        switch = self._model.materialize(alpha)
        self._store.pin_weights(trial, self._part, alpha, switch.fingerprint)
        racing = best is not None and trial != CONTROL
        ends = looks(len(self._prompts))
        rival = self._finished_gains(best) if racing and best is not None and best != CONTROL else {}
        outcome: Outcome = "complete"
        for n in ends:
            answers, last = self._answer(trial, n, run), n == ends[-1]
            enough = n_most is not None and n >= n_most and trial != CONTROL
            if racing or enough or last:
                seen = self._evaluation(trial, alpha, answers, switch, run)
                if on_look is not None:
                    on_look(seen)
            if last:
                break
            verdict = self._stop(seen, answers, rival, len(ends)) if racing else None
            if verdict is not None or enough:
                outcome = verdict or "enough"
                break
            if stop():
                raise Stopped
        covariances = self._covariances(trial, others)
        return replace(seen, outcome=outcome, covariances=covariances, other_s=run.other_s(switch))

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

    def _answer(self, trial: int, n: int, run: _Run) -> list[Stored]:
        """The answers to the first n prompts, generated and scored where they are not stored yet."""
        stored = self._store.completions(trial, self._part, self._prompts)
        t0 = time.perf_counter()
        run.n_generated += self._generate_missing(trial, n, {s.position for s in stored})
        t1 = time.perf_counter()
        run.n_reward_cut += self._score_missing(trial)
        run.generate_s += t1 - t0
        run.score_s += time.perf_counter() - t1
        answers = [s for s in self._store.completions(trial, self._part, self._prompts) if s.position < n]
        if len(answers) != n:
            raise EngineError(
                where=f"trial {trial}",
                found=f"{len(answers)} answers to {n} prompts",
                expected="one answer a prompt",
                do="run the same command again: it goes on with the missing ones",
            )
        return answers

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
        share_cut, share_repeating = _share_cut(answers), self._share_repeating(answers, run)
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
            n_reward_cut=run.n_reward_cut,
            fingerprint=switch.fingerprint,
            switch_s=switch.seconds,
            generate_s=run.generate_s,
            score_s=run.score_s,
            other_s=run.other_s(switch),
            n_generated=run.n_generated,
            n_tokens=sum(s.completion.n_tokens for s in answers),
            covariances={},
        )

    def _control_on(self, answers: Sequence[Stored], *, is_control: bool = False) -> _Control:
        """Alpha = 0's answers to the same prompts; kept from look to look, and read again for more prompts."""
        if is_control:
            self._control = None
            own = answers
        elif self._control is not None and len(self._control.rated) == len(answers):
            return self._control
        else:
            positions = {s.position for s in answers}
            stored = self._store.completions(CONTROL, self._part, self._prompts)
            own = [s for s in stored if s.position in positions]
        control = _Control(
            rated=_rated(own),
            length=sum(s.completion.n_tokens for s in own) / len(own),
            share_cut=_share_cut(own),
            share_repeating=self._share_repeating(own, _Run(started=0.0)),
        )
        if not is_control:
            self._control = control
        return control

    def _gains(self, trial: int) -> Mapping[int, float]:
        """A stored trial's gain on each prompt of the part."""
        rated, control = self._store.rated(trial, self._part), self._store.rated(CONTROL, self._part)
        return prompt_gains(rated, control, self._kind)

    def _covariances(self, trial: int, others: Sequence[int]) -> dict[str, float]:
        """Of a trial's gain with others' (by their number)."""
        mine = self._gains(trial)
        return {str(t): mean_covariance(mine, self._finished_gains(t)) for t in others if t not in (CONTROL, trial)}

    @staticmethod
    def _share_repeating(answers: Sequence[Stored], run: _Run) -> float:
        for s in answers:
            if s.position not in run.loops:
                run.loops[s.position] = repetition(s.completion.text) >= LOOPS_FROM
        return sum(run.loops[s.position] for s in answers) / len(answers)

    def _generate_missing(self, trial: int, n: int, done: set[int]) -> int:
        """Generate for those of the first n prompts without a stored answer; stored at least once a second."""
        positions = {p: i for i, p in enumerate(self._prompts[:n]) if i not in done}
        if not positions:
            return 0
        fresh: dict[int, Completion] = {}
        flushed, n_tokens = time.monotonic(), 0
        try:
            for item in self._model.generate(list(positions), self._seed):
                if isinstance(item, int):
                    n_tokens += item
                    self._watcher.generated(item, 0)
                    continue
                fresh[positions[item.prompt]] = item
                self._watcher.generated(0, 1)
                if time.monotonic() - flushed > _FLUSH_S:
                    self._store.add_completions(trial, self._part, fresh)
                    fresh, flushed = {}, time.monotonic()
        finally:
            if fresh:
                self._store.add_completions(trial, self._part, fresh)
        return n_tokens

    def _score_missing(self, trial: int) -> int:
        unscored = [s for s in self._store.completions(trial, self._part, self._prompts) if s.reward is None]
        if not unscored:
            return 0
        rewards, n_cut = self._scorer.score([s.completion for s in unscored], self._watcher.scored)
        self._store.add_rewards(trial, self._part, {s.position: r for s, r in zip(unscored, rewards, strict=True)})
        return n_cut


@dataclass
class _Run:
    """What one run of a trial adds up: seconds, tokens, and which answers loop (by position)."""

    started: float
    generate_s: float = 0.0
    score_s: float = 0.0
    n_generated: int = 0
    n_reward_cut: int = 0
    loops: dict[int, bool] = field(default_factory=dict)

    def other_s(self, switch: Switch) -> float:
        """Seconds so far that were spent on neither switching, generating nor scoring."""
        return time.perf_counter() - self.started - switch.seconds - self.generate_s - self.score_s


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
