"""A matrix that oneDNN packed is found, written in place to the bits of packing it anew, and let alone when unsure."""

from __future__ import annotations

import pytest
import torch
from vllm.platforms import current_platform

from expo_search.extrapolate import plain_theta
from expo_search.fingerprint import Fingerprinter
from expo_search.kernel import Kernel, Plan, Task, load_kernel
from expo_search.packed import Packed, handler_of, locate, packed_bytes

SHAPES = [(960, 576), (64, 32), (65, 34), (100, 70), (16, 32), (33, 2050), (320, 128)]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    found = load_kernel()
    if found is None or not current_platform.is_cpu() or not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("no kernel, or no bfloat16 matrices in oneDNN's blocks here")
    return found


def sources(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(shape[0])
    return torch.randn(shape, generator=noise).bfloat16(), torch.randn(shape, generator=noise).bfloat16()


def in_blocks(matrix: torch.Tensor, panel: int) -> torch.Tensor:
    """The layout by torch: panels of rows, 32 columns each, of those 16 pairs, of each pair all rows."""
    n, k = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -k % 32, 0, -n % panel))
    return padded.view(-1, panel, (k + 31) // 32, 16, 2).permute(0, 2, 3, 1, 4).contiguous().view(-1)


def packed_at(kernel: Kernel, aligned: torch.Tensor, sft: torch.Tensor, panel: int, alpha: float) -> torch.Tensor:
    blocks = torch.full((packed_bytes(aligned.shape, panel),), 7, dtype=torch.uint8)
    kernel.run(Plan([Task(aligned, sft, None, blocks.data_ptr(), panel)]), alpha)
    return blocks


@pytest.mark.parametrize("panel", [64, 48, 32, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_writes_the_blocks_the_plain_form_and_the_fingerprint(
    kernel: Kernel, shape: tuple[int, int], panel: int
) -> None:
    aligned, sft = sources(shape)
    for alpha in (0.0, 0.7):
        expected = plain_theta(aligned, sft, alpha).bfloat16()
        blocks = torch.full((packed_bytes(aligned.shape, panel),), 7, dtype=torch.uint8)
        plain = torch.empty_like(aligned)
        tasks = [Task(aligned, sft, plain, blocks.data_ptr(), panel), Task(aligned, sft, torch.empty_like(plain))]
        sums = kernel.run(Plan(tasks), alpha)
        assert torch.equal(blocks.view(torch.bfloat16), in_blocks(expected, panel))
        assert torch.equal(plain, expected)
        assert sums == [Fingerprinter().tensor_sum(expected)] * 2
        assert torch.equal(Packed(None, blocks.data_ptr(), panel, aligned.shape).matrix(), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_matrix_is_found_and_written_in_place_as_if_packed_anew(
    kernel: Kernel, shape: tuple[int, int]
) -> None:
    from vllm import _custom_ops as ops

    aligned, sft = sources(shape)
    handler = ops.create_onednn_mm(aligned.t(), 32)
    found = locate(handler, aligned.shape, lambda panel: packed_at(kernel, aligned, sft, panel, 0.0))
    assert found is not None
    assert torch.equal(found.matrix(), aligned)  # the proof by NaN left nothing behind
    for alpha in (0.7, 0.0):
        theta = plain_theta(aligned, sft, alpha).bfloat16()
        kernel.run(Plan([Task(aligned, sft, None, found.address, found.panel)]), alpha)
        anew = ops.create_onednn_mm(theta.t(), 32)
        for n_tokens in (1, 5, 64):
            x = torch.randn(n_tokens, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16()
            assert torch.equal(ops.onednn_mm(handler, x, None), ops.onednn_mm(anew, x, None))


def test_a_matrix_that_is_not_what_it_should_be_is_not_found(kernel: Kernel) -> None:
    from vllm import _custom_ops as ops

    aligned, sft = sources((128, 64))
    handler = ops.create_onednn_mm(aligned.t(), 32)
    changed = aligned.clone()
    changed[127, 63] += 1  # the last element only
    assert locate(handler, aligned.shape, lambda panel: packed_at(kernel, changed, sft, panel, 0.0)) is None
    assert locate(handler, torch.Size([64, 63]), lambda _: torch.zeros(1, dtype=torch.uint8)) is None


def test_a_copy_that_no_product_reads_is_not_taken_for_the_matrix(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import _custom_ops as ops

    from expo_search import packed

    aligned, sft = sources((128, 64))
    copy = packed_at(kernel, aligned, sft, 64, 0.0)
    monkeypatch.setattr(packed, "_candidates", lambda *_: iter([copy.data_ptr()]))
    handler = ops.create_onednn_mm(aligned.t(), 32)
    assert locate(handler, aligned.shape, lambda panel: packed_at(kernel, aligned, sft, panel, 0.0)) is None


def test_a_layer_without_a_packed_matrix_has_no_handler() -> None:
    layer = torch.nn.Linear(2, 2)
    assert handler_of(layer) is None
    layer.cpu_linear = torch.nn.functional.linear
    assert handler_of(layer) is None
    layer.cpu_linear = lambda x, weight, bias: (x, weight, bias)
    assert handler_of(layer) is None
