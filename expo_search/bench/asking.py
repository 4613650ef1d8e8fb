"""Requests of one task at one alpha -> answers, stored as they come; what is stored already is not asked again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Protocol

from expo_search.contracts import Completion, Likelihood, Model, Prompt
from expo_search.errors import EngineDied, EngineError, StoreError
from expo_search.evaluation.objective import Stopped
from expo_search.store.bench_store import Answered, BenchStore, Scores
from expo_search.text import storable

_FLUSH_S = 1.0
Key = tuple[str, int]  # an item, and the turn of it that is asked


class BenchWatcher(Protocol):
    """What wants to know how a benchmark goes; see `session/bench_progress.py`."""

    def planned(self, n_items: Mapping[tuple[str, float], int]) -> None:
        """What is to be answered: by task's name and alpha, the items that are not scored yet."""

    def started(self, task: str, title: str, alpha: float, n_requests: int, n_stored: int) -> None:
        """A task, or its next kind of requests, begins at an alpha; `n_stored` of them are answered already.

        `task` is its name, which no other has; `title` is how people read it.
        """

    def generated(self, n_tokens: int, n_answers: int) -> None:
        """The model generated this many tokens since the last call, and finished this many answers."""

    def remark(self, text: str) -> None:
        """Something to know of the task that has begun."""


class Asking:
    """Asks one model, standing at one alpha, for answers to one task's requests.

    Args:
        seed: of the answers, with each request's own.
        on_failure: gets the fault of an engine that is then started anew, once a call of `ask`.
        stop: asked after each answer; true ends it there.
    """

    def __init__(
        self,
        model: Model,
        store: BenchStore,
        task: str,
        alpha: float,
        *,
        seed: int,
        watcher: BenchWatcher,
        stop: Callable[[], bool] = lambda: False,
        on_failure: Callable[[EngineDied], None] = lambda _: None,
    ) -> None:
        self._model, self._store, self.task, self.alpha = model, store, task, alpha
        self._seed, self._watcher, self._stop, self._on_failure = seed, watcher, stop, on_failure

    def ask(
        self,
        requests: Mapping[Key, Prompt],
        scored: Callable[[str, Answered], tuple[int, Scores] | None] = lambda _item, _answer: None,
    ) -> dict[Key, Answered]:
        """The answers to requests, none of which is stored yet.

        Args:
            scored: position and scores of the item whose answer has come, where it was the last one; they are stored in
                one transaction with it.

        Raises:
            Stopped: `stop` said so; all that had been answered is stored.
            EngineDied: the second time.
            EngineError: the model left a request without an answer, or rated a text by what is no number.
        """
        answers: dict[Key, Answered] = {}
        may_fail = True
        while missing := {key: request for key, request in requests.items() if key not in answers}:
            try:
                self._answer(missing, scored, answers)
            except EngineDied as fault:
                if not may_fail:
                    raise
                may_fail = False
                self._on_failure(fault)
                self._model.restart()
                self._store.pin_weights(self.alpha, self._model.materialize(self.alpha).fingerprint)
                continue
            if missing.keys() - answers.keys():
                raise EngineError(
                    where=f"task {self.task}",
                    found=f"{len(answers)} answers to {len(requests)} requests",
                    expected="one answer a request",
                    do="run the same command again, without --again: it goes on with the missing ones",
                )
        return answers

    def _answer(
        self,
        requests: Mapping[Key, Prompt],
        scored: Callable[[str, Answered], tuple[int, Scores] | None],
        answers: dict[Key, Answered],
    ) -> None:
        keys = {request.id: key for key, request in requests.items()}
        fresh: dict[Key, Answered] = {}
        scores: dict[Key, Scores] = {}

        tried = False

        def flush() -> None:
            nonlocal tried
            if fresh:
                before, tried = tried, True  # an interrupt may come when they are written already
                self._store.add(self.task, self.alpha, fresh, scores, tried=before)
                answers.update(fresh)
                fresh.clear()
                scores.clear()
                tried = False

        flushed = time.monotonic()
        try:
            with closing(_steps(self._model, list(requests.values()), self._seed)) as parts:
                for part in parts:
                    if isinstance(part, int):
                        self._watcher.generated(part, 0)
                        continue
                    key, answer = keys[part.prompt.id], self._answered(part)
                    fresh[key] = answer  # kept, whatever becomes of its score
                    result = scored(key[0], answer)
                    if result is not None:
                        position, of_item = result
                        scores[key[0], position] = of_item
                    self._watcher.generated(0, 1)
                    if time.monotonic() - flushed > _FLUSH_S:
                        flush()
                        flushed = time.monotonic()
                    if self._stop():
                        raise Stopped
        except StoreError:  # as in `Answering`: no second try
            fresh.clear()
            raise
        finally:
            flush()

    def _answered(self, c: Completion) -> Answered:
        if not isinstance(c, Likelihood):
            return Answered(storable(c.text), c.n_tokens, c.finish_reason)
        if not math.isfinite(c.log_probability):
            raise EngineError(
                where=f"task {self.task}, alpha {self.alpha:g}, request {c.prompt.id}",
                found=f"a log-probability of {c.log_probability}",
                expected="a finite number",
                do="leave this alpha out: its model does not answer in numbers",
            )
        return Answered(storable(c.text), c.n_tokens, c.finish_reason, c.log_probability, c.is_greedy)


def _steps(model: Model, requests: Sequence[Prompt], seed: int) -> Generator[Completion | int, None, None]:
    """As `Model.generate`; closing it aborts what is running."""
    yield from model.generate(requests, seed)
