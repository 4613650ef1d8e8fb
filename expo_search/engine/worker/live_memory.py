"""Memory that must stay where it is, and memory that is used again.

A captured CUDA graph reads weights by address, not by name, so live weights keep theirs. Fresh pages for every weight
that is packed would cost as much time as the packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def keeping_storage(module: nn.Module) -> Iterator[None]:
    """Whatever the block puts in place of the module's own tensors ends up in the memory that held them before.

    Covers parameters, buffers and plain attributes; a tensor of another shape, dtype or layout keeps its new memory.
    """
    before = {slot: tensor.data for slot, tensor in _own_tensors(module).items()}
    yield
    for slot, tensor in _own_tensors(module).items():
        old = before.get(slot)
        if old is None or old.data_ptr() == tensor.data_ptr() or not _alike(old, tensor):
            continue
        old.copy_(tensor.data)
        tensor.data = old


def _own_tensors(module: nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    slots = (("parameter", module._parameters), ("buffer", module._buffers), ("attribute", vars(module)))
    return {(kind, name): t for kind, d in slots for name, t in d.items() if isinstance(t, torch.Tensor)}


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.dtype, a.stride(), a.device) == (b.shape, b.dtype, b.stride(), b.device) and a.numel() > 0
