"""What a shell is offered for a value, as it asks: bash's words and its cursor in the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from expo_search.cli.main import app
from expo_search.store.study_store import Store


def offered(*words: str) -> list[str]:
    """What bash is offered where the last of the words is being typed."""
    typed = " ".join(("expo-search", *words))
    asked = {"_EXPO_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words))}
    done = CliRunner().invoke(app, [], env=asked, prog_name="expo-search")
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.stdout.split()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("home")
def test_values_that_are_known_are_offered() -> None:
    assert offered("--pair", "demo") == ["demo"]
    assert {"zephyr", "zephyr-7b-beta"} <= set(offered("--pair", "ze"))
    assert offered("init", "new.toml", "--pair", "dem") == ["demo"]
    assert offered("--sampler", "") == ["expo", "gp", "tpe", "grid", "random"]
    assert offered("--objective", "w") == ["win-rate"]
    assert offered("--alpha-max", "a") == ["auto"]
    assert offered("bench", "--tasks", "basics,alp") == ["basics,alpaca_eval"]
    assert offered("--bench", "gsm8k_") == ["gsm8k_5shot"]
    assert offered("shape", "--shape", "b") == ["blocks:2", "blocks:3", "blocks:4"]
    assert offered("--aligned", "x") == [], "files are the shell's"


def test_studies_are_those_of_the_storage_that_is_typed(home: Path) -> None:
    for file, name in (("expo-search.db", "mine"), ("other.db", "others"), ("other.db", "mine-too")):
        Store(f"sqlite:///{file}", name).close()
    assert offered("show", "") == ["mine"]
    assert offered("confirm", "--storage", "sqlite:///other.db", "") == ["mine-too", "others"]
    assert offered("confirm", "--storage", "sqlite:///other.db", "o") == ["others"]
    before = sorted(home.iterdir())
    for url in ("sqlite:///none.db", "no url", "nosuchdb://host/db", "postgresql+psycopg://127.0.0.1:1/db"):
        assert offered("show", "--storage", url.replace(" ", "\\ "), "") == []
    (home / "broken.db").write_text("hello" * 300)
    assert offered("show", "--storage", "sqlite:///broken.db", "") == []
    assert sorted(home.iterdir()) == sorted([*before, home / "broken.db"])
