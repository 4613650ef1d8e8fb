"""Headers and configs of the checkpoints -> the bytes that a search loads, before any device is looked at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import RewardSpec
from expo_search.dtypes import ITEMSIZE, TORCH_DTYPES, Dtypes, Float
from expo_search.engine.config_counts import HEADS, HIDDEN, LAYERS, WIDTH, count, kv_heads, text_config
from expo_search.engine.reward_memory import activation_bytes

_EXPERTS = re.compile(r"(.*)\.(experts|block_sparse_moe\.(in|out)put_linear)\.")  # the latter: Granite's


@dataclass(frozen=True)
class Needs:
    """What is to be loaded, in bytes over all ranks; from headers.

    Attributes:
        live: the running weights, in what the engine multiplies in. packed: copies that a CPU engine makes of the
            vocabulary's matrices.
        sources: aligned and sft, in float32 where a file's dtype is not the weights'.
        reward_model: its weights, as it is run. reward_activations: what it takes beside them to rate a batch. Both are
            of all of them where there are several, `n_reward_models`.
        kv_per_token: keys and values of one token; 0 where the config does not say how many layers have them.
        kv_heads: over how many ranks those can be spread.
        arithmetic: what the engine multiplies in.
        largest: the largest tensor. largest_experts: one layer's experts, which vLLM may lay out anew at each switch.
    """

    live: int
    packed: int
    sources: int
    reward_model: int
    kv_per_token: int
    kv_heads: int = 1
    arithmetic: Float = "bfloat16"
    largest: int = 0
    largest_experts: int = 0
    reward_activations: int = 0
    n_reward_models: int = 1

    @classmethod
    def of(
        cls,
        aligned: Checkpoint,
        sft: Checkpoint,
        reward: Checkpoint | None,
        dtypes: Dtypes,
        rating: RewardSpec | None = None,
    ) -> Needs:
        """From the headers and configs of the checkpoints; without a `reward` there is no reward model to load."""
        rating = rating or RewardSpec()
        itemsize = ITEMSIZE[dtypes.engine]
        config = text_config(aligned.config)
        kv_per_token, n_kv_heads = _key_values(config)
        vocabulary = count(config, "vocab_size")
        rows = [t for t in aligned.tensors.values() if vocabulary and t.shape[:1] == (vocabulary,)]
        return cls(
            live=_n_elements(aligned) * itemsize,
            packed=sum(t.n_elements for t in rows) * itemsize,
            sources=sum(_source_bytes(c, dtypes.weights) for c in (aligned, sft)),
            reward_model=0 if reward is None else _n_elements(reward) * ITEMSIZE[dtypes.reward],
            reward_activations=0
            if reward is None
            else activation_bytes(
                reward.config,
                ITEMSIZE[dtypes.reward],
                batch_tokens=rating.batch_tokens,
                longest=rating.max_tokens,
            ),
            kv_per_token=kv_per_token * itemsize,
            kv_heads=n_kv_heads,
            arithmetic=dtypes.engine,
            largest=max((t.n_elements for t in aligned.tensors.values()), default=0) * itemsize,
            largest_experts=_largest_experts(aligned) * itemsize,
        )


def _n_elements(checkpoint: Checkpoint) -> int:
    return sum(t.n_elements for t in checkpoint.tensors.values())


def _source_bytes(checkpoint: Checkpoint, weights: Float) -> int:
    """As `worker/loader.py` keeps it: float32 throughout if any tensor's dtype is not the weights'."""
    stored = {TORCH_DTYPES.get(t.dtype) for t in checkpoint.tensors.values()} & set(ITEMSIZE)
    return _n_elements(checkpoint) * ITEMSIZE[weights if stored <= {weights} else "float32"]


def _key_values(config: Mapping[str, Any]) -> tuple[int, int]:
    """Elements of one token's keys and values in all layers, and their heads; MLA keeps one short vector instead."""
    layers = count(config, *LAYERS)
    if rank := count(config, "kv_lora_rank"):
        return layers * (rank + count(config, "qk_rope_head_dim")), 1
    width = count(config, *WIDTH) or count(config, *HIDDEN) // (count(config, *HEADS) or 1)
    return layers * 2 * kv_heads(config) * width, kv_heads(config)


def _largest_experts(checkpoint: Checkpoint) -> int:
    """Elements of the largest layer's experts."""
    layers: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        if found := _EXPERTS.match(name):
            layers[found[1]] = layers.get(found[1], 0) + tensor.n_elements
    return max(layers.values(), default=0)
