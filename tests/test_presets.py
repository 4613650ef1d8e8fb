"""Every preset under studies/ against an independent copy of the table of pairs in the facts the project builds on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_search.cli.main import app
from expo_search.config.presets import load_study, preset_names, studies_folder
from expo_search.config.spec import StudySpec
from expo_search.errors import StudyError
from expo_search.search.alpha_range import bounds

_SFT_FULL = "alignment-handbook/zephyr-7b-sft-full"
_MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"

# name -> aligned, sft, published alpha: the ExPO paper's pairs, written out by hand
TABLE = {
    "zephyr-7b-alpha": ("HuggingFaceH4/zephyr-7b-alpha", "HuggingFaceH4/mistral-7b-sft-alpha", 0.3),
    "zephyr": ("HuggingFaceH4/zephyr-7b-beta", "HuggingFaceH4/mistral-7b-sft-beta", 0.1),
    "starling-7b-alpha": ("berkeley-nest/Starling-LM-7B-alpha", "openchat/openchat_3.5", 0.2),
    "starling-7b-beta": ("Nexusflow/Starling-LM-7B-beta", "openchat/openchat-3.5-0106", 0.5),
    "snorkel-7b": ("snorkelai/Snorkel-Mistral-PairRM-DPO", _MISTRAL, 0.3),
    "llama3-8b-iter": ("RLHFlow/LLaMA3-iterative-DPO-final", "RLHFlow/LLaMA3-SFT", 0.3),
    "internlm2-1.8b": ("internlm/internlm2-chat-1_8b", "internlm/internlm2-chat-1_8b-sft", 0.5),
    "internlm2-7b": ("internlm/internlm2-chat-7b", "internlm/internlm2-chat-7b-sft", 0.5),
    "internlm2-20b": ("internlm/internlm2-chat-20b", "internlm/internlm2-chat-20b-sft", 0.5),
    "tulu2-7b": ("allenai/tulu-2-dpo-7b", "allenai/tulu-2-7b", 0.5),
    "tulu2-13b": ("allenai/tulu-2-dpo-13b", "allenai/tulu-2-13b", 0.5),
    "tulu2-70b": ("allenai/tulu-2-dpo-70b", "allenai/tulu-2-70b", 0.5),
    "smaug-34b": ("abacusai/Smaug-34B-v0.1", "jondurbin/bagel-34b-v0.2", 0.3),
    "zephyr-dpo-full": ("alignment-handbook/zephyr-7b-dpo-full", _SFT_FULL, 0.3),
    "zephyr-dpo-40": ("chujiezheng/zephyr_0.4", _SFT_FULL, 0.5),
    "zephyr-dpo-20": ("chujiezheng/zephyr_0.2", _SFT_FULL, 2.5),
    "zephyr-dpo-10": ("chujiezheng/zephyr_0.1", _SFT_FULL, 8.0),
    "zephyr-dpo-05": ("chujiezheng/zephyr_0.05", _SFT_FULL, 25.0),
    "llama3-8b-simpo": ("princeton-nlp/Llama-3-Instruct-8B-SimPO", "meta-llama/Meta-Llama-3-8B-Instruct", 0.3),
    "sppo-7b": ("UCLA-AGI/Mistral7B-PairRM-SPPO", _MISTRAL, 0.3),
    "smaug-llama3-70b": ("abacusai/Smaug-Llama-3-70B-Instruct", "meta-llama/Meta-Llama-3-70B-Instruct", 0.3),
}
NEEDS_REMOTE_CODE = ["internlm2-1.8b", "internlm2-7b", "internlm2-20b"]
ALL = ["demo", *TABLE]


def _load(name: str) -> StudySpec:
    return load_study(preset=name, trust_remote_code=True)


def test_the_folder_holds_the_demo_and_the_papers_pairs_and_nothing_else() -> None:
    assert {file.stem for file in studies_folder().glob("*.toml")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_preset_loads_without_faults_and_is_named_after_its_file(name: str) -> None:
    assert _load(name).name == name


@pytest.mark.parametrize("name", TABLE)
def test_checkpoints_and_published_alpha_are_those_of_the_table(name: str) -> None:
    pair = _load(name).pair
    assert (pair.aligned, pair.sft, pair.published_alpha) == TABLE[name]


@pytest.mark.parametrize("name", TABLE)
def test_prompts_sampling_and_reward_model_are_the_papers(name: str) -> None:
    spec = _load(name)
    assert spec.pair.reward_model == "weqweasdas/RM-Mistral-7B"
    assert (spec.prompts.source, spec.prompts.split) == ("HuggingFaceH4/ultrafeedback_binarized", "test_gen")
    assert spec.prompts.n == 1000
    assert spec.sampling.model_dump() == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "max_tokens": 2048,
    }


@pytest.mark.parametrize("sampler", ["expo", "gp", "tpe", "grid", "random"])
@pytest.mark.parametrize("name", TABLE)
def test_the_published_alpha_lies_strictly_inside_the_range_that_is_searched(name: str, sampler: str) -> None:
    spec = load_study(preset=name, overrides={"search": {"sampler": sampler}}, trust_remote_code=True)
    low, high = bounds(spec.search, spec.pair.published_alpha)
    assert low < TABLE[name][2] < high


@pytest.mark.parametrize("name", ALL)
def test_no_preset_sets_a_range_that_would_censor_the_optimum(name: str) -> None:
    search = _load(name).search
    assert (search.alpha_min, search.alpha_max) == ("auto", "auto")


@pytest.mark.parametrize("name", ALL)
def test_the_first_line_of_each_file_is_the_command_that_runs_it(name: str) -> None:
    first, *_ = (studies_folder() / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    consent = " --trust-remote-code" if name in NEEDS_REMOTE_CODE else ""
    assert first == f"# expo-search --pair {name} --trials 20{consent}"


@pytest.mark.parametrize("name", ALL)
def test_each_preset_says_its_family_licence_and_notes(name: str) -> None:
    pair = _load(name).pair
    assert pair.family
    assert pair.licence
    assert pair.notes


def test_zephyr_7b_beta_is_another_name_of_zephyr() -> None:
    assert _load("zephyr-7b-beta") == _load("zephyr")


def test_presets_come_in_alphabetical_order_also_where_one_name_begins_with_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app(["pairs", "--json"], standalone_mode=False)
    assert list(json.loads(capsys.readouterr().out)) == sorted(ALL)
    assert list(preset_names()) == sorted(preset_names())


def test_no_alias_hides_a_preset_or_another_alias() -> None:
    aliases = [alias for name in ALL for alias in _load(name).pair.aliases]
    assert len(preset_names()) == len(ALL) + len(aliases)


@pytest.mark.parametrize("name", NEEDS_REMOTE_CODE)
def test_a_pair_with_code_in_its_repository_is_refused_until_trust_remote_code_is_given(name: str) -> None:
    with pytest.raises(StudyError, match="--trust-remote-code"):
        load_study(preset=name)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NEEDS_REMOTE_CODE])
def test_every_other_pair_loads_without_trusting_remote_code(name: str) -> None:
    assert not load_study(preset=name).trust_remote_code


def test_paths_in_a_study_file_are_seen_from_its_folder_and_hub_ids_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there / "sft", there / "org" / "local"):
        folder.mkdir(parents=True)
    (there / "p.jsonl").write_text("{}")
    (there / "mine.toml").write_text(
        '[pair]\nsft = "sft"\naligned = "org/local"\nreward_model = "org/on-the-hub"\n[prompts]\nsource = "p.jsonl"\n'
    )
    monkeypatch.chdir(here)
    spec = load_study(file=Path("../there/mine.toml"))
    assert (spec.pair.sft, spec.pair.aligned) == ("../there/sft", "../there/org/local")
    assert (spec.pair.reward_model, spec.prompts.source) == ("org/on-the-hub", "../there/p.jsonl")
    # what is given by hand is seen from where one is
    assert load_study(file=there / "mine.toml", overrides={"pair": {"sft": "sft"}}).pair.sft == "sft"
    monkeypatch.chdir(there)
    assert load_study(file=Path("mine.toml")).pair.sft == "sft"


def test_paths_in_a_study_file_of_a_linked_folder_are_seen_from_where_the_link_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "sft", there / "sft", there / "models" / "aligned", there / "studies" / "sft"):
        folder.mkdir(parents=True)
    (there / "rate.py").touch()
    (here / "link").symlink_to(there / "studies")
    (there / "studies" / "mine.toml").write_text(
        '[pair]\nsft = "sft"\naligned = "../models/aligned"\nreward_model = "../../here/sft"\n'
        '[reward]\nscorer = "python3 ../rate.py"\n'
    )
    monkeypatch.chdir(here)
    spec = load_study(file=Path("link/mine.toml"), trust_remote_code=True)
    assert (spec.pair.sft, spec.pair.aligned) == ("link/sft", str(there / "models" / "aligned"))
    assert (spec.pair.reward_model, spec.reward.scorer) == ("../here/sft", f"python3 {there}/rate.py")
    # one that `init` writes there names what was given
    app(["init", "link/new.toml", "--sft", "sft", "--aligned", "link/sft"], standalone_mode=False)
    pair = load_study(file=Path("link/new.toml")).pair
    assert (pair.sft, pair.aligned) == ("../here/sft", "link/sft")


def test_a_path_that_is_missing_is_named_as_it_lies_from_the_study_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[pair]\nsft = "./gone"\naligned = "a/b"\nreward_model = "c/d"\n')
    assert load_study(file=tmp_path / "mine.toml").pair.sft == str(tmp_path / "gone")


def test_a_path_that_is_missing_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('[pair]\nsft = "./org/gone"\naligned = "a/b"\nreward_model = "c/d"\n')
    monkeypatch.chdir(tmp_path)
    assert load_study(file=Path("mine.toml")).pair.sft == "./org/gone"


def test_a_checkpoint_in_the_place_of_another_has_none_of_its_revision(tmp_path: Path) -> None:
    text = '[pair]\nsft = "o/s"\naligned = "o/a"\nreward_model = "o/r"\n'
    text += 'sft_revision = "s1"\nreward_revision = "r1"\n'
    (tmp_path / "mine.toml").write_text(text)

    def given(**pair: str) -> tuple[str | None, str | None]:
        found = load_study(file=tmp_path / "mine.toml", overrides={"pair": pair}).pair
        return found.sft_revision, found.reward_revision

    assert given() == given(reward_model="o/r") == given(aligned="x/a") == ("s1", "r1")
    assert given(reward_model="x/r") == ("s1", None)
    assert given(sft="x/s", reward_model="x/r", reward_revision="r2") == (None, "r2")


def test_so_has_an_adapter_and_its_base_has_its_own(tmp_path: Path) -> None:
    text = '[pair]\naligned = "o/b"\nadapter = "o/l"\nreward_model = "o/r"\n'
    (tmp_path / "mine.toml").write_text(text + 'aligned_revision = "b1"\nadapter_revision = "l1"\n')

    def given(**pair: str) -> tuple[str | None, str | None]:
        found = load_study(file=tmp_path / "mine.toml", overrides={"pair": pair}).pair
        return found.aligned_revision, found.adapter_revision

    assert given() == given(adapter="o/l") == ("b1", "l1")
    assert given(adapter="x/l") == ("b1", None)
    assert given(aligned="x/b") == (None, "l1")
