"""Where one source of all weights is loaded: on their device, in host memory, or in what engines of a machine share.

Of engines that share, the first one fills the memory; another one, whose load went elsewhere, compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from expo_search.engine.worker.host_memory import host_memory, node_memory
from expo_search.engine.worker.node_memory import NodeMemory
from expo_search.engine.worker.source_pieces import PIECE


@dataclass(frozen=True)
class Form:
    """Of one buffer: its weight's name, its shape and dtype, and the weight's device."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class SourceBuffers:
    """A tensor for each weight that a checkpoint gives. `block`: the memory that they lie in, if engines share it."""

    tensors: Sequence[torch.Tensor]
    block: NodeMemory | None = None

    @classmethod
    def of(cls, forms: Sequence[Form], *, on_host: bool, shared: str | None) -> SourceBuffers:
        """Uninitialised, or filled by another engine.

        Args:
            on_host: in host memory, pinned, where the weights are on a GPU.
            shared: a name of what is loaded; engines on this machine that load it share host memory.
        """
        on_gpu = any(form.device.type == "cuda" for form in forms)
        shapes = [(form.shape, form.dtype) for form in forms]
        if on_gpu and not on_host:
            return cls([torch.empty(form.shape, dtype=form.dtype, device=form.device) for form in forms])
        if shared is None:
            return cls(list(host_memory(shapes, pinned=on_gpu)))
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        layout = repr([(form.name, form.shape, form.dtype) for form in forms])
        name = f"{shared} {rank} {hashlib.sha256(layout.encode()).hexdigest()[:16]}"
        tensors, block = node_memory(name, shapes, pinned=on_gpu)
        return cls(list(tensors), block)

    @property
    def are_whole(self) -> bool:
        """Whether another engine has filled them: they are not to be written to."""
        return self.block is not None and self.block.is_whole

    def kept(self, index: int, loaded: torch.Tensor) -> torch.Tensor | None:
        """The source of one weight after a load, which left it in `loaded`; None where another engine's differs.

        `loaded` may be in another dtype then, and on another device.
        """
        buffer = self.tensors[index]
        if self.block is None:
            return loaded
        if self.block.is_whole:
            return buffer if _is_rounded(loaded, buffer) else None
        if loaded.data_ptr() != buffer.data_ptr():  # the load put other memory in its place
            buffer.copy_(loaded)
        return buffer

    def seal(self) -> None:
        """All are loaded: other engines may take them."""
        if self.block is not None:
            self.block.seal()


def _is_rounded(loaded: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether a tensor is `source` in its own dtype, on its own device; compared in pieces."""
    flat, whole = loaded.reshape(-1), source.reshape(-1)
    starts = range(0, len(flat), PIECE)
    return all(torch.equal(flat[i : i + PIECE], whole[i : i + PIECE].to(flat)) for i in starts)
