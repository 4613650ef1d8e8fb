"""What runs in an engine's own process, wherever that is: one engine, and the scorer beside it.

Nothing here knows Ray: `cluster.py` makes an actor of `EngineActor`. Its calls come one after another, in the process's
main thread, which the engine's watchdog needs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from expo_search.contracts import Completion, Engine, EnsembleScorer, Prompt, Scorer, Switch
from expo_search.owner import end_with


@dataclass(frozen=True)
class Share:
    """Which part of a node's cores an engine has: the `index`-th of `of` equal ones."""

    index: int = 0
    of: int = 1

    def cores(self, there: Sequence[int]) -> list[int]:
        """Its cores among those that are there; all of them where there are fewer than engines."""
        each = len(there) // self.of
        return list(there[self.index * each : (self.index + 1) * each]) or list(there)


@dataclass(frozen=True)
class Started:
    """An engine that runs, at alpha = 0 and with its canary passed.

    Attributes:
        scorer: rates answers in the engine's process, or several do; None where the pool's user has another one.
        facts: of the engine, such as its weights' fingerprints; those of one pool must be equal.
    """

    engine: Engine
    scorer: Scorer | EnsembleScorer | None
    facts: Any


class Recipe(Protocol):
    """How to start an engine; it is sent to the engine's node, so it and what it returns must be picklable."""

    def survey(self, n_engines: int) -> Any:
        """What this node has, and whether n engines fit on it, before any is started. Raises `ExpoError`."""

    def start(self, share: Share) -> Started:
        """Start an engine in this process. Raises `ExpoError`."""


@dataclass(frozen=True)
class Worked:
    """What came of one call: tokens generated, completions that ended, seconds it took."""

    n_tokens: int
    completions: list[Completion]
    seconds: float


class EngineActor:
    """One engine in a process of its own."""

    def __init__(self, recipe: Recipe) -> None:
        end_with(os.getppid(), [os.getpid()])  # Ray's own process on this node, which ends where the driver does
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGCHLD, signal.SIG_DFL
            )  # ignored, it would hide children's exit codes from the engine
        self._recipe = recipe
        self._started: Started | None = None
        self._n_under_way = 0

    def start(self, share: Share) -> tuple[Any, int]:
        """Start the engine: its facts, and how many prompts it answers at once."""
        self._started = self._recipe.start(share)
        return self._started.facts, self._started.engine.n_at_once

    def materialize(self, alpha: float) -> Switch:
        """As `Model.materialize`."""
        return self._engine.materialize(alpha)

    def work(self, prompts: Sequence[Prompt], seed: int, seconds: float) -> Worked:
        """Take more prompts, and go on with all that are under way: for so long, or until none is."""
        begun, n_tokens, completions = time.perf_counter(), 0, list[Completion]()
        self._engine.add(prompts, seed)
        self._n_under_way += len(prompts)
        while self._n_under_way and time.perf_counter() - begun < seconds:
            for item in self._engine.step():
                if isinstance(item, int):
                    n_tokens += item
                else:
                    completions.append(item)
                    self._n_under_way -= 1
        return Worked(n_tokens, completions, time.perf_counter() - begun)

    def abort(self) -> None:
        """Drop all prompts that are under way."""
        self._engine.abort()
        self._n_under_way = 0

    def score(self, completions: Sequence[Completion]) -> tuple[list[Any], int]:
        """As `Scorer.score`, or as `EnsembleScorer.score_each` where several rate."""
        assert self._started is not None, "started before"
        scorer = self._started.scorer
        assert scorer is not None, "this pool rates answers"
        if isinstance(scorer, EnsembleScorer):
            return scorer.score_each(completions, lambda _: None)
        return scorer.score(completions, lambda _: None)

    def close(self) -> None:
        """Stop the engine."""
        started, self._started = self._started, None
        if started is not None:
            started.engine.close()
            close = getattr(started.scorer, "close", None)
            if close is not None:
                close()

    @property
    def _engine(self) -> Engine:
        assert self._started is not None, "started before"
        return self._started.engine
