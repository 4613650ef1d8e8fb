"""Files laid out in advance: the same bytes as the safetensors library's, whatever the order of writing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from expo_search.checkpoint.folder import INDEX, SINGLE, open_checkpoint
from expo_search.checkpoint.shard_writer import ShardWriter
from expo_search.dtypes import TORCH_DTYPES

SHAPES = {"model.embed_tokens.weight": (10, 4), "lm_head.weight": (10, 4), "model.norm.weight": (4,)}
NAMES = {torch.bfloat16: "BF16", torch.int64: "I64", torch.float32: "F32", torch.bool: "BOOL"}


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=random).bfloat16() for name, shape in SHAPES.items()}


def write(folder: Path, held: dict[str, torch.Tensor], max_shard_bytes: int = 1 << 30) -> None:
    folder.mkdir(exist_ok=True)
    specs = [(name, NAMES[t.dtype], t.shape) for name, t in held.items()]
    with ShardWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in reversed(held.items()):
            flat = tensor.reshape(-1)
            middle = len(flat) // 2
            writer.write(name, flat[middle:], first=middle)
            writer.write(name, flat[:middle])


@pytest.mark.parametrize(("max_shard_bytes", "n_files"), [(168, 1), (167, 2), (90, 2), (1, 3)])
def test_what_is_written_in_shards_is_read_back_to_the_bit(tmp_path: Path, max_shard_bytes: int, n_files: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    held = tensors()
    write(tmp_path, held, max_shard_bytes)
    found = open_checkpoint(tmp_path, role="sft")
    assert all(torch.equal(found.read(name), tensor) for name, tensor in held.items())
    assert len(list(tmp_path.glob("*.safetensors"))) == n_files
    assert (tmp_path / INDEX).exists() == (n_files > 1)
    if n_files == 1:
        assert set(load_file(tmp_path / SINGLE)) == set(held)
    else:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"]["total_size"] == found.n_bytes
        assert index["weight_map"] == {name: t.file.name for name, t in found.tensors.items()}


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text('abéß"\\.<', min_size=1, max_size=6),
        st.tuples(st.sampled_from(list(NAMES)), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=8,
    )
)
def test_a_file_is_byte_for_byte_that_of_the_safetensors_library(
    tmp_path_factory: pytest.TempPathFactory, wanted: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    held = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in wanted.items()}
    write(folder, held)
    save_file(held, folder / "theirs", metadata={"format": "pt"})
    assert (folder / SINGLE).read_bytes() == (folder / "theirs").read_bytes()


def test_a_file_that_cannot_be_made_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def no_third(*arguments: Any) -> int:
        if len(opened) == 2:
            raise OSError(24, "Too many open files")
        opened.append(real(*arguments))
        return opened[-1]

    real = os.open
    monkeypatch.setattr("expo_search.checkpoint.shard_writer.os.open", no_third)
    with pytest.raises(OSError, match="Too many open files"):
        write(tmp_path, tensors(), max_shard_bytes=1)
    monkeypatch.undo()
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_the_order_of_dtypes_is_that_of_the_library(tmp_path: Path) -> None:
    held = {f"t{i}": torch.zeros(1, dtype=getattr(torch, name)) for i, name in enumerate(TORCH_DTYPES.values())}
    save_file(held, tmp_path / "theirs")
    header = json.loads((tmp_path / "theirs").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert [entry["dtype"] for entry in header.values()] == list(TORCH_DTYPES)
