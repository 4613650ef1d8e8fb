"""A study whose start fails leaves nothing running."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_preflight import checked
from twins import write_prompts

from expo_search.engine import model
from expo_search.engine.canary import Noise
from expo_search.engine.start import SourcesReport
from expo_search.errors import RewardError, SettingsChanged
from expo_search.session import running
from expo_search.session.running import pin, start
from expo_search.store.settings import Settings, WeightsSettings
from expo_search.store.study_store import Store


@pytest.fixture
def started(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A checked pair's folder, and what runs there in the place of an engine."""
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 20)
    monkeypatch.chdir(tmp_path)
    engines: list[str] = []

    def starts(*_: object) -> Any:
        engines.append("engine")
        return SimpleNamespace(
            sources=SourcesReport("a", "s", 0.1, 0.5, 1),
            noise=Noise(exact=True),
            canary_s=0.1,
            close=lambda: engines.remove("engine"),
        )

    monkeypatch.setattr(model, "VllmModel", starts)
    return engines


def test_an_engine_with_other_weights_than_the_studys_is_closed(started: list[str]) -> None:
    study = checked()
    store = Store(study.storage, study.spec.name)
    pin(store, study, Settings(weights=WeightsSettings(aligned="another", sft="s")))
    store.close()
    with pytest.raises(SettingsChanged, match="another"):
        start(study, lambda _: None)
    assert started == []


def test_an_engine_beside_a_reward_model_that_cannot_be_loaded_is_closed(
    started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RewardError(where="reward", found="x", expected="y", do="z")

    monkeypatch.setattr(running, "start_rating", fails)
    with pytest.raises(RewardError):
        start(checked(), lambda _: None)
    assert started == []
