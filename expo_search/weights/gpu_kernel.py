"""The switch of bfloat16 weights on a GPU in one pass over memory: the arithmetic of `cpu_switch.c`, in Triton.

The torch versions (`formula.py`, `fingerprint.py`) move about ten times the bytes. They stay the reference: before
the kernel is used it must give their bits on the device at hand, and where it does not they do the work; why goes to
the log, once.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl

from expo_search.text import cut, one_line
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, BlockKeys, Fingerprinter, word_keys
from expo_search.weights.formula import plain_theta, single

_STRIP = 1024  # words that one program handles at a time


@triton.jit  # type: ignore[untyped-decorator]
def _switch(  # type: ignore[no-untyped-def]
    out, aligned, sft, alpha, keys, block_keys, total, n_words,
    COPY: tl.constexpr, STRIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program does one block of the fingerprint, two elements in each 32-bit word. Theta is computed in the upper
    # halves of float32 and rounded to nearest even by integer arithmetic, as in cpu_switch.c.
    block = tl.program_id(0)
    block_sum = tl.zeros([STRIP], dtype=tl.int64)
    for start in range(0, BLOCK, STRIP):
        at = start + tl.arange(0, STRIP)
        word = block.to(tl.int64) * BLOCK + at
        inside = word < n_words
        a = tl.load(aligned + word, mask=inside, other=0)
        if COPY:
            both = a
        else:
            s = tl.load(sft + word, mask=inside, other=0)
            a_even = (a << 16).to(tl.float32, bitcast=True)
            a_odd = (a & -65536).to(tl.float32, bitcast=True)
            s_even = (s << 16).to(tl.float32, bitcast=True)
            s_odd = (s & -65536).to(tl.float32, bitcast=True)
            even = ((a_even - s_even) * alpha + a_even).to(tl.int32, bitcast=True)
            odd = ((a_odd - s_odd) * alpha + a_odd).to(tl.int32, bitcast=True)
            even = even + 0x7FFF + ((even >> 16) & 1)
            odd = odd + 0x7FFF + ((odd >> 16) & 1)
            both = ((even >> 16) & 0xFFFF) | (odd & -65536)
        tl.store(out + word, both, mask=inside)
        block_sum += both.to(tl.int64) * tl.load(keys + at).to(tl.int64)
    # integers: the order in which programs add changes nothing
    tl.atomic_add(total, tl.sum(block_sum) * tl.load(block_keys + block), sem="relaxed")


class GpuKernel:
    """The kernel with its keys on one device."""

    def __init__(self, device: torch.device) -> None:
        self._keys = word_keys().to(device)
        self._block_keys = BlockKeys(device)

    @staticmethod
    def takes(*tensors: torch.Tensor) -> bool:
        """Whether these are bfloat16, contiguous, whole words, and on one device."""
        return len({t.device for t in tensors}) == 1 and all(
            t.dtype == torch.bfloat16 and t.is_contiguous() and t.numel() % 2 == 0 and t.data_ptr() % 4 == 0
            for t in tensors
        )

    def switch(
        self,
        out: torch.Tensor,
        aligned: torch.Tensor,
        sft: torch.Tensor,
        alpha: float,
        total: torch.Tensor,
        first_block: int = 0,
    ) -> None:
        """`out` <- theta(alpha), and the fingerprint's sum added to `total`, in place: one launch, no waiting.

        The tensors may be a piece of a weight that begins with fingerprint block `first_block`. Sources are finite.
        `total`: (), int64, on the same device, to be read modulo 2^64.
        """
        n_words = out.numel() // 2
        n_blocks = -(-n_words // WORDS_PER_BLOCK)
        if n_blocks:
            words = (t.view(-1).view(torch.int32) for t in (out, aligned, sft))
            alpha = single(alpha)
            _switch[(n_blocks,)](
                *words, alpha, self._keys, self._block_keys.of(first_block, n_blocks), total, n_words,
                COPY=alpha == 0.0, STRIP=_STRIP, BLOCK=WORDS_PER_BLOCK,
                enable_fp_fusion=False,  # multiply and add are rounded separately
            )  # fmt: skip


@cache
def load_gpu_kernel(device: torch.device) -> GpuKernel | None:
    """The kernel, if it gives the reference's bits on this device; else a warning says why, once a process."""
    kernel = _load(device)
    if isinstance(kernel, GpuKernel):
        return kernel
    logging.getLogger(__name__).warning("no Triton kernel: %s; torch does its work, slower", kernel)
    return None


def gpu_kernel_fault(device: torch.device) -> str | None:
    """Why `load_gpu_kernel` has no kernel to give, in one line; None where it has one."""
    kernel = _load(device)
    return None if isinstance(kernel, GpuKernel) else kernel


@cache
def _load(device: torch.device) -> GpuKernel | str:
    """The kernel, or why there is none."""
    try:
        kernel = GpuKernel(device)
        return kernel if _agrees(kernel, device) else f"on {device} its bits are not those of torch"
    except Exception as fault:  # whatever goes wrong in a compiler or its driver
        return cut(one_line(f"{type(fault).__name__}: {fault}"), 300)


def _agrees(kernel: GpuKernel, device: torch.device) -> bool:
    """Whether the kernel gives torch's bits and fingerprint on every finite bfloat16, paired at random."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = patterns[patterns.isfinite()]
    random = torch.Generator().manual_seed(1)
    aligned, sft = (finite[torch.randperm(len(finite), generator=random)].to(device) for _ in range(2))
    out = torch.empty_like(aligned)
    for alpha in (0.0, 0.7, -0.4, 25.0):
        expected = plain_theta(aligned, sft, alpha).bfloat16()
        total = torch.zeros((), dtype=torch.int64, device=device)
        kernel.switch(out, aligned, sft, alpha, total, first_block=2)
        stays = expected.isfinite()
        same = torch.equal(out[stays].view(torch.int16), expected[stays].view(torch.int16))
        if not same or not torch.equal(out.isfinite(), stays):
            return False
        if int(total) & MASK != Fingerprinter().tensor_sum(out, 2):
            return False
    return True
