"""One trial's prompts -> answers with rewards: generated without a pause, scored as they come, stored before all else.

All prompts are handed to the model at once, in their order, so that its batch stays full from the first to the last. A
look is ready as soon as its first n prompts are answered and scored, whatever else is under way: what is decided
after it depends on those n alone, and not on timing. Whoever stops after a look aborts what is still running; answers
beyond the look that were finished by then are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from expo_search.contracts import (
    AheadModel,
    BackgroundEnsembleScorer,
    BackgroundScorer,
    Completion,
    EnsembleScorer,
    Model,
    PairwiseScorer,
    Part,
    Prompt,
    Scorer,
    Watcher,
)
from expo_search.errors import EngineDied, EngineError, StoreError
from expo_search.evaluation.ensemble import Ensemble
from expo_search.evaluation.finite import SEE_TO_SCORER, check_finite
from expo_search.evaluation.pairwise import AgainstControl
from expo_search.evaluation.result import CONTROL
from expo_search.store.answer_rows import Stored
from expo_search.store.study_store import Store
from expo_search.text import storable

AnyScorer = Scorer | PairwiseScorer | EnsembleScorer
BLOCK = 64  # answers that are scored together: which share a batch, and so a reward's last bits, must not be chance
_FLUSH_S = 1.0
_LONGEST_SHARE = 20


@dataclass
class Effort:
    """What one run of a trial adds up.

    Attributes:
        generate_s, score_s: seconds; of scoring beside a model that goes on answering, seconds of this thread.
        n_generated: tokens, those of aborted answers too. n_reward_cut: conversations cut for the reward model.
    """

    generate_s: float = 0.0
    score_s: float = 0.0
    n_generated: int = 0
    n_reward_cut: int = 0


def handing_order(positions: Sequence[int], first: int, expected: Mapping[int, int]) -> list[int]:
    """The order in which prompts are handed over: their own, but the longest twentieth begins after the first look's.

    An answer that begins among the last and runs on alone leaves the batch empty around it. `first`: prompts of the
    first look, which begin at once in any case. `expected`: tokens by position; without it the order stays.
    """
    later = [p for p in positions if p >= first and p in expected]
    longest = sorted(later, key=lambda p: -expected[p])[: len(later) // _LONGEST_SHARE]
    ahead = set(longest)
    return [*(p for p in positions if p < first), *longest, *(p for p in positions if p >= first and p not in ahead)]


class Answering:
    """Answers prompts with one model and rates them with one scorer, keeping everything in one study.

    A scorer of pairs gets each answer with that at alpha = 0, which must be stored. Several reward models' rewards are
    kept each and combined by an `ensemble`; at alpha = 0, which calibrates it, answers have theirs at the last look.

    Args:
        seed: of the answers, with each prompt's own.
        scores_beside: the model goes on answering while this thread scores (its engine is a process of its own), so
            answers are scored as they come; else when a look needs them, since both want the same cores. A
            `BackgroundScorer` gets them as they come in any case.
    """

    def __init__(
        self,
        model: Model,
        scorer: AnyScorer,
        store: Store,
        watcher: Watcher,
        prompts: Sequence[Prompt],
        seed: int,
        part: Part,
        *,
        scores_beside: bool = False,
        ensemble: Ensemble | None = None,
    ) -> None:
        self._model, self._scorer, self._store, self._watcher = model, scorer, store, watcher
        self._prompts, self._seed, self._part = prompts, seed, part
        self._scores_beside, self._ensemble = scores_beside, ensemble

    def ready(
        self,
        trial: int,
        ends: Sequence[int],
        effort: Effort,
        expected: Mapping[int, int] | None = None,
        ahead: float | None = None,
    ) -> Generator[list[Stored], None, None]:
        """The answers to the first n prompts, by position and with rewards, for each n of `ends`, in that order.

        Goes on from what is stored. Closing it aborts what is running; `effort` counts up meanwhile. `expected`: how
        many tokens the answers may have, by position, so that those which take longest do not begin last. `ahead`: an
        alpha that may be asked for the same prompts next, which a model with room for it may begin with.

        Raises:
            EngineError: the model left a prompt without an answer.
        """
        scorer = self._scorer_of(trial, ends[-1])
        waiting = set[int]() if self._ensemble is None else self._ensemble.waiting(trial, self._part)
        stored = self._store.completions(trial, self._part, self._prompts[: ends[-1]])
        state = _State.of(stored, ends, scorer, waiting)
        reached = 0
        try:
            while reached < len(ends) and state.is_answered(reached):
                yield self._look(trial, state, reached, effort)
                reached += 1
            with closing(self._generated(trial, state, effort, expected or {}, ahead)) as steps:
                for _ in steps:
                    self._score_beside(trial, reached, state, effort)
                    while reached < len(ends) and state.is_answered(reached):
                        yield self._look(trial, state, reached, effort)
                        reached += 1
        except EngineDied:  # what is being rated is kept: the trial that repeats this one would ask a judge again
            for block in [block for block, rating in state.rating.items() if not rating.cancel()]:
                self._score(trial, block, state, effort)
            raise
        finally:
            for rating in state.rating.values():
                rating.cancel()
        if reached < len(ends):
            raise EngineError(
                where=f"trial {trial}",
                found=f"{state.n_answered(reached)} answers to {ends[reached]} prompts",
                expected="one answer a prompt",
                do="run the same command again: it goes on with the missing ones",
            )

    def _scorer_of(self, trial: int, n: int) -> Scorer | EnsembleScorer:
        """What rates a trial's answers to the first n prompts."""
        if not isinstance(self._scorer, PairwiseScorer):
            return self._scorer
        if trial == CONTROL:
            return AgainstControl(self._scorer, None)
        stored = self._store.completions(CONTROL, self._part, self._prompts[:n])
        return AgainstControl(self._scorer, {s.completion.prompt: s.completion for s in stored})

    def _look(self, trial: int, state: _State, look: int, effort: Effort) -> list[Stored]:
        self._begin(look, state)
        for block in state.blocks_to_score(look + 1):
            self._score(trial, block, state, effort)
        if self._ensemble is not None and look == len(state.ends) - 1:
            state.rate(self._ensemble.calibrate(trial, self._part))
        return [state.answers[p] for p in range(state.ends[look])]

    def _score_beside(self, trial: int, look: int, state: _State, effort: Effort) -> None:
        """Rate while the model goes on answering: what the next look needs, and no more, as it may be the last one."""
        self._begin(look, state)
        in_background = isinstance(state.scorer, BackgroundScorer | BackgroundEnsembleScorer)
        for block in state.blocks_to_score(look + 1):
            if state.rating[block].done() if in_background else self._scores_beside:
                self._score(trial, block, state, effort)

    def _begin(self, look: int, state: _State) -> None:
        """Have a background scorer rate what a look needs, whole blocks of answers at a time."""
        if isinstance(state.scorer, BackgroundScorer | BackgroundEnsembleScorer):
            for block in state.blocks_to_score(look + 1):
                if block not in state.rating:
                    state.rating[block] = state.scorer.begin([s.completion for s in state.unscored(block)])

    def _generated(
        self, trial: int, state: _State, effort: Effort, expected: Mapping[int, int], ahead: float | None
    ) -> Generator[None, None, None]:
        """Generate what is missing for the last look; a step ends with some answers stored, or none."""
        order = handing_order(range(state.ends[-1]), state.ends[0], expected)
        positions = {self._prompts[i]: i for i in order if i not in state.answers}
        if not positions:
            return
        if ahead is not None and isinstance(self._model, AheadModel):
            self._model.answer_ahead(ahead, [self._prompts[i] for i in order], self._seed)
        fresh: dict[int, Completion] = {}
        tried = False  # to keep those: an interrupt may come when they are written already
        flushed, since = time.monotonic(), time.perf_counter()
        try:
            for item in self._model.generate(list(positions), self._seed):
                if isinstance(item, int):
                    effort.n_generated += item
                    self._watcher.generated(item, 0)
                    continue
                position = positions[item.prompt]
                fresh[position] = replace(item, text=storable(item.text))
                self._watcher.generated(0, 1)
                completes = state.add(Stored(position, fresh[position], None))
                if completes or time.monotonic() - flushed > _FLUSH_S:
                    tried = True
                    self._store.add_completions(trial, self._part, fresh)
                    fresh, tried, flushed = {}, False, time.monotonic()
                    effort.generate_s += time.perf_counter() - since
                    yield
                    since = time.perf_counter()
        except StoreError:  # a database that takes nothing is not tried, and waited for, a second time
            fresh = {}
            raise
        finally:
            if fresh:
                self._store.add_completions(trial, self._part, fresh, tried=tried)
        effort.generate_s += time.perf_counter() - since

    def _score(self, trial: int, block: range, state: _State, effort: Effort) -> None:
        """Rate those answers of a block that are not rated yet, in one transaction."""
        started = time.perf_counter()
        unscored = state.unscored(block)
        if block in state.rating:
            rewards, n_cut = state.rating.pop(block).result()
            self._watcher.scored(len(unscored))
        else:
            rewards, n_cut = _rate(state.scorer, [s.completion for s in unscored], self._watcher.scored)
        rated = {s.position: reward for s, reward in zip(unscored, rewards, strict=True)}
        if self._ensemble is None:
            for answer, reward in zip(unscored, rewards, strict=True):  # which a user's own scorer may have given
                check_finite(reward, answer.completion.prompt, do=SEE_TO_SCORER)
            self._store.add_rewards(trial, self._part, rated)
        else:
            rated = self._ensemble.keep(trial, self._part, rated)
        state.rate(rated)
        state.close(block)
        effort.n_reward_cut += n_cut
        effort.score_s += time.perf_counter() - started


