"""Made-up numbers -> which weights a model's loader computes instead of copying. Runs inside a vLLM worker.

An extrapolation of loaded weights is what a load of the extrapolation gives only where the loader puts the files'
numbers into the weights as they are, in whatever place. Mamba's stores -exp(A_log); others add or multiply, and round
again (`docs/vllm-loaders.md`). So `load_weights` is run on tensors that hold two numbers at random: a weight that then
holds any other was computed. This needs no list of models.

Tensors beside the weights that loading leaves (a normalised copy) are found by their difference between two sources: a
switch would not refresh them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

NUMBERS = (1.3046875, -61440.0)  # exact in bfloat16, float16 and float32; no sum, product or clamp leaves both
_PATTERN = 1 << 20
_PIECE = 1 << 24  # elements that are compared at a time
_CACHED_PIECE = 1 << 18  # ... on a CPU


def made_up(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same names, shapes and dtypes, floating-point tensors with `NUMBERS` alone; their data are not read."""
    random = torch.Generator().manual_seed(0)
    which = torch.randint(2, (_PATTERN,), generator=random, dtype=torch.bool)
    which[:2] = torch.tensor([True, False])  # both, also in the smallest tensors
    pattern = torch.where(which, *NUMBERS)
    for name, tensor in tensors:
        if tensor.is_floating_point():
            n = tensor.numel()
            yield name, pattern.to(tensor.dtype).repeat(-(-n // _PATTERN))[:n].view(tensor.shape)
        else:
            yield name, tensor


def is_computed(loaded: torch.Tensor) -> bool:
    """Whether a weight holds numbers that its loader computed, after a load of `made_up` into NaN.

    NaN is what no load wrote, which is judged elsewhere. Zeros are padding where both `NUMBERS` stand beside them; else
    they may be what was made of one.
    """
    has, has_zero = [False, False], False
    flat = loaded.reshape(-1)
    # as integers, whose comparison is several times as fast on a CPU
    bits = torch.int16 if flat.itemsize == 2 else torch.int32 if flat.itemsize == 4 else torch.int64
    numbers = [int(number) for number in torch.tensor(NUMBERS, dtype=flat.dtype).view(bits)]
    size = _CACHED_PIECE if flat.device.type == "cpu" else _PIECE
    for start in range(0, len(flat), size):
        piece = flat[start : start + size]
        same = [piece.view(bits) == number for number in numbers]
        if not has_zero and all(has) and bool((same[0] | same[1]).all()):
            continue  # nearly always
        zero = piece == 0
        if not bool((same[0] | same[1] | zero | piece.isnan()).all()):
            return True
        has = [one or bool(now.any()) for one, now in zip(has, same, strict=True)]
        has_zero = has_zero or bool(zero.any())
    return has_zero and not all(has)


def tensors_beside(model: nn.Module, weights: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of the tensors that a model keeps beside its weights and over other memory, by name.

    `weights`: the memory of the weights and persistent buffers, which a switch refreshes along with views of it.
    """
    known = {w.untyped_storage().data_ptr() for w in weights}
    beside = {}
    for prefix, module in model.named_modules():
        for name, tensor in [*module._buffers.items(), *vars(module).items()]:
            if not isinstance(tensor, torch.Tensor) or not tensor.numel() or tensor.is_meta:
                continue
            if tensor.untyped_storage().data_ptr() not in known:
                beside[f"{prefix}.{name}"] = tensor.detach().clone()
    return beside


def first_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    """The first name whose tensor has other bits in `other`, or is not in both."""
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name), other.get(name)
        if a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype):
            return name
        if not torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)):
            return name
    return None
