"""Kill a search at random moments, again and again, and compare what comes of it with one that nobody killed.

    python benchmarks/kill.py --kills 30
    python benchmarks/kill.py --kills 30 --database postgresql     # a server of its own, which is not killed

Real engine, scorer and database, on a tiny random pair. Each run of the command arms one stage: at its n-th call a
timer of a random length sends SIGKILL, so that kills fall into loading, switching, generating, scoring, commits,
uploads of artifacts, `ask`, `tell` and, once a study is finished, its export. After each kill: the database is whole,
no stored row has changed, and no prompt with a stored answer is asked again. At the end of each study: the alphas,
rewards and fingerprints of the unbroken search, no trial left running, no row too many, every artifact once.

Each run is a process of its own, forked from this one, which has imported vLLM and computed nothing.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from databases import PostgresServer, rows

N_PROMPTS = 24
SEARCH = [
    "--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl",
    "--n-prompts", str(N_PROMPTS), "--max-tokens", "12", "--max-model-len", "128", "--alpha-max", "2",
    "--tolerance", "0", "--quiet", "--json",
]  # fmt: skip
EXPORT = ["export", "custom", "--out", "best", "--quiet"]


@dataclass(frozen=True)
class Stage:
    """Where to kill: a method ("module:Class.name"), up to which of its calls, how long after the call at most."""

    method: str
    n_calls: int
    delay_s: float


STAGES = {
    "load": Stage("expo_search.engine.watched:WatchedEngine._start", 1, 3.0),
    "switch": Stage("expo_search.engine.model:VllmModel.materialize", 3, 0.05),
    "generate": Stage("expo_search.engine.watched:WatchedEngine.step", 40, 0.02),
    "score": Stage("expo_search.evaluation.reward_model:SequenceRewardModel.score", 3, 0.1),
    "commit": Stage("sqlalchemy.engine:Connection._commit_impl", 60, 0.002),
    "upload": Stage("expo_search.results.dashboard_updates:DashboardUpdates._put", 4, 0.05),
    "ask": Stage("optuna.study:Study.ask", 2, 0.02),
    "tell": Stage("optuna.study:Study.tell", 2, 0.02),
}
EXPORTING = Stage("expo_search.checkpoint.shard_writer:ShardWriter.written", 20, 0.005)


def replace(method: str, make: Any) -> None:
    """Put `make(original)` in the place of "module:Class.name"."""
    module, _, path = method.partition(":")
    owner_name, _, name = path.partition(".")
    owner = getattr(importlib.import_module(module), owner_name)
    setattr(owner, name, make(getattr(owner, name)))


def armed(original: Any, nth: int, delay_s: float) -> Any:
    """The method, whose nth call starts a timer that kills this process."""
    calls = 0

    @functools.wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*args, **options)

    return call


def child(settings: dict[str, Any], arguments: list[str]) -> None:
    """The command, with one method armed and what is asked of the engine written down."""
    from expo_search.cli import main as cli
    from expo_search.engine.model import VllmModel

    if settings["method"]:
        replace(settings["method"], lambda original: armed(original, settings["nth"], settings["delay_s"]))
    generate, materialize = VllmModel.generate, VllmModel.materialize

    def noted_materialize(self: Any, alpha: float) -> Any:
        self.noted_alpha = alpha
        return materialize(self, alpha)

    def noted_generate(self: Any, prompts: Any, seed: int) -> Any:
        with Path("asked.jsonl").open("a") as stream:
            stream.write(json.dumps([self.noted_alpha, [p.id for p in prompts]]) + "\n")
        return generate(self, prompts, seed)

    VllmModel.materialize, VllmModel.generate = noted_materialize, noted_generate  # type: ignore[method-assign]
    sys.argv = ["expo-search", *arguments]
    cli.main()


def preload() -> None:
    """Import what every run needs, with the settings of an engine in its own process."""
    from expo_search.config.spec import EngineSpec
    from expo_search.engine.start import engine_settings

    os.environ.update(engine_settings(EngineSpec(), cuda=False, gpu_memory_utilization=0.0)[0])
    for name in (
        "vllm",
        "vllm.v1.engine.llm_engine",
        "optuna",
        "expo_search.session.running",
        "expo_search.engine.model",
        "expo_search.evaluation.reward_model",
        "expo_search.results.dashboard_updates",
    ):
        importlib.import_module(name)


def forked(work: Callable[[], None], folder: Path) -> tuple[int, str, str]:
    """Do work in a process of its own, in a folder; exit code, output, errors."""
    files = [folder / "out.txt", folder / "err.txt"]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(folder)
            for fd, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    out, err = (file.read_text() for file in files)
    return os.waitstatus_to_exitcode(status), out, err


@dataclass
class Harness:
    """One folder with a tiny pair; `n_trials` a study. Without `server` studies are in SQLite files."""

    folder: Path
    n_trials: int
    random: random.Random
    server: PostgresServer | None = None
    kills: Counter[str] = field(default_factory=Counter)
    n_studies: int = 0

    def run(self, arguments: list[str], stage: Stage | None) -> tuple[int, str]:
        settings: dict[str, Any] = {"method": None}
        if stage is not None:
            nth, delay_s = self.random.randint(1, stage.n_calls), self.random.uniform(0, stage.delay_s)
            settings = {"method": stage.method, "nth": nth, "delay_s": delay_s}
        code, out, err = forked(lambda: child(settings, arguments), self.folder)
        assert code in ({0} if stage is None else {0, -signal.SIGKILL}), (settings, code, err[-3000:])
        return code, out

    def new_database(self, name: str) -> str:
        """Its URL."""
        return f"sqlite:///{self.folder / name}.db" if self.server is None else self.server.database()

    def search(self, url: str, stage: Stage | None) -> dict[str, Any] | None:
        """Search, or go on; the result, or None where it was killed."""
        (self.folder / "asked.jsonl").unlink(missing_ok=True)
        before = self.rows(url)
        code, out = self.run([*SEARCH, "--trials", str(self.n_trials), "--storage", url], stage)
        after = self.rows(url)
        for key, (text, reward, _) in before.items():
            assert after[key][0] == text, f"the stored answer {key} has changed"
            assert reward is None or after[key][1] == reward, f"the stored reward {key} has changed"
        stored = {(alpha, prompt) for (_, prompt), (_, _, alpha) in before.items()}
        twice = stored & self.asked()
        assert not twice, f"generated again: {sorted(twice)[:5]}"
        return json.loads(out) if code == 0 else None

    def rows(self, url: str) -> dict[tuple[int, str], tuple[str, float | None, float]]:
        """(trial, prompt id) -> answer, reward, alpha. Checks the database on the way."""
        if self.server is None:
            if not Path(url.removeprefix("sqlite:///")).exists():
                return {}
            assert rows(url, "PRAGMA integrity_check") == [("ok",)]
            tables = "SELECT name FROM sqlite_master"
        else:
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        if ("expo_completions",) not in rows(url, tables):
            return {}
        stored: list[Any] = rows(
            url,
            "SELECT c.trial, p.prompt_id, c.text, c.reward, s.alpha FROM expo_completions c"
            " JOIN expo_prompts p ON p.part = c.part AND p.position = c.position"
            " JOIN expo_switches s ON s.part = c.part AND s.trial = c.trial",
        )
        found = {(trial, prompt): (text, reward, alpha) for trial, prompt, text, reward, alpha in stored}
        assert len(found) == len(stored), "a row twice"
        return found

    def asked(self) -> set[tuple[float, str]]:
        file = self.folder / "asked.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return {(alpha, prompt) for alpha, prompts in map(json.loads, lines) for prompt in prompts}

    def check_finished(self, url: str, found: dict[str, Any], whole: dict[str, Any]) -> None:
        """What a finished study must be, whatever happened to it."""
        keys = ("trial", "alpha", "reward", "gain", "outcome", "n_prompts", "mean_length", "fingerprint")
        for one, other in zip(found["trials"], whole["trials"], strict=True):
            assert {k: one[k] for k in keys} == {k: other[k] for k in keys}, (one, other)
        assert len(self.rows(url)) == sum(t["n_prompts"] for t in found["trials"])
        states: list[Any] = rows(url, "SELECT CAST(state AS VARCHAR), count(*) FROM trials GROUP BY state")
        noted = "SELECT count(*) FROM trial_system_attributes WHERE key LIKE 'artifacts:%'"
        # points that were queued and not needed may wait for a larger --trials
        assert {s: n for s, n in states if s != "WAITING"} == {"COMPLETE": self.n_trials}, states
        assert rows(url, noted) == [(2 * self.n_trials,)], f"{rows(url, noted)} artifacts"

    def export(self, url: str, trial: dict[str, Any]) -> None:
        """Kill an export, then let it run: at no time is there half a model."""
        out = self.folder / "best"
        words = [*EXPORT, "--alpha", repr(trial["alpha"]), "--storage", url]
        shutil.rmtree(out, ignore_errors=True)
        if self.run(words, EXPORTING)[0]:
            self.kills["export"] += 1
            assert not out.exists(), "half a model"
            self.run(words, None)
        assert json.loads((out / "expo.json").read_text())["alpha"] == trial["alpha"]

    def study(self, whole: dict[str, Any], n_left: int) -> int:
        """One study, killed up to n_left times on its way; how often it was."""
        self.n_studies += 1
        url, n_kills, found = self.new_database(f"killed-{self.n_studies}"), 0, None
        stages: list[str] = []
        while found is None:
            if not stages:
                stages = self.random.sample(sorted(STAGES), len(STAGES))
            name = stages.pop()
            began = time.monotonic()
            found = self.search(url, STAGES[name] if n_kills < n_left else None)
            if found is None:
                n_kills += 1
                self.kills[name] += 1
                n_rows = len(self.rows(url))
                print(f"killed in {name:8} after {time.monotonic() - began:5.1f} s, {n_rows} answers kept", flush=True)
        self.check_finished(url, found, whole)
        self.export(url, found["trials"][-1])
        print(f"study {self.n_studies}: {n_kills} kills, ends as the unbroken one", flush=True)
        return n_kills


def make_input(folder: Path) -> None:
    from twins import make_pair, make_reward_model, write_prompts

    make_pair(folder, "llama-tied", delta=0.2)
    make_reward_model(folder / "reward")
    write_prompts(folder / "prompts.jsonl", N_PROMPTS + 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="at least so many")
    parser.add_argument("--trials", type=int, default=4, help="of each study")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    preload()
    with (
        tempfile.TemporaryDirectory() as name,
        closing(PostgresServer()) if options.database == "postgresql" else nullcontext() as server,
    ):
        folder = Path(name)
        code, _, err = forked(lambda: make_input(folder), folder)
        assert code == 0, err
        harness = Harness(folder, options.trials, random.Random(options.seed), server)
        url = harness.new_database("whole")
        whole = harness.search(url, None)
        assert whole is not None
        harness.check_finished(url, whole, whole)
        n_kills = 0
        while n_kills + harness.kills["export"] < options.kills:
            n_kills += harness.study(whole, options.kills - n_kills - harness.kills["export"])
        counts = ", ".join(f"{name} {n}" for name, n in sorted(harness.kills.items()))
        n_all = sum(harness.kills.values())
        print(f"{n_all} kills ({counts}) in {harness.n_studies} studies: nothing lost, nothing twice")


if __name__ == "__main__":
    main()
