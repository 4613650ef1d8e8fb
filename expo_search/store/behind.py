"""Writes that are made beside the search, in the order in which they were given: a far database costs it little time.

At any moment the database holds all that was given up to some point, and nothing after it, as if the process had
stopped there; a kill loses what is waiting, which is little more than one transaction's time. What waits while a
transaction is under way shares the next one. After a fault nothing more is written, and whoever writes or waits next
gets it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy.orm import Session

from expo_search.store.optuna_rows import AttributeRow, write_attributes

_MOST = 100  # writes of one transaction, which has to be over before a server counts as hung (`server.HUNG_S`)


@dataclass(frozen=True)
class _Step:
    """Something that makes transactions of its own."""

    work: Callable[[], None]


Write = Callable[[Session], None] | AttributeRow | _Step


class Writer:
    """A thread that writes. `transact` makes a transaction of what it is given, again where a connection was lost."""

    def __init__(self, transact: Callable[[Callable[[Session], None]], None]) -> None:
        self._transact = transact
        self._waiting: deque[Write] = deque()
        self._n_given = self._n_written = 0
        self._fault: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="expo-search writer", daemon=True)
        self._thread.start()

    def put(self, write: Callable[[Session], None] | AttributeRow) -> None:
        """Write in a transaction, with what is given before and after it. It must bear being made twice.

        Raises:
            ExpoError: an earlier write could not be made.
        """
        self._put(write)

    def put_step(self, work: Callable[[], None]) -> None:
        """Do something that makes its own transactions, and waits for a lost connection itself. Raises as `put`."""
        self._put(_Step(work))

    def flush(self) -> None:
        """Wait until all that was given is written. Raises as `put`."""
        with self._changed:
            wanted = self._n_given
            self._changed.wait_for(lambda: self._fault is not None or self._n_written >= wanted)
            self._raise_fault()

    def close(self) -> None:
        """`flush`, and end the thread; it ends by itself where whoever waits for it is interrupted. Raises as `put`."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
        self._thread.join()

    def _put(self, write: Write) -> None:
        with self._changed:
            self._raise_fault()
            self._waiting.append(write)
            self._n_given += 1
            self._changed.notify_all()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._write(batch)
            except BaseException as fault:
                with self._changed:
                    self._fault = fault
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._n_written += len(batch)
                self._changed.notify_all()

    def _next(self) -> list[Write]:
        """A step, or all up to the next one; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            batch = [self._waiting.popleft()] if self._waiting else []
            if not batch or isinstance(batch[0], _Step):
                return batch
            while len(batch) < _MOST and self._waiting and not isinstance(self._waiting[0], _Step):
                batch.append(self._waiting.popleft())
            return batch

    def _write(self, batch: Sequence[Write]) -> None:
        if isinstance(batch[0], _Step):
            batch[0].work()
            return

        def work(session: Session) -> None:
            for is_row, writes in groupby(batch, key=lambda write: isinstance(write, AttributeRow)):
                if is_row:
                    write_attributes(session, [row for row in writes if isinstance(row, AttributeRow)])
                    continue
                for write in writes:
                    assert callable(write)
                    write(session)

        self._transact(work)
