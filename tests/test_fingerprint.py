"""The hash against an independent NumPy implementation of its definition, and what it must notice."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from expo_search.weights.fingerprint import WORDS_PER_BLOCK, Fingerprinter, digest, keys

MASK = 2**64 - 1


def split_mix(n: int) -> int:
    """The n-th key, in Python's integers (Steele, Lea & Flood 2014, seeded with "ExPO")."""
    z = (n + int.from_bytes(b"ExPO")) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def reference_sum(data: bytes) -> int:
    """sum_i r_(i mod B) * s_(i div B) * x_i mod 2^64 over signed little-endian words."""
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype="<i4").astype(np.int64).view(np.uint64)
    lower_halves = [split_mix(i) & 0xFFFFFFFF for i in range(min(WORDS_PER_BLOCK, len(words)))]
    r = np.array(lower_halves, dtype=np.uint32).view(np.int32).astype(np.int64).view(np.uint64)
    total = 0
    for block, start in enumerate(range(0, len(words), WORDS_PER_BLOCK)):
        part = words[start : start + WORDS_PER_BLOCK]
        total += int((r[: len(part)] * part).sum(dtype=np.uint64)) * split_mix(2**32 + block)
    return total & MASK


def of_bytes(data: bytes) -> int:
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return Fingerprinter().tensor_sum(tensor)


def weights(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)


def test_keys_are_those_of_split_mix() -> None:
    found = [k & MASK for k in keys(5, 100).tolist()]
    assert found == [split_mix(n) for n in range(5, 105)]


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 3, 4, 5, 7, 8, 1023])
def test_any_length_in_bytes_agrees_with_the_definition(n_bytes: int) -> None:
    data = np.random.default_rng(n_bytes).bytes(n_bytes)
    assert of_bytes(data) == reference_sum(data)


@pytest.mark.parametrize(
    "n_words", [WORDS_PER_BLOCK - 1, WORDS_PER_BLOCK, 2 * WORDS_PER_BLOCK, 2 * WORDS_PER_BLOCK + 3]
)
def test_any_number_of_blocks_agrees_with_the_definition(n_words: int) -> None:
    data = np.random.default_rng(n_words).bytes(4 * n_words)
    assert of_bytes(data) == reference_sum(data)


@pytest.mark.parametrize(
    "tensor",
    [
        weights(33),
        weights(33, torch.bfloat16),
        weights(33, torch.float16),
        weights(33, torch.float64),
        torch.arange(-5, 6),
        torch.arange(11, dtype=torch.int8),
        torch.tensor([True, False, True]),
        torch.tensor(2.5),
        torch.empty(0, 3),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_every_dtype_is_hashed_by_its_bytes(tensor: torch.Tensor) -> None:
    data = b"".join(bytes(v) for v in tensor.reshape(-1, 1).view(torch.uint8).tolist()) if tensor.numel() else b""
    assert Fingerprinter().tensor_sum(tensor) == reference_sum(data)


def test_views_are_hashed_as_their_copies_are_also_from_the_middle_of_a_word() -> None:
    whole = weights(64, torch.bfloat16).view(8, 8)
    for view in (whole.t(), whole[:, 1:3], whole.view(-1)[1:9], whole.view(-1)[3:10]):
        assert Fingerprinter().tensor_sum(view) == Fingerprinter().tensor_sum(view.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_flipped_bit_is_noticed(dtype: torch.dtype) -> None:
    tensor = weights(16, dtype)
    data = bytearray(tensor.view(torch.uint8).tolist())
    sums = {of_bytes(bytes(data))}
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        sums.add(of_bytes(bytes(data)))
        data[bit // 8] ^= 1 << bit % 8
    assert len(sums) == 8 * len(data) + 1


def test_two_flipped_signs_are_noticed() -> None:
    tensor = weights(32)
    sums = set()
    for i in range(32):
        for j in range(i):
            changed = tensor.clone()
            changed[[i, j]] *= -1
            sums.add(Fingerprinter().tensor_sum(changed))
    assert len(sums) == 32 * 31 // 2
    assert Fingerprinter().tensor_sum(tensor) not in sums


@pytest.mark.parametrize("distance", [1, 2, WORDS_PER_BLOCK])
def test_swapped_elements_are_noticed(distance: int) -> None:
    tensor = weights(2 * WORDS_PER_BLOCK)
    swapped = tensor.clone()
    swapped[0], swapped[distance] = tensor[distance], tensor[0]
    assert Fingerprinter().tensor_sum(tensor) != Fingerprinter().tensor_sum(swapped)


def test_swapped_blocks_are_noticed() -> None:
    tensor = weights(2 * WORDS_PER_BLOCK)
    assert Fingerprinter().tensor_sum(tensor) != Fingerprinter().tensor_sum(tensor.roll(WORDS_PER_BLOCK))


def test_negative_zero_is_not_zero() -> None:
    assert Fingerprinter().tensor_sum(torch.tensor([0.0])) != Fingerprinter().tensor_sum(torch.tensor([-0.0]))


def test_one_fingerprinter_gives_the_same_sums_in_any_order_and_leaves_the_weights_alone() -> None:
    fingerprinter, tensors = Fingerprinter(), [weights(3), weights(WORDS_PER_BLOCK + 1), weights(9, torch.bfloat16)]
    kept = [t.clone() for t in tensors]
    first = [fingerprinter.tensor_sum(t) for t in tensors]
    assert [fingerprinter.tensor_sum(t) for t in reversed(tensors)] == first[::-1]
    assert all(torch.equal(t, k) for t, k in zip(tensors, kept, strict=True))


def test_a_line_has_name_dtype_shape_and_sum_so_that_equal_bytes_under_another_shape_differ() -> None:
    tensor = torch.zeros(6)
    fingerprinter = Fingerprinter()
    assert fingerprinter.line("a.weight", tensor) == "a.weight torch.float32 (6,) 0000000000000000"
    lines = {fingerprinter.line("a", t) for t in (tensor, tensor.view(2, 3), tensor.int())} | {
        fingerprinter.line("b", tensor)
    }
    assert len(lines) == 4


def test_the_digest_is_sha_256_of_the_lines_sorted() -> None:
    assert digest(["b 2", "a 1"]) == digest(["a 1", "b 2"]) == hashlib.sha256(b"a 1\nb 2").hexdigest()[:32]
    assert digest(["a 1"]) != digest(["a 1", "a 1"])
