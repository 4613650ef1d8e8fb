"""Ctrl-C and SIGTERM -> a request to stop at the next look; a second one stops now.

What is finished is in the database at any time, so stopping now loses only answers that are not finished.
"""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

AGAIN = "--again"  # of `bench`: forget what is stored
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within it, the first signal is a request, which the yielded function tells of; the second raises.

    Only the main thread can have signals; in another one nothing changes.

    Raises:
        KeyboardInterrupt: at the second signal.
    """
    requests: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        requests.append(number)
        if len(requests) > 1:
            raise KeyboardInterrupt
        say("stopping once this part of the prompts is answered and stored; Ctrl-C again stops now")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminate_as_ctrl_c() -> None:
    """SIGTERM from now on raises KeyboardInterrupt, as Ctrl-C does: machines that are taken away send it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def same_command(arguments: Sequence[str]) -> str:
    """The command line that goes on: without `--again`, which forgets what is stored, and a database's password."""
    from expo_search.text import shown

    kept = [a for a in arguments if a != AGAIN]
    return shlex.join(["expo-search", *(shown(a) if "://" in a else a for a in kept)])
