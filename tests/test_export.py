"""The exported checkpoint: to the bit the formula that NumPy computes, whole or not there at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from twins import make_pair, offline_checkpoint, pad_vocabulary_with, read_all, shrink_vocabulary

from expo_search import export as exporting
from expo_search.checkpoint import open_checkpoint
from expo_search.errors import StudyError
from expo_search.export import PROVENANCE, export


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), "llama-untied")


def write(aligned: Path, sft: Path, alpha: float, out: Path, **options: object) -> Path:
    sources = open_checkpoint(aligned, role="aligned"), open_checkpoint(sft, role="sft")
    export(*sources, alpha, out, provenance={"alpha": alpha}, **options)  # type: ignore[arg-type]
    return out


def same_bits(one: Path, other: Path) -> bool:
    a, b = read_all(one), read_all(other)
    return a.keys() == b.keys() and all(torch.equal(a[k].view(torch.int16), b[k].view(torch.int16)) for k in a)


@pytest.mark.parametrize("alpha", [0.0, 0.7, -0.4, 8.0])
def test_the_tensors_are_the_formulas_to_the_bit(pair: tuple[Path, Path], alpha: float, tmp_path: Path) -> None:
    out = write(*pair, alpha, tmp_path / "out")
    assert same_bits(out, offline_checkpoint(*pair, alpha, tmp_path / "offline"))


def test_shards_hold_the_same_tensors_with_an_index(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole = write(*pair, 0.7, tmp_path / "whole")
    sharded = write(*pair, 0.7, tmp_path / "sharded", max_shard_bytes=200_000)
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert same_bits(whole, sharded)
    assert open_checkpoint(sharded, role="aligned").tensors.keys() == read_all(whole).keys()


def test_vocabulary_rows_that_sft_lacks_are_aligneds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    aligned, sft = pair
    shorter = shrink_vocabulary(sft, tmp_path / "shorter", by=5)
    padded = pad_vocabulary_with(aligned, shorter, tmp_path / "padded")
    out = write(aligned, shorter, 0.7, tmp_path / "out")
    assert same_bits(out, offline_checkpoint(aligned, padded, 0.7, tmp_path / "offline"))


def test_it_loads_in_transformers_without_our_code(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = write(*pair, 0.7, tmp_path / "out", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert json.loads((out / PROVENANCE).read_text()) == {"alpha": 0.7}


def test_an_existing_folder_is_kept_unless_forced(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(StudyError, match="exists already"):
        write(*pair, 0.7, out)
    assert (out / "mine.txt").read_text() == "keep"
    write(*pair, 0.7, out, force=True)
    assert not (out / "mine.txt").exists()
    assert (out / "model.safetensors").exists()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_room_is_said_before_writing(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(StudyError, match=r"0.0 GB free; expected 0.1 GB"):
        write(*pair, 0.7, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_fault_in_the_middle_leaves_nothing_and_the_old_folder_whole(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = write(*pair, 0.0, tmp_path / "out")

    def fails(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "_copy_beside", fails)
    with pytest.raises(StudyError, match="No space left on device; expected"):
        write(*pair, 0.7, old, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert same_bits(old, pair[0])
