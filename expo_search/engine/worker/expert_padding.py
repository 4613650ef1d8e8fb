"""Elements of fused experts' weights that vLLM adds and no checkpoint holds: they are zero at every alpha.

vLLM 0.32 rounds the sizes of experts up to what a kernel needs (`RoutedExperts.__init__`): the intermediate size for
FlashInfer's TRT-LLM kernel (Blackwell) and AITER, the hidden size for some all-to-all backends of expert parallelism.
It allocates the padding uninitialised, loads into the elements before it, and sets the intermediate padding to zero
when it derives the kernel's layout (`_zero_intermediate_padding`). The hidden padding it leaves as it is, and
multiplies it with padding of the activations; any finite number will do there. Both sources hold zero in either, so
theta(alpha) does, and fingerprints are defined.

Letters: E experts, G parts of w13 (gate and up, or up alone), I intermediate size, H hidden size, as allocated.
"""

from __future__ import annotations

import torch
from torch import nn

from expo_search.engine.worker.vllm_names import RoutedExperts

_Region = tuple[slice, ...]
_ALL = slice(None)


def padding_of(module: nn.Module, attribute: str, shape: torch.Size) -> list[_Region]:
    """Where a weight of `module` in load layout has padding; nothing of a module that is no fused experts.

    `shape`: (E, G I, H) of w13_weight, (E, H, I) of w2_weight, (E, G I) and (E, H) of their biases.
    """
    if not isinstance(module, RoutedExperts):
        return []
    config = module.moe_config
    parts = 2 if config.is_act_and_mul else 1
    inner, hidden = config.intermediate_size_per_partition_unpadded, config.hidden_dim_unpadded
    if attribute.startswith("w13_"):
        padded = shape[1] // parts
        regions: list[_Region] = [(_ALL, slice(i * padded + inner, (i + 1) * padded)) for i in range(parts)]
        return regions if attribute == "w13_bias" else [*regions, (_ALL, _ALL, slice(hidden, None))]
    if attribute.startswith("w2_"):
        rows: _Region = (_ALL, slice(hidden, None))
        return [rows] if attribute == "w2_bias" else [rows, (_ALL, _ALL, slice(inner, None))]
    return []


def zero_unwritten(loaded: torch.Tensor, regions: list[_Region]) -> None:
    """Set what is NaN in the regions to zero, in place: NaN is what no load wrote.

    A loader that puts elements of the checkpoint there (gate and up interleaved) keeps them.
    """
    for region in regions:
        part = loaded[region]
        if part.numel():
            part.masked_fill_(part.isnan(), 0)
