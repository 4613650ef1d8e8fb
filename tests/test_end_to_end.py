"""The command as a user runs it, on a tiny random pair: real engine, real scorer, real database."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run
from twins import edit, make_reward_model, write_prompts

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec

PAIR = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
SIZES = ["--n-prompts", "6", "--max-tokens", "12", "--max-model-len", "128", "--alpha-max", "2", "--tolerance", "0"]
SEARCH = [*PAIR, *SIZES]


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_home, folder, dirs_exist_ok=True)
    write_prompts(folder / "prompts.jsonl", 10)
    return folder


@pytest.fixture(scope="module")
def searched(home: Path) -> dict[str, Any]:
    """An uninterrupted search of four trials, by an interpreter that is started for it."""
    words = [*SEARCH, "--trials", "4", "--storage", "sqlite:///whole.db", "--json"]
    process = subprocess.run(
        [sys.executable, "-m", "expo_search", *words], cwd=home, text=True, capture_output=True, timeout=300
    )
    out, err = process.stdout, process.stderr
    assert process.returncode == 0, err + (home / "expo-search.log").read_text()[-3000:]
    assert "canary passed" in err
    assert "INFO" not in err, "vLLM's log belongs in the log file"
    return dict(json.loads(out))


def test_three_trials_start_at_alpha_zero_and_are_all_in_the_database(home: Path, searched: dict[str, Any]) -> None:
    alphas = [t["alpha"] for t in searched["trials"]]
    assert alphas[0] == 0
    assert len(set(alphas)) == 4
    with sqlite3.connect(home / "whole.db") as database:
        rows = database.execute("SELECT trial, count(*), count(reward) FROM expo_completions GROUP BY trial").fetchall()
        assert rows == [(trial, 6, 6) for trial in range(4)]
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert "vllm" in (home / "expo-search.log").read_text().lower()
    control = searched["trials"][0]
    assert control["difference"] == 0
    assert {t["fingerprint"] for t in searched["trials"][1:]}.isdisjoint({control["fingerprint"]})


def test_the_same_command_again_prints_the_result_without_an_engine(home: Path, searched: dict[str, Any]) -> None:
    out, err = run(home, *SEARCH, "--trials", "4", "--storage", "sqlite:///whole.db")
    assert "4 finished trials" in err
    assert "starting vLLM" not in err
    assert "alpha" in out
    shown, _ = run(home, "show", "custom", "--storage", "sqlite:///whole.db", "--json")
    assert json.loads(shown) == searched


@pytest.mark.slow  # five processes
def test_a_checkpoint_that_was_moved_is_found_once_the_search_command_names_it(
    home: Path, searched: dict[str, Any]
) -> None:
    whole = ["--storage", "sqlite:///whole.db"]
    alpha = repr(searched["trials"][1]["alpha"])
    (home / "sft").rename(home / "moved")
    try:
        _, err = run(home, "export", "--alpha", alpha, "--out", "none", *whole, code=2)
        assert "sft: no such folder" in err
        _, err = run(home, *SEARCH, "--sft", "moved", "--trials", "4", *whole)
        assert "starting vLLM" not in err
        run(home, "export", "--alpha", alpha, "--out", "from-moved", *whole)
    finally:
        (home / "moved").rename(home / "sft")
    run(home, *SEARCH, "--trials", "4", *whole)


def test_the_exported_model_is_to_the_bit_the_one_that_was_evaluated(home: Path, searched: dict[str, Any]) -> None:
    trial = searched["trials"][2]
    run(home, "export", "--alpha", repr(trial["alpha"]), "--out", "best", "--storage", "sqlite:///whole.db")
    sampling, engine = SamplingSpec(max_tokens=12), EngineSpec(max_model_len=128)
    fresh = VllmModel(ModelSpec(home / "best", home / "sft", sampling, engine, 42))
    assert fresh.sources.aligned == trial["fingerprint"]
    fresh.close()
    assert json.loads((home / "best" / "expo.json").read_text())["alpha"] == trial["alpha"]


def test_confirm_uses_other_prompts_and_other_seeds(home: Path, searched: dict[str, Any]) -> None:
    out, err = run(home, "confirm", "--storage", "sqlite:///whole.db", "--json", "--quiet")
    assert err == ""
    confirmed = json.loads(out)
    assert confirmed["n"] == 4  # ten prompts, of which the search took six
    low, high = confirmed["difference_95"]
    assert low < confirmed["difference"] < high
    with sqlite3.connect(home / "whole.db") as database:
        texts = {
            part: {t for (t,) in database.execute("SELECT text FROM expo_prompts WHERE part = ?", (part,))}
            for part in ("search", "confirm")
        }
    assert len(texts["search"]) == 6
    assert texts["search"].isdisjoint(texts["confirm"])
    shown, _ = run(home, "show", "--storage", "sqlite:///whole.db")
    assert " on 4 fresh prompts and seeds: " in shown
    # what is confirmed already needs no engine
    _, err = run(home, *SEARCH, "--trials", "4", "--storage", "sqlite:///whole.db", "--confirm", "4")
    assert "starting vLLM" not in err


def test_a_second_judge_rates_stored_answers_without_an_engine(home: Path, searched: dict[str, Any]) -> None:
    make_reward_model(home / "judge")
    edit(home / "judge", lambda name, t: -t if "score" in name else t)
    whole, judge = ["--storage", "sqlite:///whole.db"], ["--check-reward-model", "judge"]
    out, err = run(home, "confirm", *whole, *judge, "--json")
    assert "starting vLLM" not in err, "they are answered by now"
    confirmed = json.loads(out)
    # the judge is the study's reward model with its head turned round
    assert confirmed["check"]["gain"] == pytest.approx(-confirmed["difference"], abs=1e-6)
    assert (confirmed["check"]["judge"], confirmed["check"]["prompts"], confirmed["check"]["n"]) == (
        "judge",
        "fresh",
        4,
    )
    again, err = run(home, "confirm", *whole, "--json")
    assert "starting vLLM" not in err, "what is kept is printed"
    assert json.loads(again) == confirmed, "the study has kept its judge"
