"""A command on a terminal that a test holds the other end of."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from commands import Command

_AGAIN_S = 30.0


def on_a_terminal(
    folder: Path, *words: str, until: bytes = b"", typed: bytes = b"", before: Callable[[], object] | None = None
) -> tuple[int, str]:
    """Exit code of a command with these words in a folder, and all that it shows; `typed` once it shows `until`.

    With `before`, which is called in the new process, it is forked (commands.py); else an interpreter starts for it.
    Typed again where nothing comes of it, as a person would: a Ctrl-C in the moment between Python's last look for
    signals and its wait for a line does not wake it. A command that has not ended after 100 s is killed.
    """
    terminal, other_end = pty.openpty()
    device = os.ttyname(other_end)
    process: Command | subprocess.Popen[bytes]
    if before is not None:
        process = Command(folder, *words, before=before, terminal=device)
    else:
        process = subprocess.Popen(
            [sys.executable, "-m", "expo_search", *words],
            cwd=folder,
            preexec_fn=lambda: os.login_tty(os.open(device, os.O_RDWR)),
        )
    shown, deadline, again = b"", time.monotonic() + 100, float("inf")
    while time.monotonic() < deadline and (process.poll() is None or select.select([terminal], [], [], 0)[0]):
        if time.monotonic() > again:
            os.write(terminal, typed)
            again += _AGAIN_S
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        shown += os.read(terminal, 65536)
        if typed and until in shown and again == float("inf"):
            time.sleep(0.5)  # until it waits for a line
            os.write(terminal, typed)
            again = time.monotonic() + _AGAIN_S
    process.kill()
    code = process.wait()
    os.close(other_end)
    os.close(terminal)
    return code, shown.decode()
