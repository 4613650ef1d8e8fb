"""The formula in torch against an independent NumPy implementation, to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from expo_search.weights import formula as extrapolate
from expo_search.weights.formula import Extrapolator, plain_theta

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
ALPHAS = (0.1, 0.3, 1.0, -0.5, 2.5, 16.0, 1e-8, -1e30)
EXTREMES = (
    0.0, -0.0, 1.0, -1.0, 1.1754942e-38, -1e-45, 1e-40, 6e-8, 5.96e-8, 6.1e-5, 65504.0, 65520.0, -70000.0,
    3.0e38, -3.4028235e38, 1.00390625, 1.01171875, 0.333333343,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def to_float32(tensor: torch.Tensor) -> np.ndarray:
    """Widened by NumPy, from the bits: a bfloat16 is the upper half of a float32."""
    if tensor.dtype == torch.bfloat16:
        upper = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        return (upper.astype(np.uint32) << 16).view(np.float32)
    return tensor.contiguous().numpy().astype(np.float32)


def rounded_bits(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """float32 -> the bits of dtype, to nearest, ties to even; NaN is left to the caller."""
    if dtype == torch.float32:
        return values.view(np.int32)
    if dtype == torch.float16:
        return values.astype(np.float16).view(np.int16)
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def reference_bits(aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(bits of theta(alpha), where it is NaN): three float32 operations and one rounding."""
    with np.errstate(all="ignore"):
        a, s = to_float32(aligned), to_float32(sft)
        theta = a + np.float32(alpha) * (a - s)
        return rounded_bits(theta, aligned.dtype), np.isnan(theta)


