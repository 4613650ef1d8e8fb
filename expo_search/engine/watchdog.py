"""Calls into an engine -> `EngineDied` where one never comes back: no token for too long, or a process that is gone.

vLLM's client waits forever for the answer of an engine process that was killed or hangs. A thread watches, and raises
in the main thread, which ends a wait for a lock, a queue or a socket. Code that does not return to Python at
all (an engine in this process, stuck in a kernel) can only be ended with the process; what is stored is intact.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from expo_search.errors import EngineDied

_LOOK_S = 0.5
GRACE_S = 30.0  # from the signal until the main thread is given up
_SIGNAL = signal.SIGURG  # ignored unless a handler is there: one that comes too late harms nothing


class Watchdog:
    """Watches the calls of one engine. Only the main thread can be signalled: in any other it does nothing.

    `give_up` is called from another thread where a call cannot be interrupted; it should end the process.

    Attributes:
        processes: ids of the engine's own processes; none where it runs in this one.
    """

    def __init__(self, timeout_s: float, give_up: Callable[[EngineDied], None] | None = None) -> None:
        self.processes: Sequence[int] = ()
        self._timeout_s, self._give_up = timeout_s, give_up
        self._left_s = timeout_s
        self._deadline: float | None = None  # of the watched call under way
        self._found: EngineDied | None = None
        self._closed = threading.Event()
        self._main = threading.main_thread()
        if threading.current_thread() is self._main:
            threading.Thread(target=self._look, name="expo-search watchdog", daemon=True).start()

    def progress(self) -> None:
        """Restart the time limit, because a token or an answer has come."""
        self._left_s = self._timeout_s

    @contextmanager
    def watching(self, *, timed: bool = True) -> Iterator[None]:
        """Watch a call. Time between calls does not count, time without progress adds up over them.

        One that is not `timed` may take as long as it wants, and is watched for processes that end.

        Raises:
            EngineDied: the call took too long, or a process of the engine has ended.
        """
        if threading.current_thread() is not self._main:
            yield
            return
        started = time.monotonic()
        before = signal.signal(_SIGNAL, self._on_signal)
        self._deadline = started + self._left_s if timed else math.inf
        try:
            yield
        finally:
            self._deadline = None
            signal.signal(_SIGNAL, before)
            self._left_s -= time.monotonic() - started if timed else 0.0
        if self._left_s <= 0:
            raise self._hung()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _on_signal(self, _: int, __: FrameType | None) -> None:
        if self._deadline is not None and self._found is not None:
            self._deadline = None
            raise self._found

    def _look(self) -> None:
        while not self._closed.wait(_LOOK_S):
            deadline = self._deadline
            if deadline is None:
                continue
            fault = self._ended() or (self._hung() if time.monotonic() > deadline else None)
            if fault is None:
                continue
            self._found = fault
            signal.pthread_kill(self._main.ident or 0, _SIGNAL)
            given_up_at = time.monotonic() + GRACE_S
            while self._deadline == deadline and not self._closed.wait(_LOOK_S):
                if self._give_up is not None and time.monotonic() > given_up_at:
                    self._give_up(fault)

    def _ended(self) -> EngineDied | None:
        import psutil

        for pid in self.processes:
            try:
                if psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    continue
            except psutil.NoSuchProcess:
                pass
            return EngineDied(
                where="vLLM engine",
                found=f"its process {pid} has ended (killed, or out of memory)",
                expected="an engine that runs",
                do="see the log file and the kernel's; the same command goes on from what is stored",
            )
        return None

    def _hung(self) -> EngineDied:
        return EngineDied(
            where="vLLM engine",
            found=f"no token for {self._timeout_s:g} s",
            expected="an engine that answers",
            do="see the log file; the same command goes on from what is stored, --engine-timeout waits longer",
        )
