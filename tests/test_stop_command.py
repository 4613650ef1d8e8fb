"""The command as a user stops it, with the real engine: what it prints, its exit code, what it keeps and what not."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from commands import Command
from twins import write_prompts

N_PROMPTS = 24
SEARCH = [
    "--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl",
    "--n-prompts", str(N_PROMPTS), "--max-tokens", "100", "--max-model-len", "256", "--alpha-max", "2",
    "--tolerance", "0", "--no-racing", "--trials", "50",
]  # fmt: skip
TOKEN = "hf_thisIsNobodysTokenButItLooksLikeOne"
SECRETS = {"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_home, folder, dirs_exist_ok=True)
    write_prompts(folder / "prompts.jsonl", N_PROMPTS)
    return folder


def count(home: Path, query: str) -> int:
    file = home / "expo-search.db"
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as database:
        try:
            return int(database.execute(query).fetchone()[0])
        except sqlite3.OperationalError:  # not made yet
            return 0


def n_answers(home: Path) -> int:
    return count(home, "SELECT count(*) FROM expo_completions")


def stopped(home: Path, send: Callable[[Command], None]) -> tuple[int, str, str]:
    """Start or go on with the search, act once it has stored something new; exit code, output, errors."""
    before = n_answers(home)
    process = Command(home, *SEARCH, environment=SECRETS)
    deadline = time.monotonic() + 300
    while n_answers(home) == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    send(process)
    out, err = process.communicate()
    return process.wait(), out, err


def twice(process: Command) -> None:
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # two of one kind may arrive as one


def test_a_search_is_stopped_by_one_signal_at_its_next_look(home: Path) -> None:
    code, out, err = stopped(home, lambda process: process.send_signal(signal.SIGTERM))
    assert code == 130, err
    assert "stopping once this part of the prompts is answered and stored" in err
    assert "alpha" in out, "the result so far"
    assert err.rstrip().endswith("Stopped. To go on:\n  expo-search " + " ".join(SEARCH))
    assert n_answers(home) >= 16, "a trial is looked at after 16 prompts and at its end"
    assert count(home, "SELECT count(*) FROM expo_locks") == 0
    holds_no_token(home, out + err)


@pytest.mark.slow  # test_interruptions.py has it without an engine
def test_a_search_that_goes_on_is_stopped_by_two_at_once(home: Path) -> None:
    kept = n_answers(home)
    code, out, err = stopped(home, twice)
    assert code == 130, err
    assert "going on" in err or n_answers(home) > kept
    assert "Traceback" not in err
    assert "stopped; what was finished is kept, the same command goes on" in err
    assert n_answers(home) > kept
    assert count(home, "SELECT count(*) FROM trials WHERE state = 'FAIL'") == 0
    with closing(sqlite3.connect(home / "expo-search.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    holds_no_token(home, out + err)


def holds_no_token(home: Path, printed: str) -> None:
    assert TOKEN not in printed
    for file in home.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            assert TOKEN.encode() not in file.read_bytes(), f"the token is in {file.name}"