def agree(out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> bool:
    bits, nan = reference_bits(aligned, sft, alpha)
    found = out.contiguous().view(BITS[out.dtype]).numpy()
    return bool(np.array_equal(found[~nan], bits[~nan]) and np.isnan(to_float32(out)[nan]).all())


def extrapolated(aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> torch.Tensor:
    out = torch.full_like(aligned, 7)
    Extrapolator().into(out, aligned, sft, alpha)
    return out


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_weights_agree_with_numpy_to_the_bit(dtype: torch.dtype, alpha: float) -> None:
    random = torch.Generator().manual_seed(1)
    aligned = torch.randn(10_000, generator=random).to(dtype)
    sft = (aligned + 0.01 * torch.randn(10_000, generator=random)).to(dtype)
    assert agree(extrapolated(aligned, sft, alpha), aligned, sft, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_pair_of_extreme_weights_agrees_with_numpy_to_the_bit(dtype: torch.dtype, alpha: float) -> None:
    values = torch.tensor(EXTREMES).to(dtype)
    aligned, sft = (t.flatten().contiguous() for t in torch.meshgrid(values, values, indexing="ij"))
    assert agree(extrapolated(aligned, sft, alpha), aligned, sft, alpha)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_bit_pattern_of_a_half_agrees_with_numpy(dtype: torch.dtype) -> None:
    aligned = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    sft = aligned.roll(12345)
    assert agree(extrapolated(aligned, sft, 0.3), aligned, sft, 0.3)


@pytest.mark.parametrize("sft_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula_written_plainly_gives_the_same_bits(dtype: torch.dtype, sft_dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(8)
    aligned, sft = torch.randn(999, generator=random).to(dtype), torch.randn(999, generator=random).to(sft_dtype)
    for alpha in (0.0, 0.3, -2.5):
        plain = plain_theta(aligned, sft, alpha)
        assert plain.dtype == (torch.float32 if alpha else dtype)
        assert torch.equal(plain.to(dtype), extrapolated(aligned, sft, alpha))


@pytest.mark.parametrize("sft_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_of_different_dtypes_are_widened_and_the_result_is_rounded_once(
    dtype: torch.dtype, sft_dtype: torch.dtype
) -> None:
    random = torch.Generator().manual_seed(2)
    aligned = torch.randn(5_000, generator=random).to(dtype)
    sft = torch.randn(5_000, generator=random).to(sft_dtype)
    assert agree(extrapolated(aligned, sft, 0.7), aligned, sft, 0.7)


def test_a_wide_source_is_rounded_once_into_a_narrower_weight() -> None:
    random = torch.Generator().manual_seed(3)
    aligned, sft = torch.randn(5_000, generator=random), torch.randn(5_000, generator=random)
    out = torch.empty(5_000, dtype=torch.bfloat16)
    Extrapolator().into(out, aligned, sft, 0.7)
    wide, _ = reference_bits(aligned, sft, 0.7)
    assert np.array_equal(out.view(torch.int16).numpy(), rounded_bits(wide.view(np.float32), torch.bfloat16))


@pytest.mark.parametrize("alpha", [0.0, -0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_zero_is_aligned_to_the_bit_with_negative_zeros_and_nan_payloads(
    dtype: torch.dtype, alpha: float
) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    aligned = (patterns.to(torch.int16) if dtype != torch.float32 else patterns * 65_521).view(dtype)
    out = extrapolated(aligned, torch.full_like(aligned, torch.inf), alpha)
    assert torch.equal(out.view(BITS[dtype]), aligned.view(BITS[dtype]))


@pytest.mark.parametrize("alpha", [1e-46, -1e-50])
def test_an_alpha_that_is_zero_in_float32_is_zero(alpha: float) -> None:
    aligned, sft = torch.tensor([-0.0, 1.0]), torch.tensor([1.0, -2.0])
    out = torch.empty_like(aligned)
    Extrapolator().into(out, aligned, sft, alpha)
    for found in (out, plain_theta(aligned, sft, alpha)):
        assert torch.equal(found.view(torch.int32), aligned.view(torch.int32))


def test_a_to_b_to_a_comes_back_to_the_bit_and_the_sources_stay_untouched() -> None:
    random = torch.Generator().manual_seed(4)
    aligned, sft = (torch.randn(64, 33, generator=random).bfloat16() for _ in range(2))
    kept = aligned.clone(), sft.clone()
    extrapolator, out = Extrapolator(), torch.empty_like(aligned)
    seen = []
    for alpha in (0.3, 0.7, 0.3, 0.0, 0.3):
        extrapolator.into(out, aligned, sft, alpha)
        seen.append(out.clone())
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], seen[4])
    assert torch.equal(seen[3], aligned)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(aligned, kept[0])
    assert torch.equal(sft, kept[1])


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_non_contiguous_tensors_get_the_same_bits_and_nothing_beside_them_is_written(alpha: float) -> None:
    random = torch.Generator().manual_seed(5)
    aligned, sft = (torch.randn(40, 30, generator=random).bfloat16() for _ in range(2))
    expected = extrapolated(aligned, sft, alpha)
    memory = torch.full((30, 80), 9.0, dtype=torch.bfloat16)
    out = memory[:, ::2].t()
    Extrapolator().into(out, aligned.t().contiguous().t(), sft.t().contiguous().t(), alpha)
    assert torch.equal(out, expected)
    assert bool((memory[:, 1::2] == 9.0).all())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads_or_on_where_a_block_ends(threads: int) -> None:
    random = torch.Generator().manual_seed(6)
    n = 3 * extrapolate.CPU_BLOCK + 7
    aligned = torch.randn(n, generator=random).bfloat16()
    sft = torch.randn(n, generator=random).bfloat16()
    torch.set_num_threads(threads)
    whole = extrapolated(aligned, sft, 1.7)
    parts = [extrapolated(a, s, 1.7) for a, s in zip(torch.split(aligned, 999), torch.split(sft, 999), strict=True)]
    assert torch.equal(whole, torch.cat(parts))
    assert agree(whole, aligned, sft, 1.7)


def test_a_default_dtype_of_bfloat16_does_not_narrow_the_arithmetic() -> None:
    aligned, sft = torch.tensor([1.0, 3.14159274]), torch.tensor([0.3, 2.71828175])
    torch.set_default_dtype(torch.bfloat16)
    try:
        out = extrapolated(aligned, sft, 0.3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert agree(out, aligned, sft, 0.3)


def test_tensors_that_are_not_floating_point_are_copies_of_aligned() -> None:
    aligned, sft = torch.tensor([1, -2, 3]), torch.tensor([7, 7, 7])
    assert torch.equal(extrapolated(aligned, sft, 0.5), aligned)


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_empty_tensors_and_scalars_keep_their_shape(shape: tuple[int, ...]) -> None:
    aligned, sft = torch.full(shape, 2.0), torch.full(shape, 1.0)
    assert torch.equal(extrapolated(aligned, sft, 0.5), torch.full(shape, 2.5))
