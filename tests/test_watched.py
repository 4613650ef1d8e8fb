"""Which processes count as an engine's own, no helper being one; that every answer is of the alpha that was set."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from vllm.outputs import WeightVersionSpan

from expo_search.config.spec import EngineSpec
from expo_search.engine import watched
from expo_search.engine.watched import WatchedEngine, processes_of
from expo_search.errors import EngineDied, MaterializeError

# An engine's process as vLLM has them: it starts a helper and two ranks, says their ids, and waits.
CORE = """
import subprocess, sys
helper, *ranks = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
print(helper.pid, *(r.pid for r in ranks), flush=True)
for line in sys.stdin:
    helper.kill()
    helper.wait()
"""


class Core:
    """The stand-in's processes by what they are."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.helper, *self.ranks = map(int, self.process.stdout.readline().split())

    def end_the_helper(self) -> None:
        assert self.process.stdin is not None
        print("end", file=self.process.stdin, flush=True)
        deadline = time.monotonic() + 30
        while psutil.pid_exists(self.helper):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def collective_rpc(self, method: str, args: tuple[object, ...] = ()) -> list[int]:
        assert method in ("expo_pid", "expo_end_with")
        assert args == (() if method == "expo_pid" else (os.getpid(), sorted([self.process.pid, *self.ranks])))
        return self.ranks

    def shutdown(self) -> None:
        pass


@contextmanager
def a_core() -> Iterator[Core]:
    core = Core()
    try:
        yield core
    finally:
        for pid in (core.process.pid, core.helper, *core.ranks):
            if psutil.pid_exists(pid):
                os.kill(pid, 9)
        core.process.communicate()


def start_on(core: Core, monkeypatch: pytest.MonkeyPatch) -> WatchedEngine:
    llm: Any = SimpleNamespace(collective_rpc=core.collective_rpc, llm_engine=SimpleNamespace(engine_core=core))
    monkeypatch.setattr(watched, "start_engine", lambda _: llm)
    spec: Any = SimpleNamespace(engine=EngineSpec())
    spec.planned_again = lambda: spec
    return WatchedEngine(spec)


def test_ranks_and_the_process_that_started_them_are_the_engines_and_a_helper_is_not() -> None:
    with a_core() as core:
        assert processes_of(core.ranks) == sorted([core.process.pid, *core.ranks])


def test_an_engine_in_this_process_has_none_of_its_own() -> None:
    assert processes_of([os.getpid()]) == []


def test_a_rank_that_was_not_started_from_here_is_watched_alone_and_one_elsewhere_not_at_all() -> None:
    nowhere = 2**22 + 1  # above the largest id that Linux gives
    assert processes_of([os.getppid(), nowhere]) == [os.getppid()]


def test_a_helper_that_ends_is_no_dead_engine_and_a_rank_that_ends_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_core() as core:
        engine = start_on(core, monkeypatch)
        core.end_the_helper()
        with engine._watchdog.watching():
            time.sleep(1.5)  # the watchdog looks twice a second
        os.kill(core.ranks[1], 9)
        with pytest.raises(EngineDied, match=f"its process {core.ranks[1]} has ended"), engine._watchdog.watching():
            Future[int]().result(timeout=60)
        engine.close()


def test_a_restart_ends_the_old_engines_helpers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_core() as old, a_core() as new:
        engine = start_on(old, monkeypatch)
        llm: Any = SimpleNamespace(collective_rpc=new.collective_rpc, llm_engine=SimpleNamespace(engine_core=new))
        monkeypatch.setattr(watched, "start_engine", lambda _: llm)
        engine.restart()
        old.process.wait(30)
        for pid in (old.helper, *old.ranks):
            assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        assert engine._watchdog.processes == sorted([new.process.pid, *new.ranks])
        engine.close()


def test_a_helper_that_is_a_zombie_hides_no_other() -> None:
    with a_core() as core, a_core() as other:
        os.kill(other.helper, 9)  # which `other` waits for only when told to
        while psutil.Process(other.helper).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert watched._helpers([os.getpid()]) >= {core.process.pid, core.helper, *core.ranks, *other.ranks}


def watchdogs() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "expo-search watchdog"]


@pytest.mark.parametrize("part", ["the engine", "its first call"])
def test_a_start_that_fails_leaves_neither_an_engine_nor_a_watchdog(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, stopped = watchdogs(), list[str]()

    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError("no room")

    core = SimpleNamespace(shutdown=lambda: stopped.append("engine"))
    llm: Any = SimpleNamespace(collective_rpc=fails, llm_engine=SimpleNamespace(engine_core=core))
    monkeypatch.setattr(watched, "start_engine", fails if part == "the engine" else lambda _: llm)
    spec: Any = SimpleNamespace(engine=EngineSpec())
    with pytest.raises((RuntimeError, EngineDied), match="no room"):
        WatchedEngine(spec)
    assert stopped == ([] if part == "the engine" else ["engine"])
    for thread in set(watchdogs()) - set(before):
        thread.join(10)
        assert not thread.is_alive()


class Stamping:
    """Of `LLM.llm_engine`: an engine that stamps its answers, and may lag behind."""

    def __init__(self, *, lags: bool) -> None:
        self._lags, self._versions = lags, ["default"]
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def set_weight_version(self, version: str) -> None:
        self._versions.append(version)

    def step(self) -> list[Any]:
        spans = [WeightVersionSpan(self._versions[-1], 1, 2)]
        if self._lags:
            spans.insert(0, WeightVersionSpan(self._versions[-2], 0, 1))
        running = SimpleNamespace(token_ids=[1], weight_versions=None)
        ended = SimpleNamespace(token_ids=[1], weight_versions=spans)
        return [SimpleNamespace(finished=o is ended, outputs=[o]) for o in (running, ended)]


def stamping(monkeypatch: pytest.MonkeyPatch, *, lags: bool) -> WatchedEngine:
    llm: Any = SimpleNamespace(collective_rpc=lambda *_, **__: [os.getpid()], llm_engine=Stamping(lags=lags))
    monkeypatch.setattr(watched, "start_engine", lambda _: llm)
    spec: Any = SimpleNamespace(engine=EngineSpec())
    return WatchedEngine(spec)


def test_answers_stamped_with_the_alpha_that_was_set_last_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stamping(monkeypatch, lags=False)
    assert len(engine.step()) == 2  # before the first switch nothing is known
    for alpha in (0.1, 0.1 + 2**-56, 0.3):
        engine.name_weights(alpha)
        assert len(engine.step()) == 2
    engine.close()


def test_an_answer_with_tokens_of_another_alpha_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stamping(monkeypatch, lags=True)
    engine.name_weights(0.25)
    engine._llm.llm_engine.set_weight_version("alpha = 0.5")  # behind the driver's back
    with pytest.raises(MaterializeError, match=r"stamped with alpha = 0\.5; expected all of them with alpha = 0\.25"):
        engine.step()
    engine.close()
