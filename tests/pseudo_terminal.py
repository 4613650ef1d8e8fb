"""A command on a terminal that a test holds the other end of."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_AGAIN_S = 30.0


def on_a_terminal(words: Sequence[str], folder: Path, *, until: bytes = b"", typed: bytes = b"") -> tuple[int, str]:
    """Exit code of Python with these words in a folder, and all that it shows; `typed` once it shows `until`.

    Typed again where nothing comes of it, as a person would: a Ctrl-C in the moment between Python's last look for
    signals and its wait for a line does not wake it. A command that has not ended after 100 s is killed.
    """
    process, terminal = pty.fork()
    if process == 0:
        path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, *words])
    shown, deadline, again = b"", time.monotonic() + 100, float("inf")
    while time.monotonic() < deadline:
        if time.monotonic() > again:
            os.write(terminal, typed)
            again += _AGAIN_S
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            break
        shown += data
        if typed and until in shown and again == float("inf"):
            time.sleep(0.5)  # until it waits for a line
            os.write(terminal, typed)
            again = time.monotonic() + _AGAIN_S
    else:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()
