"""A study whose start fails leaves nothing running, and one that rates nothing loads nothing that would."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_preflight import checked
from twins import edit, write_prompts

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.config.presets import load_study
from expo_search.engine import model
from expo_search.engine.canary import Noise
from expo_search.engine.start import SourcesReport
from expo_search.errors import EngineError, ExpoError, RewardError, SettingsChanged
from expo_search.pool.actor import Share
from expo_search.session import running, site
from expo_search.session.preflight import Checked, check
from expo_search.session.running import pin, start
from expo_search.session.site import SiteRecipe, Survey
from expo_search.session.sites import same_everywhere
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


class Here:
    """As `Sites`: two engines, on a machine that is this one."""

    n_engines, reads_whole = 2, False

    def open(self, _: int) -> None: ...

    def sentence(self) -> str:
        return "engines: 2"

    def survey(self, recipe: SiteRecipe) -> Survey:
        return recipe.survey(1)


def planned(found: Checked) -> set[str]:
    """What the memory is planned for."""
    assert found.memory is not None
    plan = {**found.memory.device, **found.memory.host}
    return {name for name, n_bytes in plan.items() if n_bytes}


@pytest.mark.parametrize("n_rewards", [1, 2])
def test_engines_that_rate_nothing_load_no_reward_model_and_want_neither_room_nor_files_for_it(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_rewards: int
) -> None:
    shutil.copytree("reward", "other")
    edit(tmp_path / "other", lambda name, tensor: 3 * tensor if "score" in name else tensor)
    models = ["reward", "other"][:n_rewards]
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "aligned", "sft": "sft", "reward_model": models if n_rewards > 1 else "reward"},
        "prompts": {"source": "prompts.jsonl"},
        "sampling": {"max_tokens": 8},
        "engine": {"max_model_len": 128},
    }
    spec, loaded, sites = load_study(overrides=overrides), list[str](), Here()
    monkeypatch.setattr(site, "start_rating", lambda *_: loaded.append("reward models"))
    monkeypatch.setattr(site, "set_defaults_of_libraries", lambda **_: None)
    monkeypatch.setattr(site, "_keep_to", lambda _: None)

    def check_with(**options: Any) -> Checked:
        return check(spec, "sqlite:///test.db", lambda _: None, **options)

    rated, unrated = (check_with(sites=sites, rates=rates) for rates in (True, False))
    assert unrated.settings == rated.settings, "they are compared as ever"
    assert rated.recipe is not None
    rated.recipe.start(Share())
    assert (loaded, started) == (["reward models"], ["engine"])
    shutil.rmtree("reward")
    shutil.rmtree("other")
    assert unrated.recipe is not None
    unrated.recipe.survey(1)
    unrated.recipe.start(Share())
    assert (loaded, started) == (["reward models"], ["engine", "engine"])
    assert planned(rated) - planned(unrated) == {"reward model"}


@pytest.mark.usefixtures("started")
def test_a_node_whose_files_are_others_by_one_byte_or_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of one path, as the first node has it and as another one does."""
    monkeypatch.setattr(site, "set_defaults_of_libraries", lambda **_: None)
    sites, spec = Here(), checked().spec
    sites.reads_whole = True
    recipe = check(spec, "sqlite:///test.db", lambda _: None, sites=sites).recipe  # type: ignore[arg-type]
    assert recipe is not None
    sampled = replace(recipe, reads_whole=False)
    surveys = [[r.survey(1)] for r in (recipe, sampled)]
    largest = max(open_checkpoint(Path("sft"), role="sft").tensors.values(), key=lambda t: t.n_bytes)
    assert largest.n_bytes > 4096 + 2, "its first byte is outside the middle 4 KiB, which are the sample"
    with largest.file.open("r+b") as file:
        file.seek(largest.offset)
        (byte,) = file.read(1)
        file.seek(largest.offset)
        file.write(bytes([byte ^ 1]))
    for r, of_nodes in zip((recipe, sampled), surveys, strict=True):
        of_nodes.append(r.survey(1))
    same_everywhere(list(zip("ab", surveys[1], strict=True)))
    with pytest.raises(EngineError, match=r"^nodes a and b: other content of sft's files; expected the same") as other:
        same_everywhere(list(zip("ab", surveys[0], strict=True)))
    shutil.rmtree("sft")
    with pytest.raises(ExpoError, match=r"^sft .*: no such folder") as missing:
        recipe.survey(1)
    assert [len(str(fault.value).splitlines()) for fault in (other, missing)] == [1, 1]


@pytest.mark.usefixtures("started")
def test_one_engine_beside_which_nothing_rates_has_the_reward_models_room() -> None:
    study = checked()
    assert planned(study) - planned(check(study.spec, study.storage, lambda _: None, rates=False)) == {"reward model"}
