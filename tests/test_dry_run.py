"""`--dry-run`: all is checked, what a search takes is told from what is stored, and nothing is started or written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts
from twins import write_prompts

from expo_search.cli.main import app
from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.errors import PromptsError, StudyError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import CONTROL
from expo_search.search.budget import Budget
from expo_search.search.loop import evaluations, search
from expo_search.session.forecast import forecast
from expo_search.session.preflight import check
from expo_search.session.running import pin
from expo_search.store.study_store import Store

URL = "sqlite:///test.db"
N_PROMPTS = 12


@pytest.fixture
def home(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spec(name: str = "mine", **engine: Any) -> StudySpec:
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "aligned", "sft": "sft", "reward_model": "reward"},
        "prompts": {"source": "prompts.jsonl", "n": N_PROMPTS},
        "sampling": {"max_tokens": 8},
        "search": {"sampler": "random", "seed": 5, "alpha_min": 0.0, "alpha_max": 1.0},
        "engine": {"max_model_len": 128} | engine,
    }
    return load_study(overrides=overrides, name=name)


def searched(study: StudySpec, n_trials: int) -> None:
    """A study as a search of ours leaves it, but that fakes answered and scored."""
    checked = check(study, URL, lambda _: None)
    store, prompts = Store(URL, study.name), make_prompts(N_PROMPTS)
    pin(store, checked)
    search(store, Objective(FakeModel(), FakeScorer(), store, prompts, FakeWatcher()), study.search, n_trials)
    store.close()


def test_without_a_stored_trial_no_time_is_made_up(home: Path) -> None:
    told = forecast(check(spec(), URL, lambda _: None), 20)
    assert (told.most_tokens, told.tokens, told.seconds) == (20 * N_PROMPTS * 8, None, None)
    assert told.export_bytes == sum(file.stat().st_size for file in (home / "aligned").glob("*.safetensors")) - header(
        home / "aligned" / "model.safetensors"
    )
    text = "\n".join(told.sentences())
    assert f"tokens: at most 1,920 (20 trials x {N_PROMPTS} prompts x 8 tokens)" in text
    assert "time: not known before a trial has run" in text
    assert f"prompts: {N_PROMPTS}. Too few prompts to tell a gain below " in text
    assert told.as_json()["least_gain_sd"] > 0.5


@pytest.mark.usefixtures("home")
def test_it_says_what_so_many_prompts_can_tell() -> None:
    told = replace(forecast(check(spec(), URL, lambda _: None), 20), n_prompts=400)
    assert told.sentences()[-1].startswith("prompts: 400. A gain of 0.16 standard deviations")


def header(file: Path) -> int:
    """Bytes before the tensors of a safetensors file."""
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@pytest.mark.usefixtures("home")
def test_stored_trials_tell_tokens_and_time_of_those_to_come() -> None:
    searched(spec(), 4)
    told = forecast(check(spec(), URL, lambda _: None), 10)
    assert (told.n_there, told.most_tokens) == (4, 6 * N_PROMPTS * 8)
    assert told.tokens is not None
    assert 0 < told.tokens <= 6 * N_PROMPTS * 10  # the fakes' answers have up to ten tokens
    assert told.seconds is not None
    assert told.seconds > 0
    assert "4 trials of study mine" in told.source
    assert forecast(check(spec(), URL, lambda _: None), 3).most_tokens == 0


@pytest.mark.usefixtures("home")
def test_a_confirmation_counts_with_the_trials() -> None:
    searched(spec(), 4)
    checked = check(spec(), URL, lambda _: None)
    alone, both = forecast(checked, 10), forecast(checked, 10, n_confirm=8)
    assert both.most_tokens == alone.most_tokens + 2 * 8 * 8
    answers = 6 * N_PROMPTS
    for one, two in ((alone.tokens, both.tokens), (alone.seconds, both.seconds)):
        assert one is not None
        assert two == pytest.approx(one * (answers + 16) / answers, rel=0.02)
    assert f"(6 trials x {N_PROMPTS} prompts x 8 tokens; to confirm 2 alphas x 8 prompts" in both.sentences()[1]


@pytest.mark.usefixtures("home")
def test_a_budget_ends_it_before_its_trials_do() -> None:
    fresh = check(spec(), URL, lambda _: None)
    told = forecast(fresh, 200, budget=Budget(tokens=3, seconds=1))
    assert told.most_tokens == N_PROMPTS * 8, "alpha = 0 is answered whole"
    assert told.sentences()[:3] == [
        "trials: as many as the budget pays, at most 200",
        f"tokens: at most {N_PROMPTS * 8} (the first trial, which is whole whatever the budget)",
        "time: 1 s, the budget, the start of the engine counted; the first trial is whole whatever the budget",
    ]
    assert (
        forecast(fresh, 200, budget=Budget(tokens=500)).sentences()[1] == "tokens: at most 500 (what the budget leaves)"
    )
    searched(spec(), 4)
    checked = check(spec(), URL, lambda _: None)
    store = Store(URL, "mine", read_only=True)
    spent = sum(e.n_tokens for e in evaluations(store.study))
    store.close()
    told = forecast(checked, 200, budget=Budget(tokens=spent + 150, spent_before=50))
    assert (told.most_tokens, told.tokens) == (100, 100)
    whole = forecast(checked, 200)
    assert whole.seconds is not None
    assert whole.tokens is not None
    assert told.seconds == pytest.approx(whole.seconds * 100 / whole.tokens)
    told = forecast(checked, 200, budget=Budget(seconds=whole.seconds / 4))
    assert told.tokens == round(whole.tokens / 4)
    assert told.seconds == pytest.approx(whole.seconds / 4)
    assert told.sentences()[2].endswith("the budget, the start of the engine counted")
    assert forecast(checked, 10, budget=Budget(tokens=10**9)).sentences()[1:] == forecast(checked, 10).sentences()[1:]


@pytest.mark.usefixtures("home")
def test_more_engines_than_those_trials_had_shorten_them_down_to_the_longest_answer() -> None:
    study = spec(max_num_seqs=1)
    searched(study, 4)
    checked = check(study, URL, lambda _: None)

    def seconds(n_engines: int) -> float:
        sites: Any = SimpleNamespace(n_parallel=n_engines)
        told = forecast(replace(checked, sites=sites), 10).seconds
        assert told is not None
        return told

    one, four, many = seconds(1), seconds(4), seconds(10**6)
    assert one == forecast(checked, 10).seconds
    store = Store(URL, study.name, read_only=True)
    trials, longest = evaluations(store.study), max(r.length for r in store.rated(CONTROL, "search").values())
    store.close()

    def as_told(n: int) -> float:
        return sum(
            e.switch_s
            + e.other_s
            + (e.generate_s + e.score_s) * (e.n_generated / n + longest) / (e.n_generated + longest)
            for e in trials
        )

    assert four / one == pytest.approx(as_told(4) / as_told(1))
    assert many / one == pytest.approx(as_told(10**6) / as_told(1))
    assert many < four < one


@pytest.mark.usefixtures("home")
def test_another_study_of_the_same_pair_tells_it_too_and_one_in_another_arithmetic_does_not() -> None:
    searched(spec("first"), 3)
    told = forecast(check(spec("second"), URL, lambda _: None), 5)
    assert (told.n_there, told.source) == (0, "those of 3 trials of study first")
    used = check(spec("first"), URL, lambda _: None).settings.engine.arithmetic
    other = "float32" if used == "bfloat16" else "bfloat16"
    assert forecast(check(spec("third", arithmetic=other), URL, lambda _: None), 5).seconds is None


def test_the_command_loads_no_engine_and_writes_nothing(home: Path) -> None:
    words = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
    words += ["--n-prompts", "12", "--max-tokens", "8", "--trials", "5", "--dry-run", "--confirm", "4"]
    code = "import sys; from expo_search.cli.main import app\ntry: app()\nfinally: print('vllm' in sys.modules)"
    before = {file: file.stat().st_mtime_ns for file in home.rglob("*")}

    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "memory plan: " in done.stderr
    assert "tokens: at most 544 (5 trials x 12 prompts x 8 tokens; to confirm 2 alphas x 4 prompts" in done.stdout
    assert "Checked. Nothing was started, nothing written but" in done.stdout
    assert done.stdout.endswith("False\n")
    assert {file: file.stat().st_mtime_ns for file in home.rglob("*")} == before


SEARCH = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
SEARCH += ["--n-prompts", "12", "--max-tokens", "8", "--max-model-len", "128", "--sampler", "random", "--seed", "5"]
SEARCH += ["--alpha-min", "0", "--alpha-max", "1", "--study-name", "mine", "--storage", URL, "--dry-run"]


@pytest.fixture
def dry(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a dry run of the searched study prints, with further options."""

    def run(*more: str) -> str:
        capfd.readouterr()
        app([*SEARCH, *more], standalone_mode=False)
        return capfd.readouterr().out

    return run


