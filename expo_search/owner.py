"""An engine's processes end with the process that started them, whatever ends that.

vLLM's would wait forever, and Ray's for a minute where an orphan's new parent is not process 1: in a desktop session,
or below a process that uses Ray as well.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress


def end_with(owner: int, processes: Sequence[int]) -> None:
    """From now on, kill these processes as soon as `owner` has ended; this one last, if it is among them.

    Linux only. A thread waits, and costs nothing meanwhile.
    """
    descriptor = os.pidfd_open(owner)

    def wait() -> None:
        select.select([descriptor], [], [])
        for pid in sorted(processes, key=lambda pid: pid == os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=wait, name="expo-search owner", daemon=True).start()
