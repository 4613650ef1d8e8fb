"""Many engines as one model and one scorer: the prompts of a trial are spread over them, so a search stays as it is.

Each engine is at the same alpha, by equal fingerprints, and takes prompts as it has room. A lost one gives its prompts
back to the others and is started anew beside them; a trial fails when none is left.

Where the present prompts do not fill the engines, half of them may begin with the alpha that is expected next. What
comes of it is kept until that alpha is set, and dropped where another one is: nobody sees a difference but in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty
from typing import Any

from expo_search.contracts import Completion, Prompt, Switch
from expo_search.errors import MaterializeError
from expo_search.pool.actor import Recipe
from expo_search.pool.cluster import Cluster, Place
from expo_search.pool.member import Member
from expo_search.pool.state import Board, EngineState, Job, Run, Wish

_LOOK_S = 0.5
_JOIN_S = 40.0
_NO_PLACE_S = 600.0


class Pool:
    """N engines, started; a `Model`, and a `BackgroundScorer` where its engines come with scorers.

    Where each comes with several reward models it rates as `PooledRewardModels`.
    """

    def __init__(
        self,
        cluster: Cluster,
        recipe: Recipe,
        place: Place,
        n_engines: int,
        *,
        limit_s: float = 660.0,
        no_place_s: float = _NO_PLACE_S,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start all engines, on any nodes that have a place: the first of a node alone, then its others at once.

        Args:
            limit_s: seconds without an answer to a call, after which an engine counts as lost; longer than the engine's
                own limit, which says more.
            no_place_s: seconds for which a place for an engine is waited for while none serves or starts. Where some
                serve, the others join as soon as they have one; the start waits as long for them.
            say: gets a line about each engine that is lost, from another thread, and about those without a place.

        Raises:
            ExpoError: an engine does not start, or has other weights than the first one.
        """
        self._board = Board(n_engines)
        self._n_wishes = self._n_dropped_tokens = 0
        self._begun: Run | None = None  # ahead of the alpha that is set now

        def member(index: int) -> Member:
            return Member(
                index,
                self._board,
                cluster,
                recipe,
                place,
                limit_s=limit_s,
                no_place_s=no_place_s,
                say=say,
            )

        self._member = member
        self._members = [member(i) for i in range(n_engines)]
        for thread in self._members:
            thread.start()
        try:
            self._wait_for_start(no_place_s, say)
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> Any:
        """What the recipe said of its engine; the same of all."""
        return self._board.facts

    def engines(self) -> list[EngineState]:
        """The engines as they are now."""
        return self._board.snapshot()

    def materialize(self, alpha: float) -> Switch:
        """As `Model.materialize`, in all engines; its seconds are those of the slowest.

        Raises:
            MaterializeError: an engine cannot, or two have other weights.
            EngineDied: none is left.
        """
        board = self._board
        with board.changed:
            self._drop(self._begun)
            if board.take_over(alpha):
                self._begun = board.run
            else:
                self._drop(None if board.ahead is None else board.ahead.run)
                board.run = board.ahead = self._begun = None
                board.wish = self._new_wish(alpha)
                board.changed.notify_all()
            wish = board.wish
            assert wish is not None, "just set"

        def is_over() -> bool:
            serving = {e.index for e in board.serving()}
            return bool(serving) and serving <= wish.switches.keys() | wish.faults.keys()

        self._wait_until(is_over)
        with board.changed:
            for fault in wish.faults.values():
                board.wish = board.run = None
                raise fault
            fingerprints = {s.fingerprint for s in wish.switches.values()}
            if len(fingerprints) > 1:
                of = ", ".join(f"engine {i + 1}: {s.fingerprint}" for i, s in sorted(wish.switches.items()))
                board.wish = board.run = None
                raise MaterializeError(
                    where=f"alpha {alpha:g}",
                    found=f"other weights in one engine than in another ({of})",
                    expected="the same in all",
                    do="report this, with the log files",
                )
            wish.fingerprint = fingerprints.pop()
        return max(wish.switches.values(), key=lambda s: s.seconds)

    def answer_ahead(self, alpha: float, prompts: Sequence[Prompt], seed: int) -> None:
        """As `AheadModel.answer_ahead`, by at most half of the engines; none where as many prompts fill the others."""
        with self._board.changed:
            self._board.look_ahead(self._new_wish(alpha), Run(prompts, seed))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        """As `Model.generate`, by whichever engine has room for a prompt; goes on with what was begun ahead.

        Tokens that were begun ahead for nothing count with those of the next prompts.
        """
        n_left = len(prompts)
        with self._board.changed:
            begun, self._begun = self._begun, None
            if begun is None or not begun.becomes(prompts, seed):
                self._drop(begun)
                begun = Run(prompts, seed)
            run = self._board.run = begun
            self._board.changed.notify_all()
        try:
            if self._n_dropped_tokens:
                dropped, self._n_dropped_tokens = self._n_dropped_tokens, 0
                yield dropped
            while n_left:
                try:
                    item = run.items.get(timeout=_LOOK_S)
                except Empty:
                    with self._board.changed:
                        self._check()
                    continue
                if isinstance(item, BaseException):
                    raise item
                n_left -= not isinstance(item, int)
                yield item
        finally:
            with self._board.changed:
                self._board.run = None
                self._board.changed.notify_all()

    def restart(self) -> None:
        """Start the engines anew that were given up; at least one serves afterwards.

        Raises:
            EngineDied: none starts.
        """
        for index, thread in enumerate(self._members):
            if self._board.engines[index].state == "given up":
                thread.join()
                self._board.set(index, state="waiting")
                self._members[index] = self._member(index)
                self._members[index].start()
        self._wait_until(lambda: bool(self._board.serving()))

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[Any], int]]:
        """As `BackgroundScorer.begin`, by the first engine that has time."""
        job = Job(completions)
        self._board.add_job(job)
        return job.future

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[Any], int]:
        """As `Scorer.score`."""
        rated = self.begin(completions).result()
        on_scored(len(completions))
        return rated

    def close(self) -> None:
        """End all engines."""
        with self._board.changed:
            self._board.closed = True
            self._board.changed.notify_all()
        for thread in self._members:
            if thread.ident is not None:
                thread.join(_JOIN_S)

    def _wait_for_start(self, no_place_s: float, say: Callable[[str], None]) -> None:
        """Wait for all engines, but for those that still have no place so long after the others have started."""
        since = time.monotonic()

        def is_over() -> bool:
            nonlocal since
            states = {e.state for e in self._board.engines}
            if "starting" in states or not self._board.serving():
                since = time.monotonic()
                return False
            return "waiting" not in states or time.monotonic() - since > no_place_s

        self._wait_until(is_over)
        self._board.has_started = True
        n = sum(e.state == "waiting" for e in self.engines())
        if n:
            of = f"{n} of {len(self._members)} engines"
            say(f"no place in the cluster for {of} in {no_place_s:g} s: an engine joins as soon as it has one")

    def _new_wish(self, alpha: float) -> Wish:
        self._n_wishes += 1
        return Wish(self._n_wishes, alpha)

    def _drop(self, run: Run | None) -> None:
        if run is not None:
            self._n_dropped_tokens += run.n_tokens()

    def _wait_until(self, is_over: Callable[[], bool]) -> None:
        """Wait for the board's state.

        Raises:
            EngineDied: no engine is left.
            Exception: what ended the pool.
        """
        with self._board.changed:
            while not is_over():
                self._check()
                self._board.changed.wait(_LOOK_S)
            self._check()

    def _check(self) -> None:
        """Raise where the pool is at its end. The caller holds the lock."""
        if self._board.fault is not None:
            raise self._board.fault
        if all(e.state == "given up" for e in self._board.engines):
            raise self._board.all_lost()


class PooledRewardModels:
    """A pool whose engines come with several reward models each, as a `BackgroundEnsembleScorer`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[tuple[float, ...]], int]]:
        """As `BackgroundEnsembleScorer.begin`, by the first engine that has time."""
        return self._pool.begin(completions)

    def score_each(
        self, completions: Sequence[Completion], on_scored: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], int]:
        """As `EnsembleScorer.score_each`."""
        return self._pool.score(completions, on_scored)
