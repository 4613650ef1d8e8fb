"""A command on a terminal that a test holds the other end of."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def on_a_terminal(words: Sequence[str], folder: Path, *, until: bytes = b"", typed: bytes = b"") -> tuple[int, str]:
    """Exit code of Python with these words in a folder, and all that it shows; `typed` once it shows `until`."""
    process, terminal = pty.fork()
    if process == 0:
        path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, *words])
    shown, deadline = b"", time.monotonic() + 100
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            break
        shown += data
        if typed and until in shown:
            os.write(terminal, typed)
            typed = b""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), shown.decode()