def _rate(
    scorer: Scorer | EnsembleScorer, completions: Sequence[Completion], on_scored: Callable[[int], None]
) -> tuple[list[Any], int]:
    """A reward for each completion, or each of several, and how many conversations were cut."""
    if isinstance(scorer, EnsembleScorer):
        return scorer.score_each(completions, on_scored)
    return scorer.score(completions, on_scored)


class _State:
    """Which prompts of a trial are answered and scored, by position; `rating`: blocks that a background scorer has.

    `waiting`: positions whose answers are rated, and have their reward later.
    """

    def __init__(self, ends: Sequence[int], scorer: Scorer | EnsembleScorer, waiting: Set[int]) -> None:
        self.ends, self.scorer, self._waiting = ends, scorer, waiting
        self.rating: dict[range, Future[tuple[list[Any], int]]] = {}
        self.answers: dict[int, Stored] = {}
        starts = [0, *ends[:-1]]
        self._blocks = [
            (look, range(at, min(at + BLOCK, end)))
            for look, (start, end) in enumerate(zip(starts, ends, strict=True))
            for at in range(start, end, BLOCK)
        ]
        self._open = {p: i for i, (_, block) in enumerate(self._blocks) for p in block}  # position -> its block
        self._n_missing = [len(block) for _, block in self._blocks]
        self._scored: set[int] = set()  # blocks

    @classmethod
    def of(
        cls, stored: Sequence[Stored], ends: Sequence[int], scorer: Scorer | EnsembleScorer, waiting: Set[int]
    ) -> _State:
        state = cls(ends, scorer, waiting)
        for answer in stored:
            state.add(answer)
        state._scored = {
            i
            for i, (_, block) in enumerate(state._blocks)
            if all(p in state.answers and state._is_rated(p) for p in block)
        }
        return state

    def add(self, answer: Stored) -> bool:
        """Take an answer; whether it was the last of its block."""
        self.answers[answer.position] = answer
        block = self._open[answer.position]
        self._n_missing[block] -= 1
        return self._n_missing[block] == 0

    def unscored(self, block: range) -> list[Stored]:
        """The answers of a block that are not rated."""
        return [self.answers[p] for p in block if not self._is_rated(p)]

    def rate(self, rewards: Mapping[int, float]) -> None:
        """Take rewards of answers."""
        for position, reward in rewards.items():
            self.answers[position] = replace(self.answers[position], reward=reward)

    def close(self, block: range) -> None:
        """Take a block as scored."""
        self._scored.add(self._open[block[0]])

    def _is_rated(self, position: int) -> bool:
        return position in self._waiting or self.answers[position].reward is not None

    def is_answered(self, look: int) -> bool:
        """Whether all prompts of a look have an answer."""
        return all(n == 0 for (of, _), n in zip(self._blocks, self._n_missing, strict=True) if of <= look)

    def n_answered(self, look: int) -> int:
        """How many prompts of a look have an answer."""
        return sum(p < self.ends[look] for p in self.answers)

    def blocks_to_score(self, n_looks: int) -> list[range]:
        """Blocks of the first looks that are answered whole and not scored."""
        return [
            block
            for i, (look, block) in enumerate(self._blocks)
            if look < n_looks and not self._n_missing[i] and i not in self._scored
        ]
