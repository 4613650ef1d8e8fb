"""An engine of known step times that only sleeps, with a reward model that does too: what a pool adds is then seen.

A step of b sequences takes `step_s` + b * `sequence_s`, up to `batch` sequences at a time, first come first served. The
engine keeps to its clock: what waits for this process, as a GPU's engine would not, is made up for in the next steps.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from expo_search.contracts import Completion, Prompt, Switch
from expo_search.pool.actor import Share, Started

_SHORTEST_SLEEP_S = 0.002  # a process that wakes up more often than that measures its own scheduler


@dataclass(frozen=True)
class Times:
    """Step times of an engine, and tokens that its reward model reads in a second."""

    batch: int = 256
    step_s: float = 0.008
    sequence_s: float = 0.00002
    scored_per_s: float = 60_000

    def step(self, n: int) -> float:
        """Seconds of a step of n sequences."""
        return self.step_s + n * self.sequence_s

    def of_tokens(self, n_tokens: int) -> float:
        """Seconds of so many tokens where the batch is always full."""
        return n_tokens * self.step(self.batch) / self.batch


class SleepingEngine:
    """A `pool.actor` engine. `lengths`: tokens of each prompt's answer, by its id; `others`: at any alpha but 0."""

    def __init__(self, times: Times, lengths: Mapping[str, int], others: Mapping[str, int]) -> None:
        self._times, self._at_0, self._others = times, lengths, others
        self._lengths = lengths
        self._waiting: deque[Prompt] = deque()
        self._running: list[tuple[int, int, Prompt]] = []  # (step in which it ends, order, prompt)
        self._step = self._order = 0
        self._clock = 0.0

    @property
    def n_at_once(self) -> int:
        return self._times.batch

    def materialize(self, alpha: float) -> Switch:
        self._lengths = self._others if alpha else self._at_0
        return Switch(alpha, 0.0, repr(alpha))

    def restart(self) -> None:
        """It never dies."""

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        self.add(prompts, seed)
        while self._running or self._waiting:
            yield from self.step()

    def add(self, prompts: Sequence[Prompt], seed: int) -> None:  # noqa: ARG002
        if not self._running and not self._waiting:
            self._clock = time.monotonic()  # it was idle until now
        self._waiting.extend(prompts)

    def step(self) -> list[Completion | int]:
        while self._waiting and len(self._running) < self._times.batch:
            prompt = self._waiting.popleft()
            self._order += 1
            heapq.heappush(self._running, (self._step + self._lengths[prompt.id], self._order, prompt))
        n = len(self._running)
        self._step += 1
        self._clock += self._times.step(n)
        left_s = self._clock - time.monotonic()
        if left_s > _SHORTEST_SLEEP_S:
            time.sleep(left_s)
        ended: list[Completion | int] = []
        while self._running and self._running[0][0] <= self._step:
            prompt = heapq.heappop(self._running)[2]
            ended.append(Completion(prompt, prompt.id, self._lengths[prompt.id], "stop"))
        return [n, *ended]

    def abort(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def close(self) -> None:
        """It holds nothing."""


class SleepingScorer:
    """Rates nothing, in the time that a reward model takes."""

    def __init__(self, times: Times) -> None:
        self._times = times

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        time.sleep(sum(c.n_tokens for c in completions) / self._times.scored_per_s)
        on_scored(len(completions))
        return [0.0] * len(completions), 0


@dataclass(frozen=True)
class SleepingRecipe:
    """Starts both."""

    times: Times
    lengths: Mapping[str, int]
    others: Mapping[str, int]

    def survey(self, n_engines: int) -> int:
        return n_engines

    def start(self, share: Share) -> Started:  # noqa: ARG002
        return Started(SleepingEngine(self.times, self.lengths, self.others), SleepingScorer(self.times), "asleep")
