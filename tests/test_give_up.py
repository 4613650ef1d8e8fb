"""Each command with an engine hands it what ends the process where the engine hangs and nothing can interrupt it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_export_study import export, put_trials
from twins import make_pair, make_reward_model, write_prompts
from typer.testing import CliRunner

from expo_search.cli.main import app
from expo_search.config.presets import load_study
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineDied
from expo_search.session.preflight import check
from expo_search.session.running import pin
from expo_search.store.study_store import Store

URL = "sqlite:///expo-search.db"


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> list[ModelSpec]:
    """The engines that are asked for; each hangs as it starts."""
    asked: list[ModelSpec] = []

    def start(spec: ModelSpec, give_up: Callable[[EngineDied], None] | None = None) -> None:
        asked.append(spec)
        assert give_up is not None
        give_up(EngineDied(where="vLLM engine", found="it hangs", expected="one that starts", do="look"))

    for module in ("engine.model", "exporting.verify"):
        monkeypatch.setattr(f"expo_search.{module}.VllmModel", start)
    monkeypatch.setattr("os._exit", sys.exit)
    return asked


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two prompts, and an export of it, with no engine's help."""
    folder = tmp_path_factory.mktemp("home")
    make_pair(folder, "llama-untied")
    make_reward_model(folder / "reward")
    write_prompts(folder / "prompts.jsonl", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pair = {"aligned": "aligned", "sft": "sft", "reward_model": "reward"}
        tables: dict[str, dict[str, Any]] = {
            "pair": pair,
            "prompts": {"source": "prompts.jsonl", "n": 2},
            "sampling": {"max_tokens": 8},
        }
        checked = check(load_study(overrides=tables, name="mine"), URL, lambda _: None)
        store = Store(URL, "mine")
        pin(store, checked)
        put_trials(store, checked.search_prompts)
        store.close()
        export(URL, Path("exported"))
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--prompt", "Hello?"],
        ["chat"],
        ["reproduce", "exported"],
        ["export", "--out", "verified", "--verify"],
    ],
    ids=lambda words: words[0],
)
def test_an_engine_that_hangs_as_it_starts_ends_the_command(
    words: list[str], home: Path, hanging: list[ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    run = CliRunner().invoke(app, words)
    assert len(hanging) == 1, run.exception
    assert run.exit_code == 2
