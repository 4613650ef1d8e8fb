"""Keeps the libraries' own output (vLLM's log, warnings, progress bars, native code) out of the terminal."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from expo_search.errors import StudyError


@contextmanager
def library_output_to(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Send file descriptors 1 and 2, which worker processes inherit, to the end of `log`.

    Yields:
        Streams to the real standard output and standard error. They are put back at the end, also after an error;
        what the libraries say when the process ends goes to `log` too, after any traceback of ours.

    Raises:
        StudyError: the log file cannot be written.
    """
    try:
        is_new = not log.exists()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as fault:
        raise StudyError(
            where=f"--log {log}", found=str(fault), expected="a file that can be written", do="give another path"
        ) from None
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    out, err = (os.fdopen(os.dup(fd), "w", buffering=1, encoding="utf-8", errors="replace") for fd in saved)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield out, err
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        out.close()
        err.close()
        for target, fd in zip((1, 2), saved, strict=True):
            os.dup2(fd, target)
            os.close(fd)
        os.close(file)
        with suppress(OSError):  # somebody has removed it meanwhile
            if is_new and log.stat().st_size == 0:
                log.unlink()
        # last registered, first called: native libraries count what they leaked when the interpreter is gone
        atexit.register(_send_output_to, log.absolute())


def _send_output_to(log: Path) -> None:
    """From now on, for good: what this process prints goes to the log, or nowhere where there is none any more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    with suppress(OSError):  # a log that may no longer be written to
        file = os.open(log if log.exists() else os.devnull, os.O_WRONLY | os.O_APPEND)
        for target in (1, 2):
            os.dup2(file, target)
