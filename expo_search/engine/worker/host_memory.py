"""Memory of the host for the two sources, which every switch reads from their first byte to their last."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import torch

_ALIGNMENT = 64


def host_memory(shapes: Sequence[tuple[torch.Size, torch.dtype]], *, pinned: bool) -> Iterator[torch.Tensor]:
    """Uninitialised tensors in one block of host memory, on huge pages where Linux has them.

    With small pages, reading a whole model waits for address translations (misses of the TLB).

    `pinned`: CUDA may read from it while the program goes on. Torch's own pinned allocator rounds every tensor up to
    a power of two; one registered block wastes nothing.
    """
    starts, end = [], 0
    for shape, dtype in shapes:
        starts.append(end)
        end += _aligned(shape.numel() * dtype.itemsize)
    memory = mmap(-1, max(end, _ALIGNMENT), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    if sys.platform == "linux":
        from mmap import MADV_HUGEPAGE

        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(block.data_ptr(), block.nbytes, 0))
    for start, (shape, dtype) in zip(starts, shapes, strict=True):
        yield block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


class Scratch:
    """One buffer that is handed out in pieces, from its start again after each `reset`; grows to the largest use."""

    def __init__(self) -> None:
        self._buffer, self._used, self._wanted = torch.empty(0, dtype=torch.uint8), 0, 0

    def reset(self) -> None:
        """Hand out the buffer from its start again: tensors taken before may be overwritten."""
        if self._wanted > self._buffer.numel():
            self._buffer = torch.empty(self._wanted, dtype=torch.uint8)
        self._used = self._wanted = 0

    def take(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor on the CPU; of memory of its own until the buffer has grown."""
        n_bytes = shape.numel() * dtype.itemsize
        start = self._used
        self._wanted += _aligned(n_bytes)
        self._used = self._wanted
        if start + n_bytes > self._buffer.numel():
            return torch.empty(shape, dtype=dtype)
        return self._buffer[start : start + n_bytes].view(dtype).view(shape)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in the buffer."""
        return bool(self._buffer.numel()) and tensor.untyped_storage().data_ptr() == self._buffer.data_ptr()
