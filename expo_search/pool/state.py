"""What the pool's caller wants and what its engines are at, shared by the threads that serve them.

A thread an engine (`member.py`) takes from the board what its engine is to do: a switch of alpha that it has not made,
answers to rate, prompts to answer. What an engine that is lost had taken is put back. A part of the engines may be at
the alpha that is expected next (`Ahead`).
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Literal

from expo_search.contracts import Completion, Prompt, Switch
from expo_search.errors import EngineDied, MaterializeError

_MOST_RETURNS = 3  # of a prompt or a job by engines that were lost at it: it may be what they are lost by
_SLACK = 8  # an engine holds an eighth more prompts than it answers at once, so that none of its places stays empty


@dataclass
class EngineState:
    """One engine, as progress shows it.

    Attributes:
        node: name of the machine; empty until it has a place.
        state: "waiting" for a place in the cluster; "given up" after starts that came to nothing.
        n_prompts: how many it holds. n_at_once: how many it answers at once.
        tokens_per_s: of its last calls.
    """

    index: int
    node: str = ""
    state: Literal["waiting", "starting", "idle", "answering", "given up"] = "waiting"
    n_prompts: int = 0
    n_at_once: int = 1
    tokens_per_s: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether it has started and is at work, or could be."""
        return self.state in ("idle", "answering")


class Run:
    """The prompts of one `generate`: those that wait, and what has come of the others."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.waiting = deque(prompts)
        self.seed = seed
        self._begun = set(prompts)
        self.items: SimpleQueue[Completion | int | BaseException] = SimpleQueue()
        self._n_returns: Counter[Prompt] = Counter()

    def becomes(self, prompts: Sequence[Prompt], seed: int) -> bool:
        """Take these prompts for one's own, those that began before among them; False where that cannot be."""
        if seed != self.seed or not self._begun <= set(prompts):
            return False
        self.waiting.extend(p for p in prompts if p not in self._begun)
        return True

    def n_tokens(self) -> int:
        """Tokens that were generated and have not been taken; its items are gone then."""
        n = 0
        with suppress(Empty):
            while True:
                item = self.items.get_nowait()
                n += item if isinstance(item, int) else 0
        return n

    def put_back(self, prompts: Sequence[Prompt], fault: BaseException) -> None:
        """Take prompts back from an engine that is lost; they are the next ones."""
        self.waiting.extendleft(reversed(prompts))
        self._n_returns.update(prompts)
        if prompts and max(self._n_returns[p] for p in prompts) >= _MOST_RETURNS:
            worst = max(prompts, key=self._n_returns.__getitem__)
            self.items.put(_lost_at(f"prompt {worst.id}", "answered it", fault))


@dataclass
class Wish:
    """An alpha that every engine is to be at.

    Attributes:
        switches: of the engines that are, by index. faults: of those that could not.
        fingerprint: of the weights there, once all that served had switched.
    """

    number: int
    alpha: float
    switches: dict[int, Switch] = field(default_factory=dict)
    faults: dict[int, Exception] = field(default_factory=dict)
    fingerprint: str | None = None


@dataclass(frozen=True)
class Ahead:
    """The alpha that may come next, its prompts, and the engines (by index) that are at it already."""

    wish: Wish
    run: Run
    engines: frozenset[int]


@dataclass
class Job:
    """Answers to be rated together, so that no reward depends on how many engines there are.

    Attributes:
        future: pending until the rewards are there, so that whoever wants them no more can cancel it: once the engine
            is lost that rates them, no other one takes them.
        n_returns: by engines that were lost while they rated.
    """

    completions: Sequence[Completion]
    future: Future[tuple[list[Any], int]] = field(default_factory=Future)
    n_returns: int = 0

    def succeed(self, rated: tuple[list[Any], int]) -> None:
        """Hand the rewards over, if they are wanted."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(rated)

    def fail(self, fault: BaseException) -> None:
        """Tell why there are none, if they are wanted."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(fault)


