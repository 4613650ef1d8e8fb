"""The watchdog: a call that does not come back is an error, wherever it waits, and one that does is left alone."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from expo_search.engine.watchdog import Watchdog
from expo_search.errors import EngineDied


def never(_: EngineDied) -> None:
    raise AssertionError("the main thread could be interrupted")


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    found = Watchdog(0.3, never)
    yield found
    found.close()


def wait_for_a_socket() -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind("inproc://nobody")
        socket.recv()


WAITS: dict[str, Callable[[], object]] = {
    "a queue": lambda: queue.Queue[int]().get(),
    "a future": lambda: Future[int]().result(),
    "a lock": lambda: threading.Event().wait(),
    "a sleep": lambda: time.sleep(60),
    "a socket": wait_for_a_socket,
    "work in Python": lambda: [x for x in iter(int, 1) if x],
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_call_that_hangs_is_interrupted_wherever_it_waits(watchdog: Watchdog, wait: str) -> None:
    started = time.monotonic()
    with pytest.raises(EngineDied, match=r"no token for 0\.3 s"), watchdog.watching():
        WAITS[wait]()
    assert time.monotonic() - started >= 0.3


def test_time_between_calls_does_not_count_and_time_in_calls_without_a_token_adds_up(watchdog: Watchdog) -> None:
    for _ in range(3):
        with watchdog.watching():
            pass
        time.sleep(0.4)

    def calls_without_a_token() -> None:
        for _ in range(20):
            with watchdog.watching():
                time.sleep(0.05)

    with pytest.raises(EngineDied):
        calls_without_a_token()


def test_a_token_starts_the_time_anew() -> None:
    watchdog = Watchdog(1.0, never)
    for _ in range(15):
        with watchdog.watching():
            time.sleep(0.1)
        watchdog.progress()
    watchdog.close()


def test_a_process_of_the_engine_that_has_ended_is_noticed_long_before_the_time_is_up() -> None:
    watchdog = Watchdog(600, never)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watchdog.processes = [process.pid]
    started = time.monotonic()
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(EngineDied, match=f"its process {process.pid} has ended"), watchdog.watching():
        Future[int]().result()
    assert time.monotonic() - started < 300
    process.communicate()
    watchdog.close()


def test_a_signal_that_comes_when_nothing_is_watched_harms_nothing(watchdog: Watchdog) -> None:
    before = signal.getsignal(signal.SIGURG)
    with watchdog.watching():
        pass
    assert signal.getsignal(signal.SIGURG) == before
    signal.raise_signal(signal.SIGURG)


STUCK = """
import hashlib, sys
import expo_search.engine.watchdog as w
from expo_search.cli.console import give_up_on
from expo_search.cli.console import console_on
w.GRACE_S = 0.5
watchdog = w.Watchdog(0.3, give_up_on(console_on(sys.stderr)))
with watchdog.watching():
    hashlib.pbkdf2_hmac("sha256", b"stuck in", b"native code", 10**9)
"""


def test_a_call_stuck_in_native_code_ends_the_process_with_the_one_line() -> None:
    found = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 2
    assert found.stderr.startswith("expo-search: vLLM engine: no token for 0.3 s; expected an engine that answers; ")
    assert found.stderr.count("\n") == 1


def test_in_another_thread_calls_are_made_unwatched(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> None:
        watchdog = Watchdog(0.01, never)
        with watchdog.watching():
            time.sleep(0.1)
        done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]


def test_a_call_that_is_not_timed_may_last_and_is_still_watched_for_processes_that_end() -> None:
    watchdog = Watchdog(1.0, never)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watchdog.processes = [process.pid]
    with watchdog.watching(timed=False):
        time.sleep(1.2)
    with watchdog.watching():  # and what it took does not count
        time.sleep(0.1)
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(EngineDied, match="has ended"), watchdog.watching(timed=False):
        Future[int]().result(timeout=60)
    process.communicate()
    watchdog.close()
