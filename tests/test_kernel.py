"""The compiled kernel equals the torch versions to the bit: written weights, and the sums of the fingerprint."""

from __future__ import annotations

import pytest
import torch

from expo_search.extrapolate import plain_theta
from expo_search.fingerprint import WORDS_PER_BLOCK, Fingerprinter
from expo_search.kernel import Kernel, load_kernel

BLOCK = 2 * WORDS_PER_BLOCK  # elements


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    found = load_kernel()
    if found is None:
        pytest.skip("no C compiler here: the torch versions are used")
    return found


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4095, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 11 * BLOCK + 5])
@pytest.mark.parametrize("alpha", [0.0, 0.3, -1.0, 25.0])
def test_any_length_gives_the_bits_of_the_torch_versions(kernel: Kernel, n: int, alpha: float) -> None:
    noise = torch.Generator().manual_seed(n)
    aligned = torch.randn(n, generator=noise).bfloat16()
    sft = (aligned.float() + 0.01 * torch.randn(n, generator=noise)).bfloat16()
    out = torch.full((n,), 7.0).bfloat16()
    tensor_sum = kernel.switch(out, aligned, sft, alpha)
    expected = plain_theta(aligned, sft, alpha).bfloat16()
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
    assert tensor_sum == Fingerprinter().tensor_sum(expected)


@pytest.mark.parametrize("alpha", [0.7, -0.4, 8.0, 1e6])
def test_every_pair_of_bit_patterns_rounds_alike(kernel: Kernel, alpha: float) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    aligned = patterns[patterns.isfinite()].repeat(8)
    sft = aligned[torch.randperm(len(aligned), generator=torch.Generator().manual_seed(5))]
    out = torch.empty_like(aligned)
    kernel.switch(out, aligned, sft, alpha)
    expected = plain_theta(aligned, sft, alpha).bfloat16()
    finite = expected.isfinite()  # what overflows is an error elsewhere; NaN has many bit patterns
    assert torch.equal(out[finite].view(torch.int16), expected[finite].view(torch.int16))
    assert torch.equal(out.isfinite(), finite)


def test_other_dtypes_and_layouts_are_left_to_torch(kernel: Kernel) -> None:
    a = torch.zeros(4, 4, dtype=torch.bfloat16)
    assert kernel.takes(a, a, a)
    assert not kernel.takes(a, a, a.float())
    assert not kernel.takes(a.t()[:2], a, a)