class Board:
    """The state that all threads of a pool share; `changed` guards it."""

    def __init__(self, n_engines: int) -> None:
        self.changed = threading.Condition()
        self.engines = [EngineState(i) for i in range(n_engines)]
        self.run: Run | None = None
        self.wish: Wish | None = None
        self.ahead: Ahead | None = None
        self.has_started = self.closed = False  # a start that fails before is a fault of the input
        self.fault: BaseException | None = None  # ends the pool: a first start that failed
        self.last_loss: BaseException | None = None
        self._facts: Any = None
        self._jobs: deque[Job] = deque()
        self._seats: dict[str, set[int]] = {}  # by node: which of its parts are taken
        self._nodes: dict[str, Literal["starting", "ready"]] = {}

    def snapshot(self) -> list[EngineState]:
        """The engines as they are now."""
        with self.changed:
            return [replace(e) for e in self.engines]

    def serving(self) -> list[EngineState]:
        """Those that are at work, or could be. The caller holds the lock."""
        return [e for e in self.engines if e.serves]

    def of(self, index: int) -> tuple[Wish | None, Run | None]:
        """The alpha that an engine is to be at, and whose prompts it answers. The caller holds the lock."""
        if self.ahead is not None and index in self.ahead.engines:
            return self.ahead.wish, self.ahead.run
        return self.wish, self.run

    def look_ahead(self, wish: Wish, run: Run) -> None:
        """Have engines begin with what may come next: those that hold no prompts, at most half of all.

        None, where as many prompts fill the other engines. The caller holds the lock.
        """
        serving = self.serving()
        idle = [e.index for e in serving if not e.n_prompts]
        begin = frozenset(idle[-(len(serving) // 2) :] if len(serving) > 1 else ())
        if begin and len(run.waiting) <= sum(e.n_at_once for e in serving if e.index not in begin):
            self.ahead = Ahead(wish, run, begin)
            self.changed.notify_all()

    def take_over(self, alpha: float) -> bool:
        """Make what was begun ahead the present work, if it is of this alpha. The caller holds the lock."""
        if self.ahead is None or self.ahead.wish.alpha != alpha:
            return False
        self.wish, self.run, self.ahead = self.ahead.wish, self.ahead.run, None
        self.changed.notify_all()
        return True

    def set(self, index: int, **state: Any) -> None:
        """Say what an engine is at."""
        with self.changed:
            for name, value in state.items():
                setattr(self.engines[index], name, value)
            self.changed.notify_all()

    def end(self, fault: BaseException) -> None:
        """End the pool by a fault that another engine would have as well."""
        with self.changed:
            self.fault = self.fault or fault
            if self.run is not None:
                self.run.items.put(fault)
            self._fail_jobs(fault)
            self.changed.notify_all()

    def give_up(self, index: int, fault: BaseException) -> None:
        """Do without an engine; where it was the last one, whatever waits for one fails."""
        self.set(index, state="given up", n_prompts=0)
        with self.changed:
            if all(e.state == "given up" for e in self.engines):
                self._fail_jobs(self.all_lost(fault))

    def all_lost(self, fault: BaseException | None = None) -> EngineDied:
        """The error where no engine is left."""
        return EngineDied(
            where="engines",
            found=f"none of {len(self.engines)} is left; the last: {fault or self.last_loss}",
            expected="one that answers",
            do="see the log files (of Ray: /tmp/ray/session_latest/logs); the same command goes on from what is stored",
        )

    @contextmanager
    def starting_on(self, node: str) -> Iterator[None]:
        """Within it an engine of a node starts: the first one alone, so that it fills the node's compile caches."""
        with self.changed:
            while self._nodes.get(node) == "starting" and not self.closed:
                self.changed.wait()
            is_first = node not in self._nodes
            if is_first:
                self._nodes[node] = "starting"
        started = False
        try:
            yield
            started = True
        finally:
            if is_first:
                with self.changed:
                    if started:
                        self._nodes[node] = "ready"
                    else:
                        del self._nodes[node]
                    self.changed.notify_all()

    def sit_down(self, node: str) -> int:
        """Number of a part of a node that no other engine has."""
        with self.changed:
            taken = self._seats.setdefault(node, set())
            seat = next(i for i in range(len(taken) + 1) if i not in taken)
            taken.add(seat)
            return seat

    def stand_up(self, node: str, seat: int) -> None:
        """Let another engine have it."""
        with self.changed:
            self._seats[node].discard(seat)

    def same_facts(self, facts: Any) -> None:
        """Check that an engine is made of what the first one was.

        Raises:
            MaterializeError: it is not.
        """
        with self.changed:
            if self._facts is None:
                self._facts = facts
            if facts != self._facts:
                raise MaterializeError(
                    where="engines",
                    found=f"one with {facts} beside one with {self._facts}",
                    expected="the same weights in all of them",
                    do="see who writes to the checkpoints' folders",
                )

    @property
    def facts(self) -> Any:
        """Those of the first engine."""
        return self._facts

    def switched(self, index: int, wish: Wish, switch: Switch | None, fault: Exception | None = None) -> None:
        """Take what came of an engine's switch.

        Raises:
            MaterializeError: an engine that comes later than the others has other weights.
            ExpoError: one that comes later cannot switch: `fault`.
        """
        with self.changed:
            if switch is not None:
                if wish.fingerprint not in (None, switch.fingerprint):
                    raise MaterializeError(
                        where=f"engine {index} at alpha {wish.alpha:g}",
                        found=f"weights {switch.fingerprint}",
                        expected=f"{wish.fingerprint}, as the other engines have",
                        do="see who writes to the checkpoints' folders",
                    )
                wish.switches[index] = switch
            elif fault is not None:
                if wish.fingerprint is not None:  # nobody waits for it any more: it must not answer at another alpha
                    raise fault
                wish.faults[index] = fault
            self.changed.notify_all()

    def add_job(self, job: Job) -> None:
        """Have answers rated by the next engine that takes them."""
        with self.changed:
            if self.fault is not None or all(e.state == "given up" for e in self.engines):
                job.fail(self.fault or self.all_lost())
                return
            self._jobs.append(job)
            self.changed.notify_all()

    def take_job(self) -> Job | None:
        """The next answers to rate, if there are any. The caller holds the lock."""
        while self._jobs:
            job = self._jobs.popleft()
            if not job.future.cancelled():
                return job
        return None

    def take_prompts(self, engine: EngineState) -> list[Prompt]:
        """The next prompts for an engine: as many as keep it busy, and no more than its part of what there is to do.

        The caller holds the lock. The part: what waits and what is under way, over the engines that do the same work.
        """
        run = self.of(engine.index)[1]
        serving = [e for e in self.serving() if self.of(e.index)[1] is run]
        if run is None or not run.waiting:
            return []
        part = -(-(len(run.waiting) + sum(e.n_prompts for e in serving)) // len(serving))
        most = engine.n_at_once + engine.n_at_once // _SLACK
        n = min(len(run.waiting), max(0, min(part, most) - engine.n_prompts))
        return [run.waiting.popleft() for _ in range(n)]

    def put_back(self, run: Run | None, prompts: Sequence[Prompt], jobs: Sequence[Job], fault: BaseException) -> None:
        """Take back what an engine had that is lost."""
        with self.changed:
            self.last_loss = fault
            if run is not None:
                run.put_back(prompts, fault)
            for job in reversed(jobs):
                job.n_returns += 1
                if job.n_returns < _MOST_RETURNS:
                    self._jobs.appendleft(job)
                else:
                    job.fail(_lost_at(f"answers from prompt {job.completions[0].prompt.id} on", "rated them", fault))
            if self.ahead is not None and {e.index for e in self.serving()} <= self.ahead.engines:
                self.ahead = None  # what is wanted now has no other engines
            self.changed.notify_all()

    def _fail_jobs(self, fault: BaseException) -> None:
        while (job := self.take_job()) is not None:
            job.fail(fault)


def _lost_at(what: str, they: str, fault: BaseException) -> EngineDied:
    return EngineDied(
        where=what,
        found=f"{_MOST_RETURNS} engines were lost while they {they}; the last: {fault}",
        expected="engines that answer",
        do="see the log file; the same command goes on from what is stored",
    )
