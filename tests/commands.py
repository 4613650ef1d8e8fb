"""The command in a process of its own, forked from one that has the libraries, whose import is most of a small search.

What a test of the command does, signals and kills too, is done to a process as a user's. What is read when a library is
imported (a Hub's address, the number of threads) is this process's, so a test of that starts an interpreter itself, as
do those of the start (test_start.py, test_imports.py), and the first search of test_end_to_end.py.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LIBRARIES = [
    "expo_search.api",
    "expo_search.cli.main",
    "expo_search.engine.model",
    "expo_search.evaluation.reward_model",
    "expo_search.results.dashboard_updates",
    "expo_search.session.running",
    "datasets",
    "matplotlib.figure",
    "optuna.storages",
    "optuna_dashboard",
    "plotly.graph_objects",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.worker.cpu_worker",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_LIBRARIES)


class Command:
    """A command that runs in `folder`, its output in files; otherwise as a `subprocess.Popen` of text."""

    def __init__(
        self,
        folder: Path,
        *words: str,
        environment: dict[str, str] | None = None,
        before: Callable[[], object] = dict,
        terminal: str = os.devnull,
    ) -> None:
        """`environment` is beside this process's; `before` is called in the new one.

        On a `terminal`, a device, it is the one that controls it; all output goes there.
        """
        self.words = words
        self._said = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._said.name) / name for name in ("out", "err"))
        given = (words, folder, os.environ | (environment or {}), self.out, self.err, terminal)
        self._process = _context.Process(target=_be_the_command, args=(*given, before))
        self._process.start()
        self.pid = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.words, timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it said, once it has ended."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(folder: Path, *words: str, code: int = 0, **how: Any) -> tuple[str, str]:
    """Standard output and standard error of a command that must end with `code`."""
    done, log = ended(folder, *words, **how), folder / "expo-search.log"
    assert done.returncode == code, done.stderr + (log.read_text()[-3000:] if log.exists() else "")
    return done.stdout, done.stderr


def ended(folder: Path, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    command = Command(folder, *words, **how)
    try:
        out, err = command.communicate()
    finally:
        command.kill()
    return subprocess.CompletedProcess(words, command.wait(), out, err)


def _be_the_command(
    words: tuple[str, ...],
    folder: Path,
    environment: dict[str, str],
    out: Path,
    err: Path,
    terminal: str,
    before: Callable[[], object],
) -> None:
    if terminal == os.devnull:
        for path, number in ((Path(os.devnull), 0), (out, 1), (err, 2)):
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
    else:
        os.login_tty(os.open(terminal, os.O_RDWR))
    sys.stdin = os.fdopen(0)  # multiprocessing gives its processes another one
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["expo-search", *words]
    before()
    from expo_search.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
