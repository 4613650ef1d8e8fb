"""A real MLflow server on this machine, with a SQLite database and its own store of artifacts in a folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

# what `mlflow server` wants beside mlflow-skinny
MISSING = [name for name in ("flask", "flask_cors") if find_spec(name) is None]


class MlflowServer:
    """One that can be killed, halted, and started again at the same address with the same database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        artifacts = ["--artifacts-destination", str(self._folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *where],
                cwd=self._folder, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        give_up = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < give_up, "the server does not come up"
            time.sleep(0.2)

    def kill(self) -> None:
        """At once, with the processes that it started; they are gone, and the port is free, when this returns."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            while True:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                time.sleep(0.1)
        self._process = None

    def halt(self) -> None:
        """It takes connections, and answers nothing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False
