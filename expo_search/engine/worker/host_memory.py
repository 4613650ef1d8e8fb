"""Memory of the host for the two sources, which every switch reads from their first byte to their last."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import torch

from expo_search.engine.worker.node_memory import NodeMemory

_ALIGNMENT = 64


def host_memory(shapes: Sequence[tuple[torch.Size, torch.dtype]], *, pinned: bool) -> Iterator[torch.Tensor]:
    """Uninitialised tensors in one block of host memory, on huge pages where Linux has them.

    With small pages, reading a whole model waits for address translations (misses of the TLB).

    `pinned`: CUDA may read from it while the program goes on. Torch's own pinned allocator rounds every tensor up to
    a power of two; one registered block wastes nothing.
    """
    memory = mmap(-1, _size(shapes), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return _tensors(memory, shapes, pinned=pinned)


def node_memory(
    name: str, shapes: Sequence[tuple[torch.Size, torch.dtype]], *, pinned: bool
) -> tuple[Iterator[torch.Tensor], NodeMemory | None]:
    """As `host_memory`, in a block that all processes of this machine share which ask for it by that name.

    The block comes too: where it is whole the tensors hold numbers, and are not to be written to; else it is to be
    sealed when they do. None: the system has no such memory, and the tensors are this process's own.
    """
    try:
        block = NodeMemory.of(name, _size(shapes))
    except OSError as fault:
        logging.getLogger(__name__).warning("no memory that engines share (%s): each has its own", fault)
        return host_memory(shapes, pinned=pinned), None
    return _tensors(block.memory, shapes, pinned=pinned), block


def _size(shapes: Sequence[tuple[torch.Size, torch.dtype]]) -> int:
    return max(_ALIGNMENT, sum(_aligned(shape.numel() * dtype.itemsize) for shape, dtype in shapes))


def _tensors(memory: mmap, shapes: Sequence[tuple[torch.Size, torch.dtype]], *, pinned: bool) -> Iterator[torch.Tensor]:
    if sys.platform == "linux":
        from mmap import MADV_HUGEPAGE

        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(MADV_HUGEPAGE)
    block = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(block.data_ptr(), block.nbytes, 0))
    start = 0
    for shape, dtype in shapes:
        n_bytes = shape.numel() * dtype.itemsize
        yield block[start : start + n_bytes].view(dtype).view(shape)
        start += _aligned(n_bytes)


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
