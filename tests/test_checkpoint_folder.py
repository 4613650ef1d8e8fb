"""Folders of safetensors: what is read, which pairs are refused, every way in which a file can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from expo_search.checkpoint.folder import INDEX, SINGLE, Checkpoint, open_checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.errors import CheckpointError

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 10, "tie_word_embeddings": False}
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def tensors(seed: int = 0, rows: int = 10) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {EMBED: (rows, 4), HEAD: (rows, 4), NORM: (4,)}
    return {name: torch.randn(shape, generator=random).bfloat16() for name, shape in shapes.items()}


def make(folder: Path, held: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors() if held is None else held, folder / SINGLE)
    return folder


def opened(folder: Path, held: dict[str, torch.Tensor] | None = None, **config: Any) -> Checkpoint:
    return open_checkpoint(make(folder, held, **config), role="sft")


def fault_of(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as fault:
        open_checkpoint(folder, role="sft")
    assert "\n" not in str(fault.value)
    return fault.value


def pair_fault(aligned: Checkpoint, sft: Checkpoint) -> CheckpointError:
    with pytest.raises(CheckpointError) as fault:
        check_pair(aligned, sft)
    return fault.value


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors().items() if name not in names}


def test_headers_tell_names_dtypes_shapes_and_sizes_and_tensors_are_read_to_the_bit(tmp_path: Path) -> None:
    held = tensors() | {"step": torch.tensor([3]), "empty": torch.empty(0, 5)}
    found = opened(tmp_path, held)
    assert {n: (t.dtype, t.shape, t.n_bytes) for n, t in found.tensors.items()} == {
        EMBED: ("BF16", (10, 4), 80),
        HEAD: ("BF16", (10, 4), 80),
        NORM: ("BF16", (4,), 8),
        "step": ("I64", (1,), 8),
        "empty": ("F32", (0, 5), 0),
    }
    assert found.n_bytes == 176
    assert found.architecture == "LlamaForCausalLM"
    assert all(torch.equal(found.read(name), tensor) for name, tensor in held.items())


def test_rotary_tables_of_old_checkpoints_are_left_out(tmp_path: Path) -> None:
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    assert set(opened(tmp_path, tensors() | rotary).tensors) == set(tensors())


def test_shards_that_an_index_names_are_read_and_stale_files_beside_them_are_not(tmp_path: Path) -> None:
    make(tmp_path, {"stale": torch.ones(1)})
    save_file(without(HEAD), tmp_path / "a.safetensors")
    save_file({HEAD: tensors()[HEAD]}, tmp_path / "b.safetensors")
    names = {EMBED: "a.safetensors", NORM: "a.safetensors", HEAD: "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    found = open_checkpoint(tmp_path, role="sft")
    assert {name: t.file.name for name, t in found.tensors.items()} == names
    assert torch.equal(found.read(HEAD), tensors()[HEAD])


def test_shards_without_an_index_are_read_all_but_a_tensor_in_two_of_them_is_a_fault(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / SINGLE).rename(tmp_path / "x1.safetensors")
    save_file({"more": torch.ones(1)}, tmp_path / "x2.safetensors")
    assert set(open_checkpoint(tmp_path, role="sft").tensors) == {*tensors(), "more"}
    save_file({NORM: torch.ones(4)}, tmp_path / "x3.safetensors")
    assert fault_of(tmp_path).found == f"tensor {NORM} in two files"


def test_the_header_hash_notices_another_name_shape_or_dtype_but_not_other_weights(tmp_path: Path) -> None:
    same = [opened(tmp_path / f"same{i}", tensors(seed=i)).header_hash for i in range(2)]
    other = [
        opened(tmp_path / "shape", tensors(rows=12)).header_hash,
        opened(tmp_path / "dtype", {n: t.half() for n, t in tensors().items()}).header_hash,
        opened(tmp_path / "name", without(HEAD) | {"head": tensors()[HEAD]}).header_hash,
    ]
    assert same[0] == same[1]
    assert len({*same, *other}) == 4


def test_the_sample_hash_notices_other_weights(tmp_path: Path) -> None:
    one, again, other = (opened(tmp_path / str(i), tensors(seed=seed)).sample_hash for i, seed in enumerate((0, 0, 1)))
    assert one == again != other


def test_a_path_that_is_no_folder_or_has_no_config_is_named(tmp_path: Path) -> None:
    assert str(fault_of(tmp_path / "none")) == (
        f"sft checkpoint {tmp_path / 'none'}: no such folder; expected a checkpoint folder; "
        "check the path, or give a Hub id"
    )
    assert fault_of(tmp_path).found == "no config.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "[" * 100_000])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_text(text)
    fault = fault_of(tmp_path)
    assert fault.where == str(tmp_path / "config.json")
    assert fault.expected == "a JSON object"


def test_pickled_weights_are_named_and_not_loaded(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / SINGLE).unlink()
    assert fault_of(tmp_path).found == "no safetensors (no weights at all)"
    (tmp_path / "pytorch_model.bin").touch()
    fault = fault_of(tmp_path)
    assert fault.found == "no safetensors (pytorch_model.bin)"
    assert "safe_serialization=True" in fault.do


@pytest.mark.parametrize("quantisation", [{"quant_method": "gptq"}, {"bits": 4}, "gptq"])
def test_a_quantised_checkpoint_is_refused(tmp_path: Path, quantisation: object) -> None:
    assert "quantised" in fault_of(make(tmp_path, quantization_config=quantisation)).found


def test_a_quantised_checkpoint_is_refused_wherever_that_is_said(tmp_path: Path) -> None:
    entries: tuple[dict[str, Any], ...] = (
        {"compression_config": {"format": "int"}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    )
    for i, entry in enumerate(entries):
        (tmp_path / str(i)).mkdir()
        assert "quantised" in fault_of(make(tmp_path / str(i), **entry)).found
    (make(tmp_path) / "hf_quant_config.json").write_text("{}")
    assert "quantised checkpoint (hf_quant_config.json)" in fault_of(tmp_path).found


def test_a_weight_that_has_scales_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / SINGLE).unlink()
    save_file({"a.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, folder / SINGLE)
    assert "quantised checkpoint (a.weight is F8_E4M3)" in fault_of(folder).found


def test_an_empty_quantisation_entry_is_none(tmp_path: Path) -> None:
    assert opened(tmp_path, quantization_config=None).n_bytes == 168


@pytest.mark.parametrize("architectures", [None, [], 5, "Llama", [None]])
def test_an_architecture_that_is_not_named_is_no_crash(tmp_path: Path, architectures: object) -> None:
    assert opened(tmp_path, architectures=architectures).architecture in ("?", "None")


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": [], "b": "x"}}',
     '{"weight_map": {"a": "gone.safetensors"}}', '{"weight_map": {"a": "../model.safetensors"}}', "[" * 100_000],
)  # fmt: skip
def test_a_broken_index_is_named(tmp_path: Path, index: str) -> None:
    make(tmp_path)
    make(tmp_path / "inner")
    (tmp_path / "inner" / INDEX).write_text(index)
    assert fault_of(tmp_path / "inner").where == str(tmp_path / "inner" / INDEX)


def test_a_good_pair_has_nothing_special(tmp_path: Path) -> None:
    found = check_pair(opened(tmp_path / "a"), opened(tmp_path / "s", tensors(seed=1)))
    assert (found.longer_vocabulary, found.tied_in_sft, found.skipped_in_sft) == ({}, {}, ())


def test_all_tensors_that_do_not_match_are_listed_with_both_shapes(tmp_path: Path) -> None:
    a = opened(tmp_path / "a", {"x": torch.ones(2), "y": torch.ones(2, 3), "z": torch.ones(1)})
    s = opened(tmp_path / "s", {"x": torch.ones(2), "y": torch.ones(3, 2), "q": torch.ones(1)})
    fault = pair_fault(a, s)
    assert fault.found == (
        "3 tensors that do not match (q: only in sft; y: aligned [2, 3], sft [3, 2]; z: only in aligned)"
    )
    assert fault.where == f"pair {tmp_path / 'a'} / {tmp_path / 's'}"


def test_of_many_tensors_that_do_not_match_the_first_five_are_listed(tmp_path: Path) -> None:
    a = opened(tmp_path / "a", {f"x{i}": torch.ones(2) for i in range(900)})
    fault = pair_fault(a, opened(tmp_path / "s", {"y": torch.ones(2)}))
    first = "; ".join(f"{name}: only in aligned" for name in ("x0", "x1", "x10", "x100", "x101"))
    assert fault.found == f"901 tensors that do not match ({first}; ...)"


def test_of_many_shards_that_are_missing_the_first_five_are_named(tmp_path: Path) -> None:
    make(tmp_path)
    names = {f"x{i}": f"{i:03}.safetensors" for i in range(200)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    first = ", ".join(f"{i:03}.safetensors" for i in range(5))
    assert fault_of(tmp_path).found == f"files not in the folder: {first}, ..."


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    fault = pair_fault(opened(tmp_path / "a"), opened(tmp_path / "s", architectures=["MistralForCausalLM"]))
    assert fault.found == "architecture MistralForCausalLM"
    assert fault.expected.startswith("LlamaForCausalLM")


def test_an_output_layer_that_one_side_ties_to_its_embedding_is_no_fault(tmp_path: Path) -> None:
    untied = opened(tmp_path / "untied")
    tied = opened(tmp_path / "tied", without(HEAD), tie_word_embeddings=True)
    assert check_pair(untied, tied).tied_in_sft == {HEAD: EMBED}
    assert check_pair(tied, untied).skipped_in_sft == (HEAD,)
    torn = opened(tmp_path / "torn", without(HEAD), tie_word_embeddings=False)
    assert HEAD in pair_fault(untied, torn).found
    assert HEAD in pair_fault(torn, untied).found


def test_a_longer_vocabulary_is_told_but_only_where_the_configs_say_so(tmp_path: Path) -> None:
    longer = opened(tmp_path / "longer", tensors(rows=12), vocab_size=12)
    assert check_pair(longer, opened(tmp_path / "s")).longer_vocabulary == {EMBED: (12, 10), HEAD: (12, 10)}
    assert (
        "aligned [12, 4], sft [10, 4]"
        in pair_fault(opened(tmp_path / "x", tensors(rows=12)), opened(tmp_path / "s")).found
    )
