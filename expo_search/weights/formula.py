"""alpha -> theta(alpha), tensor by tensor: the formula and its exact arithmetic, on any device.

    theta(alpha) = aligned + alpha * (aligned - sft)        (ExPO, ACL 2025, equation 2)

The arithmetic is part of the contract, because what is exported must equal, to the bit, what was evaluated:
both sources and alpha in float32; subtract, multiply, add as three separately rounded float32 operations (a fused
multiply-add or `lerp` gives other bits on other machines); one rounding, to nearest even, to the weight's dtype.
alpha = 0 and tensors that are not floating point are copies of `aligned`.

Letters: N elements, C elements of a block.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU_BLOCK = 1 << 17  # per thread: two float32 buffers of 512 KiB, which stay in a core's level-2 cache
GPU_BLOCK = 1 << 24  # bounds the float32 scratch at 2 x 64 MiB, and keeps launches long


def single(alpha: float) -> float:
    """Alpha as the arithmetic takes it: the nearest float32, which may be 0 or infinite where alpha is neither."""
    return ctypes.c_float(alpha).value


def is_alpha(number: float) -> bool:
    """Whether a number can be used as alpha: it is finite in float32."""
    return math.isfinite(single(number))


def plain_theta(aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> torch.Tensor:
    """The formula, written plainly: float32 for floating-point tensors; `aligned` itself for others and at alpha = 0.

    The reference for `Extrapolator`, which gives the same bits after rounding, in blocks and in place.
    """
    alpha = single(alpha)
    if alpha == 0.0 or not aligned.is_floating_point():
        return aligned
    wide = aligned.float()
    return (wide - sft.float()) * alpha + wide


class Extrapolator:
    """Writes theta(alpha) into given tensors; keeps its float32 scratch between calls.

    Not thread-safe: the scratch is shared by all calls.
    """

    def __init__(self) -> None:
        self._scratch: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def into(self, out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> None:
        """`out` <- theta(alpha), in place; `aligned` and `sft` are only read.

        All three have one shape (N elements in all) and may have any floating dtypes; `out`'s is the one that is
        rounded to. `out` must not overlap either source.
        """
        import torch

        alpha = single(alpha)
        if alpha == 0.0 or not aligned.is_floating_point():
            out.copy_(aligned)
            return
        if not out.is_contiguous():
            whole = torch.empty_like(aligned, memory_format=torch.contiguous_format)
            self.into(whole, aligned, sft, alpha)
            out.copy_(whole)
            return
        with torch.no_grad():
            flat, a, s = out.view(-1), aligned.contiguous().view(-1), sft.contiguous().view(-1)
            wide, delta = self._buffers(out.device)
            block = wide.numel()
            for start in range(0, flat.numel(), block):
                stop = min(start + block, flat.numel())
                x, d = wide[: stop - start], delta[: stop - start]
                x.copy_(a[start:stop])
                d.copy_(s[start:stop])
                torch.sub(x, d, out=d)
                d.mul_(alpha)
                d.add_(x)
                flat[start:stop].copy_(d)

    def _buffers(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        if device not in self._scratch:
            n = CPU_BLOCK * torch.get_num_threads() if device.type == "cpu" else GPU_BLOCK
            # dtype spelled out: vLLM loads under a default dtype of bfloat16, which would halve the precision
            self._scratch[device] = (
                torch.empty(n, dtype=torch.float32, device=device),
                torch.empty(n, dtype=torch.float32, device=device),
            )
        return self._scratch[device]
