"""Parts -> checkpoints: merges against arithmetic done by hand, and what is left behind when they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expo_search.assemble import dequantise_gguf, merge_adapter, merge_reward_adapter
from expo_search.errors import PairError

LAYERS = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Three layers of one 2 x 2 weight each; entries that bfloat16 holds exactly."""
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {name: torch.full((2, 2), float(i), dtype=torch.bfloat16) for i, name in enumerate(LAYERS)}
    save_file(weights, folder / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 0, "content": "<none>"}]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<end>"}))
    return folder


def write_adapter(folder: Path, *, head: bool = False, peft_type: str = "LORA", a_columns: int = 2) -> Path:
    """Rank 1, lora_alpha 4 on layer 1: the merge adds 4 b a, with b = (1, 2) and a = (1, 0)."""
    folder.mkdir()
    prefix = f"base_model.model.{LAYERS[1].removesuffix('.weight')}"
    a = torch.zeros(1, a_columns)
    a[0, 0] = 1.0
    factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": torch.tensor([[1.0], [2.0]])}
    if head:
        factors["base_model.model.score.weight"] = torch.tensor([[0.5, -0.5]])
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": peft_type, "r": 1, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_merge_adds_the_scaled_product_to_its_layer_only(base: Path, tmp_path: Path) -> None:
    merge_adapter(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged[LAYERS[1]].tolist() == [[1.0 + 4.0, 1.0], [1.0 + 8.0, 1.0]]
    assert merged[LAYERS[0]].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_a_merge_of_the_same_parts_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    for name in ("first", "second"):
        merge_adapter(base, adapter, tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [(f.name, f.read_bytes()) for f in first] == [(f.name, f.read_bytes()) for f in second]


def test_a_reward_model_has_the_head_its_layers_its_template_and_padding_of_its_own(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", head=True)
    (adapter / "layers.json").write_text('{"num_hidden_layers": 2}')
    (adapter / "chat_template.jinja").write_text("its own")
    merge_reward_adapter(base, adapter, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {LAYERS[0], LAYERS[1], "score.weight"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["num_hidden_layers"], config["pad_token_id"], len(config["id2label"])) == (2, 0, 1)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["pad_token"] == "<none>"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "its own"


@pytest.mark.parametrize("fault", [{"head": True}, {"peft_type": "IA3"}, {"a_columns": 3}])
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(base: Path, tmp_path: Path, fault: dict) -> None:
    adapter = write_adapter(tmp_path / "adapter", **fault)
    with pytest.raises(PairError, match="adapter"):
        merge_adapter(base, adapter, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_reward_adapter_without_a_head_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"score\.weight"):
        merge_reward_adapter(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"no model"])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(PairError, match="GGUF"):
        dequantise_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_an_existing_folder_is_never_overwritten(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match="exists already"):
        merge_adapter(base, write_adapter(tmp_path / "adapter"), base)
