"""Streaming through two buffers gives every element once, in order, and the same bits as sources that are at hand."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from expo_search.engine.worker.source_pieces import PieceReader
from expo_search.engine.worker.source_report import Sources
from expo_search.weights.fingerprint import WORDS_PER_BLOCK, Fingerprinter
from expo_search.weights.formula import Extrapolator, plain_theta

C = 4 * WORDS_PER_BLOCK  # elements of a piece
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    aligned: torch.Tensor
    sft: torch.Tensor


def pair(*shape: int, dtype: torch.dtype = torch.bfloat16, sft_dtype: torch.dtype = torch.bfloat16) -> Pair:
    noise = torch.Generator().manual_seed(sum(shape))
    return Pair(torch.randn(shape, generator=noise).to(dtype), torch.randn(shape, generator=noise).to(sft_dtype))


PAIRS = [
    pair(3), pair(C), pair(0), pair(2 * C + 5), pair(7, 11), pair(), pair(C - 1),
    pair(500, 300, sft_dtype=torch.float32), pair(C + 1, dtype=torch.float64, sft_dtype=torch.float64),
]  # fmt: skip


@pytest.mark.parametrize("stage", [False, True])
def test_every_element_comes_once_and_in_order(stage: bool) -> None:
    seen: dict[int, list[Pair]] = {}
    for weight, start, aligned, sft in PieceReader(CPU, stage=stage, piece=C).read(PAIRS):
        parts = seen.setdefault(id(weight), [])
        assert start == sum(len(part.aligned) for part in parts)
        assert 0 < len(aligned) == len(sft) <= C
        parts.append(Pair(aligned.clone(), sft.clone()))  # a buffer is used again
    for p in PAIRS:
        parts = seen.get(id(p), [])
        assert torch.equal(torch.cat([torch.empty(0), *(q.aligned for q in parts)]), p.aligned.view(-1))
        assert torch.equal(torch.cat([torch.empty(0), *(q.sft for q in parts)]), p.sft.view(-1))


@pytest.mark.parametrize("alpha", [0.0, 0.7, -3.0])
def test_streamed_sources_give_the_bits_of_sources_at_hand(alpha: float) -> None:
    extrapolator = Extrapolator()
    outs = {id(p): torch.empty(p.aligned.shape, dtype=torch.bfloat16) for p in PAIRS}
    for weight, start, aligned, sft in PieceReader(CPU, stage=True, piece=C).read(PAIRS):
        extrapolator.into(outs[id(weight)].view(-1)[start : start + len(aligned)], aligned, sft, alpha)
    for p in PAIRS:
        assert torch.equal(outs[id(p)], plain_theta(p.aligned, p.sft, alpha).bfloat16())


def test_fingerprints_of_pieces_add_up_to_the_tensors() -> None:
    fingerprinter = Fingerprinter()
    for p in PAIRS:
        total = sum(
            fingerprinter.tensor_sum(piece.aligned, piece.start * piece.aligned.itemsize // (4 * WORDS_PER_BLOCK))
            for piece in PieceReader(CPU, stage=True, piece=C).read([p])
        )
        assert total % 2**64 == fingerprinter.tensor_sum(p.aligned)


def test_the_next_piece_is_under_way_while_one_is_used_and_never_in_its_buffer() -> None:
    reader = PieceReader(CPU, stage=True, piece=C)
    pieces = reader.read([pair(4 * C)])
    addresses, kept = [], []
    for i, piece in enumerate(pieces):
        addresses.append(piece.aligned.data_ptr())
        kept.append((piece.aligned, piece.aligned.clone()))
        if 0 < i < 3:
            assert not torch.equal(*kept[-2])  # its buffer holds the next piece by now
        assert torch.equal(*kept[-1])
    assert addresses == [addresses[0], addresses[1]] * 2
    assert addresses[0] != addresses[1]


def test_a_reading_that_is_given_up_leaves_the_reader_usable() -> None:
    reader = PieceReader(CPU, stage=True, piece=C)
    next(iter(reader.read(PAIRS)))
    assert sum(len(piece.aligned) for piece in reader.read(PAIRS)) == sum(p.aligned.numel() for p in PAIRS)


def a_weight() -> SimpleNamespace:
    aligned = torch.full((8,), 0.5, dtype=torch.bfloat16)
    sft = aligned + 0.01 * torch.arange(8).bfloat16()
    return SimpleNamespace(
        name="w", aligned=aligned, sft=sft, dtype=torch.bfloat16, shape=aligned.shape, is_loaded_float=True
    )


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what torch is asked for: a device is waited for in none of none."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_an_alpha_of_a_search_is_found_finite_without_touching_a_weight_again() -> None:
    sources = Sources([a_weight()], PieceReader(CPU, stage=False))  # type: ignore[list-item]
    sources.describe()
    with Operations() as operations:  # type: ignore[no-untyped-call]
        assert [sources.overflow(alpha) for alpha in (0.0, 0.7, -1.0, 64.0)] == [None] * 4
    assert operations.n == 0
    with operations:
        assert sources.overflow(1e39) == "w"
    assert operations.n > 0


@pytest.mark.parametrize(("alpha", "expected"), [(1e39, "w"), (-1e39, "w"), (3e38, None), (1e300, "w")])
def test_an_alpha_that_is_infinite_in_float32_overflows_even_a_weight_that_hardly_moves(
    alpha: float, expected: str | None
) -> None:
    sources = Sources([a_weight()], PieceReader(CPU, stage=False))  # type: ignore[list-item]
    assert sources.overflow(alpha) == expected