@pytest.mark.usefixtures("home")
def test_json_has_the_memory_plan(dry: Callable[..., str]) -> None:
    assert json.loads(dry("--json"))["memory"].startswith("memory plan: ")


@pytest.mark.usefixtures("home")
def test_a_dry_run_finds_what_a_search_would_find(dry: Callable[..., str]) -> None:
    with pytest.raises(PromptsError, match="give --confirm 8"):
        dry("--confirm", "5000")


@pytest.mark.usefixtures("home")
def test_the_command_hands_on_its_budget_and_says_where_nothing_is_left_to_do(dry: Callable[..., str]) -> None:
    assert f"tokens: at most {N_PROMPTS * 8} (the first trial" in dry("--tokens", "3")
    searched(spec(), 4)
    assert "tokens: at most 192 (2 trials x 12 prompts x 8 tokens)" in dry("--trials", "6")
    done = dry("--trials", "4")
    assert done.splitlines()[0] == "4 finished trials: nothing is left to do"
    assert "tokens:" not in done
    assert "but --bench, where not done yet" in dry("--trials", "4", "--bench", "basics")
    assert json.loads(dry("--trials", "4", "--json"))["done"] == "4 finished trials"
    left = dry("--trials", "4", "--confirm", "4")
    assert "trials: 4 finished trials" in left
    assert "tokens: at most 64 (to confirm 2 alphas x 4 prompts x 8 tokens)" in left
    assert dry("--tokens", "5").startswith("budget: ")


def test_artifacts_are_checked_and_their_folder_is_not_made(home: Path, dry: Callable[..., str]) -> None:
    for place, found in (("gs://bucket/x", "neither a folder nor a bucket"), ("prompts.jsonl/x", "is no folder")):
        with pytest.raises(StudyError, match=found):
            dry("--artifacts", place)
    dry("--artifacts", "new/folder")
    assert not (home / "new").exists()
