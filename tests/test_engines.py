"""Real engines, several: two of one thread each on a tiny pair answer and rate as one does, also where one is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Command
from twins import edit, write_prompts

from expo_search.engine.worker.node_memory import held_bytes

pytest.importorskip("ray")
SEARCH = [
    "--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl",
    "--n-prompts", "40", "--max-tokens", "40", "--max-model-len", "128", "--temperature", "0", "--trials", "3",
    "--alpha-max", "2", "--tolerance", "0", "--json",
]  # fmt: skip
TWO_ENGINES = re.compile(r"engines: 2, with 1 (cores|GPU) each")


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_home, folder, dirs_exist_ok=True)
    write_prompts(folder / "prompts.jsonl", 40)
    (folder / "mine.toml").write_text("")
    return folder


def command(home: Path, name: str, *more: str) -> Command:
    return start(home, *SEARCH, "--storage", f"sqlite:///{name}.db", "--log", f"{name}.log", *more)


def start(home: Path, *words: str) -> Command:
    """On two cores, so that engines and threads are as many on every machine."""
    return Command(home, *words, before=partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:2]))


def finish(process: Command) -> tuple[dict[str, Any], str]:
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return dict(json.loads(out)), err


@pytest.fixture(scope="module")
def alone(home: Path) -> dict[str, Any]:
    found, err = finish(command(home, "alone"))
    assert "engines" not in err
    return found


def kept(home: Path, name: str) -> list[tuple[Any, ...]]:
    """Every answer and reward."""
    with sqlite3.connect(home / f"{name}.db") as database:
        return database.execute(
            "SELECT trial, position, text, n_tokens, round(reward, 4) FROM expo_completions ORDER BY trial, position"
        ).fetchall()


def essence(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a search came to, but for times."""
    return [(t["alpha"], t["fingerprint"], round(t["reward"], 4), t["n_prompts"]) for t in found["trials"]]


def test_two_engines_answer_and_search_as_one(home: Path, alone: dict[str, Any]) -> None:
    found, err = finish(command(home, "two", "--engines", "2"))
    assert TWO_ENGINES.search(err)
    assert essence(found) == essence(alone)
    assert kept(home, "two") == kept(home, "alone")


@pytest.mark.slow  # engines start three times
def test_two_engines_with_two_reward_models_each_rate_as_one_engine_with_them(home: Path) -> None:
    shutil.copytree(home / "reward", home / "other")
    edit(home / "other", lambda name, t: 3 * t.flip(-1) if "score" in name else t)
    more = ("--reward-model", "other")
    (one, _), (two, err) = (finish(command(home, *words)) for words in (("s1", *more), ("s2", *more, "--engines", "2")))
    assert TWO_ENGINES.search(err)
    assert "2 reward models" in err
    assert essence(two) == essence(one)
    assert kept(home, "s2") == kept(home, "s1")
    each = [[round(g["gain"], 4) for g in found["reward_models"]] for found in (one, two)]
    assert each[0] == each[1]
    assert len(each[0]) in (0, 2), "none where no alpha may win"


@pytest.mark.slow  # two engines start, and one again; test_pool.py has the same with engines that only sleep
def test_an_engine_that_is_killed_in_mid_trial_costs_nothing_but_time(home: Path, alone: dict[str, Any]) -> None:
    search = command(home, "killed", "--engines", "2")
    try:
        wait_for_answers(home, "killed", search)
        first, second = engines_of(search)
        shared = shared_blocks(first)
        assert len(shared) == 2, "aligned and sft"
        assert shared_blocks(second) == shared, "they are on the machine once"
        os.kill(first.pid, signal.SIGKILL)
    except BaseException:
        search.kill()
        raise
    found, err = finish(search)
    assert "is lost" in err
    assert "2 engines on a host, which share the sources" in err
    assert [held_bytes(name) for _, name in shared] == [0, 0], "they are gone with the engines"
    assert essence(found) == essence(alone)
    assert kept(home, "killed") == kept(home, "alone")


@pytest.mark.slow  # engines start three times
def test_a_benchmark_by_two_engines_is_that_of_one(home: Path, alone: dict[str, Any]) -> None:
    def items(*more: str) -> tuple[dict[str, Any], str]:
        words = ["bench", "--tasks", "basics", "--limit", "12", "--alphas", "1", "--again", "--json", *more]
        return finish(start(home, *words, "--storage", "sqlite:///alone.db", "--log", "bench.log"))

    assert alone["trials"]
    one, _ = items()
    two, err = items("--engines", "2")
    assert TWO_ENGINES.search(err)
    assert "reward model" not in err, "none is planned for, or loaded"
    assert two == one


@pytest.mark.slow  # engines start three times
def test_a_search_whose_driver_is_killed_goes_on_with_another_number_of_engines(
    home: Path, alone: dict[str, Any]
) -> None:
    search = command(home, "resumed", "--engines", "2")
    try:
        wait_for_answers(home, "resumed", search)
        below = engines_of(search)
    finally:
        search.kill()
    search.communicate()
    assert len(below) == 2
    _, still = psutil.wait_procs(below, timeout=60)
    assert [p for p in still if p.status() != psutil.STATUS_ZOMBIE] == []
    n_before = len(kept(home, "resumed"))
    found, _ = finish(command(home, "resumed"))
    assert 0 < n_before < len(kept(home, "resumed"))
    assert essence(found) == essence(alone)
    assert kept(home, "resumed") == kept(home, "alone")


def wait_for_answers(home: Path, name: str, search: Command, trial: int = 1) -> None:
    """Until the first answers of a trial are stored."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        assert search.poll() is None, search.communicate()[1]
        try:
            if any(row[0] == trial for row in kept(home, name)):
                return
        except sqlite3.OperationalError:  # no tables yet
            pass
        time.sleep(0.02)
    raise AssertionError("no answers came")


def shared_blocks(engine: psutil.Process) -> set[tuple[int, str]]:
    """The blocks of sources that an engine has open: number (inode) and name."""
    opened = {file.stat().st_ino: str(file.readlink()) for file in Path(f"/proc/{engine.pid}/fd").iterdir()}
    head = "/memfd:expo-search "
    return {(n, link[len(head) :].removesuffix(" (deleted)")) for n, link in opened.items() if link.startswith(head)}


def engines_of(search: Command) -> list[psutil.Process]:
    """The engines' own processes."""
    below = psutil.Process(search.pid).children(recursive=True)
    return [p for p in below if "ray::EngineActor" in " ".join(p.cmdline())]
