"""Memory that must stay where it is, and memory that is used again.

A captured CUDA graph reads weights by address, not by name, so live weights keep theirs. Fresh pages for every weight
that is packed would cost as much time as the packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from expo_search.errors import MaterializeError


@contextmanager
def keeping_storage(module: nn.Module) -> Iterator[None]:
    """Whatever the block puts in place of the module's own tensors ends up in the memory that held them before.

    Covers parameters, buffers and plain attributes, also those whose memory the block itself exchanged before it
    derived them anew. A plain attribute of another shape or dtype keeps its new memory.

    Raises:
        MaterializeError: a parameter or buffer has another shape or dtype than before: no graph could read it.
    """
    before = {slot: tensor.data for slot, tensor in _own_tensors(module).items() if tensor.numel()}
    yield
    for slot, tensor in _own_tensors(module).items():
        old = before.get(slot)
        if old is None or _is_same_memory(old, tensor):
            continue
        if (old.shape, old.dtype, old.device) == (tensor.shape, tensor.dtype, tensor.device):
            # of the same memory read in another order, too: the graph knows the old order
            overlap = old.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
            old.copy_(tensor.data.clone() if overlap else tensor.data)
            tensor.data = old
        elif slot[0] != "attribute":
            raise MaterializeError(
                where=f"{type(module).__name__}, {slot[0]} {slot[1]}",
                found=f"{tensor.dtype} {tuple(tensor.shape)} after a switch, {old.dtype} {tuple(old.shape)} before it",
                expected="post-load processing that always gives one layout, which captured CUDA graphs read",
                do="report this, with the architecture",
            )


def _own_tensors(module: nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    slots = (("parameter", module._parameters), ("buffer", module._buffers), ("attribute", vars(module)))
    return {(kind, name): t for kind, d in slots for name, t in d.items() if isinstance(t, torch.Tensor)}


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.dtype, a.stride()) == (b.data_ptr(), b.shape, b.dtype, b.stride())
