"""The context that nobody set follows the checkpoint; one that is too long is refused before an engine starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_preflight import checked
from twins import make_pair, write_prompts

from expo_search.config.presets import load_study
from expo_search.engine.context_length import allowed_context
from expo_search.errors import CheckpointError, PairError, RewardError, StudyError
from expo_search.evaluation.reward_model import check_labels
from expo_search.inputs.chat_template import load_tokenizer
from expo_search.session.preflight import Checked, check


@pytest.fixture
def home(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def unset(home: Path, n_positions: int, max_tokens: int = 8, **engine: Any) -> Checked:
    for role in ("aligned", "sft"):
        set_config(home / role, max_position_embeddings=n_positions)
    overrides: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "aligned", "sft": "sft", "reward_model": "reward"},
        "prompts": {"source": "prompts.jsonl"},
        "sampling": {"max_tokens": max_tokens},
        "engine": engine,
    }
    return check(load_study(overrides=overrides), "sqlite:///test.db", lambda _: None)


@pytest.mark.parametrize(("n_positions", "expected"), [(512, 512), (1024, 1024), (2048, 2048), (32768, 4096)])
def test_a_context_that_nobody_set_is_what_the_checkpoint_allows_up_to_the_usual(
    home: Path, n_positions: int, expected: int
) -> None:
    found = unset(home, n_positions)
    assert found.spec.engine.max_model_len == expected
    assert found.settings.engine.max_model_len == expected


@pytest.mark.parametrize("n_positions", [512, 1024, 2048])
def test_one_that_was_set_and_is_too_long_is_refused_with_the_number_that_would_do(
    home: Path, n_positions: int
) -> None:
    with pytest.raises(StudyError, match=rf"max_model_len 4096: .*{n_positions} tokens.*--max-model-len {n_positions}"):
        unset(home, n_positions, max_model_len=4096)
    assert unset(home, n_positions, max_model_len=n_positions).spec.engine.max_model_len == n_positions


@pytest.mark.parametrize("n_positions", [512, 1024, 2048])
def test_answers_that_leave_no_room_are_refused_with_the_number_that_would_fit(home: Path, n_positions: int) -> None:
    with pytest.raises(StudyError, match=rf"max_tokens 2048: a context of {n_positions} tokens") as fault:
        unset(home, n_positions, max_tokens=2048)
    fits = int(fault.value.do.split("--max-tokens ")[1].split()[0])
    found = unset(home, n_positions, max_tokens=fits)
    assert all(found.fits(prompt) for prompt in found.prompts)
    assert not all(unset(home, n_positions, max_tokens=fits + 1).fits(prompt) for prompt in found.prompts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 1024),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, 512),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                           "original_max_position_embeddings": 128}}, 512),
        ({"sliding_window": 64, "use_sliding_window": True}, 512),
        ({"n_positions": 256}, 256),
        ({"model_max_length": 2048}, 2048),
        ({"model_type": "nobody-knows"}, None),
    ],
)  # fmt: skip
def test_it_is_derived_as_vllm_derives_it(home: Path, changes: dict[str, Any], expected: int | None) -> None:
    set_config(home / "aligned", **changes)
    assert allowed_context(home / "aligned", trust_remote_code=False) == expected
    if expected is None:
        return
    from vllm.config import ModelConfig

    def vllm(length: int | None) -> int:
        return int(ModelConfig(model=str(home / "aligned"), max_model_len=length).max_model_len)

    assert vllm(expected) == expected
    with pytest.raises(ValueError, match="max_model_len"):
        vllm(expected + 1)


@pytest.mark.parametrize("changes", [{"max_position_embeddings": "128"}, {"vocab_size": None}])
def test_values_of_another_type_are_one_line_and_no_traceback(home: Path, changes: dict[str, Any]) -> None:
    for role in ("aligned", "reward"):
        set_config(home / role, **changes)
    [name] = changes
    with pytest.raises(CheckpointError, match=rf"config.json of .*: .*{name}"):
        allowed_context(home / "aligned", trust_remote_code=False)
    with pytest.raises(PairError, match=name):
        load_tokenizer(str(home / "aligned"), trust_remote_code=False)
    with pytest.raises(RewardError, match=name):
        check_labels(home / "reward", trust_remote_code=False)


def test_layers_of_several_kinds_with_ropes_of_their_own(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path, "gemma3")
    assert allowed_context(aligned, trust_remote_code=False) == 512


@pytest.mark.usefixtures("home")
def test_a_stored_context_is_kept() -> None:
    assert checked().spec.engine.max_model_len == 128
