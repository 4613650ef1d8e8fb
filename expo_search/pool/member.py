"""One engine of a pool and the thread that serves it: start it, keep it busy, start it anew when it is lost.

Two calls are under way at any time, so that an engine never waits for this process; each gives it a fifth of a second
of work. A switch, and the end of a trial, wait for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from expo_search.contracts import Prompt
from expo_search.errors import EngineDied, ExpoError
from expo_search.pool.actor import Recipe, Share, Worked
from expo_search.pool.cluster import Cluster, EngineLost, NotYet, Place, Spot, first_line
from expo_search.pool.state import Board, Job, Run, Wish

_AHEAD = 2  # calls under way
_WORK_S = 0.2  # of a call
_STARTS = 3  # in a row, without an answer in between
_PAUSE_S = 1.0  # between two starts, twice as long each time
_CLOSE_S = 20.0
_POLL_S = 1.0
_NEW_RATE = 0.3  # share of the last call in the rate that is shown


class _Closed(Exception):
    """The pool is closed."""


@dataclass
class _Call:
    """One call that is under way, and what it is for."""

    ref: Any
    run: Run | None = None
    job: Job | None = None


class Member(threading.Thread):
    """Serves one engine until the pool is closed, or the engine is given up."""

    def __init__(
        self,
        index: int,
        board: Board,
        cluster: Cluster,
        recipe: Recipe,
        place: Place,
        *,
        limit_s: float,
        no_place_s: float,
        say: Callable[[str], None],
    ) -> None:
        """A thread that is not started yet.

        Args:
            limit_s: seconds for a call that answers or switches, after which the engine counts as lost.
            no_place_s: seconds for which a place is waited for while no engine serves or starts.
        """
        super().__init__(name=f"expo-search engine {index}", daemon=True)
        self._index, self._board, self._cluster, self._recipe, self._place = index, board, cluster, recipe, place
        self._limit_s, self._no_place_s, self._say = limit_s, no_place_s, say
        self._engine = board.engines[index]
        self._actor: Any = None
        self._spot: Spot | None = None
        self._seat = 0
        self._n_starts = 0
        self._forget()

    def _forget(self) -> None:
        self._calls: deque[_Call] = deque()
        self._run: Run | None = None
        self._mine: list[Prompt] = []  # prompts of that run which it holds
        self._wish = 0
        self._delivered = time.monotonic()

    def run(self) -> None:
        """Serve the engine; while the pool starts, any error but a lost engine ends it."""
        try:
            while self._live():
                pass
        except _Closed:
            self._let_go(gently=True)
        except BaseException as fault:  # into the caller's thread, with the traceback
            self._let_go(gently=False)
            for call in self._calls:  # answers that it was rating
                if call.job is not None:
                    call.job.fail(fault)
            self._board.end(fault)

    def _live(self) -> bool:
        """One life of the engine, from its start to its loss; whether it is to have another one."""
        try:
            self._start()
            self._serve()
        except _Closed:
            raise
        except (EngineLost, EngineDied) as lost:
            fault: Exception = lost
        except Exception as other:  # of any kind: a GPU's or a file system's may pass with the process or the node
            if not self._board.has_started:
                raise
            fault = other
            if not isinstance(other, ExpoError):
                fault = EngineLost(f"{type(other).__name__}: {first_line(other)}")
                fault.__cause__ = other
        logging.getLogger(__name__).error("engine %d is lost", self._index, exc_info=fault)
        self._let_go(gently=not isinstance(fault, EngineLost))
        jobs = [call.job for call in self._calls if call.job is not None]
        n_prompts = len(self._mine)
        self._board.set(self._index, state="waiting", n_prompts=0, tokens_per_s=0.0, node="")
        self._board.put_back(self._run, self._mine, jobs, fault)
        self._forget()
        more = self._n_starts < _STARTS and not isinstance(fault, _NoPlace)
        starts = f"{self._n_starts} start{'s' * (self._n_starts > 1)}"
        then = "it is started anew" if more else f"given up after {starts}"
        back = f"; its {n_prompts} prompts go back" if n_prompts else ""
        self._say(f"engine {self._index + 1} is lost: {fault}{back}; {then}")
        if not more:
            self._board.give_up(self._index, fault)
            return False
        self._pause(_PAUSE_S * 2 ** (self._n_starts - 1))
        return True

    def _start(self) -> None:
        """Take a place, and start the engine there.

        Raises:
            ExpoError: it does not start, or is another one than the others.
            EngineLost: its process or its node is no more.
        """
        self._n_starts += 1
        group = self._cluster.take(self._place)
        try:
            spot = self._wait_for_place(group)
        except BaseException:
            self._cluster.give_up(group)
            raise
        self._spot, self._seat = spot, self._board.sit_down(spot.node)
        self._board.set(self._index, node=spot.name)
        with self._board.starting_on(spot.node):
            self._board.set(self._index, state="starting")
            self._actor = self._cluster.actor(self._recipe, self._place, spot)
            share = Share(self._seat, max(spot.n_engines, self._seat + 1))
            facts, n_at_once = self._wait(self._call("start", share), None)
        self._board.same_facts(facts)
        self._board.set(self._index, state="idle", n_at_once=n_at_once)

    def _wait_for_place(self, group: Any) -> Spot:
        begun = time.monotonic()
        while True:
            spot = self._cluster.spot(group, self._place, _POLL_S)
            if spot is not None:
                return spot
            with self._board.changed:
                if self._board.closed:
                    raise _Closed
                if any(e.serves or e.state == "starting" for e in self._board.engines):
                    begun = time.monotonic()
                if time.monotonic() - begun > self._no_place_s:
                    raise _NoPlace(f"no place for it in the cluster for {self._no_place_s:g} s")

    def _serve(self) -> None:
        while True:
            with self._board.changed:
                while (act := self._next()) is None:
                    self._board.changed.wait()
            act()

    def _next(self) -> Callable[[], None] | None:
        """What to do now; None: wait. The caller holds the lock."""
        board = self._board
        if board.closed:
            raise _Closed
        wish, run = board.of(self._index)
        if self._run is not None and self._run is not run:  # it is over, or was ended
            self._run, n_left, self._mine = None, len(self._mine), []
            self._engine.n_prompts, self._engine.state, self._engine.tokens_per_s = 0, "idle", 0.0
            if n_left:
                return self._abort
        if wish is not None and wish.number != self._wish:
            return self._collect if self._calls else partial(self._switch, wish)
        if len(self._calls) < _AHEAD:
            job = board.take_job()
            if job is not None:
                return partial(self._rate, job)
            prompts = board.take_prompts(self._engine)
            if prompts or self._mine:
                self._run = run
                self._mine += prompts
                self._engine.n_prompts, self._engine.state = len(self._mine), "answering"
                return partial(self._work, prompts)
        return self._collect if self._calls else None

    def _abort(self) -> None:
        self._calls.append(_Call(self._call("abort")))

    def _rate(self, job: Job) -> None:
        self._calls.append(_Call(None, job=job))  # first, so that it goes back where the call cannot be made
        self._calls[-1].ref = self._call("score", job.completions)

    def _work(self, prompts: list[Prompt]) -> None:
        run = self._run
        assert run is not None, "set with the prompts"
        self._calls.append(_Call(self._call("work", prompts, run.seed, _WORK_S), run=run))

    def _switch(self, wish: Wish) -> None:
        self._wish = wish.number
        try:
            switch = self._wait(self._call("materialize", wish.alpha), self._limit_s)
        except EngineDied:
            raise
        except ExpoError as fault:
            self._board.switched(self._index, wish, None, fault)
        else:
            self._board.switched(self._index, wish, switch)

    def _collect(self) -> None:
        """Take what came of the oldest call."""
        call = self._calls[0]
        fault: Exception | None = None
        value: Any = None
        try:  # rating has no limit: how long a batch takes nobody knows
            value = self._wait(call.ref, None if call.job is not None else self._limit_s)
        except EngineDied:
            raise
        except ExpoError as raised:
            fault = raised
        self._calls.popleft()
        if call.job is not None:
            if fault is not None:
                call.job.fail(fault)
            else:
                call.job.succeed(value)
        elif call.run is not None:
            self._deliver(call.run, value, fault)
        elif fault is not None:  # an engine that cannot even drop its prompts
            raise EngineLost(str(fault))

    def _deliver(self, run: Run, worked: Worked | None, fault: Exception | None) -> None:
        with self._board.changed:
            if run is not self._board.of(self._index)[1]:
                return
            if worked is None:
                assert fault is not None
                run.items.put(fault)
                return
            for completion in worked.completions:
                self._mine.remove(completion.prompt)
            if worked.completions:
                self._n_starts = 0
            now = time.monotonic()
            rate = worked.n_tokens / max(now - self._delivered, worked.seconds, 1e-3)
            self._delivered = now
            self._engine.tokens_per_s += _NEW_RATE * (rate - self._engine.tokens_per_s)
            self._engine.n_prompts = len(self._mine)
            self._engine.state = "answering" if self._mine else "idle"
        run.items.put(worked.n_tokens)
        for completion in worked.completions:
            run.items.put(completion)

    def _call(self, method: str, *args: object) -> Any:
        return self._cluster.call(self._actor, method, *args)

    def _wait(self, ref: Any, limit_s: float | None) -> Any:
        """What a call returned.

        Raises:
            EngineLost: the limit is over, or see `Cluster.result`.
            Exception: whatever the call raised.
        """
        begun = time.monotonic()
        while True:
            try:
                return self._cluster.result(ref, _POLL_S)
            except NotYet:
                if self._board.closed:
                    raise _Closed from None
                if limit_s is not None and time.monotonic() - begun > limit_s:
                    raise EngineLost(f"no answer for {limit_s:g} s") from None

    def _let_go(self, *, gently: bool) -> None:
        """End the engine's process, and give its place back."""
        actor, spot, self._actor, self._spot = self._actor, self._spot, None, None
        if actor is not None:
            if gently:
                try:
                    self._cluster.result(self._cluster.call(actor, "close"), _CLOSE_S)
                except Exception:  # whatever it is: the process ends now
                    logging.getLogger(__name__).warning("engine %d did not close", self._index, exc_info=True)
            self._cluster.kill(actor)
        if spot is not None:
            self._cluster.give_up(spot.group)
            self._board.stand_up(spot.node, self._seat)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._board.changed:
            while not self._board.closed and time.monotonic() < end:
                self._board.changed.wait(max(0.0, end - time.monotonic()))
            if self._board.closed:
                raise _Closed


class _NoPlace(EngineLost):
    """The cluster has no place for the engine."""
