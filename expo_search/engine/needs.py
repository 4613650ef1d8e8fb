"""Headers and configs of the checkpoints -> the bytes that a search loads, before any device is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import RewardSpec
from expo_search.dtypes import ITEMSIZE, TORCH_DTYPES, Dtypes, Float
from expo_search.engine.reward_memory import activation_bytes


@dataclass(frozen=True)
class Needs:
    """What is to be loaded, in bytes over all ranks; from headers.

    Attributes:
        live: the running weights, in what the engine multiplies in. packed: copies that a CPU engine makes of the
            vocabulary's matrices.
        sources: aligned and sft, in float32 where a file's dtype is not the weights'.
        reward_model: its weights, as it is run. reward_activations: what it takes beside them to rate a batch. Both are
            of all of them where there are several, `n_reward_models`.
        kv_per_token: keys and values of one token.
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
        config = aligned.config.get("text_config") or aligned.config
        kv_per_token, kv_heads = _key_values(config)
        vocabulary = config.get("vocab_size", 0)
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
            kv_heads=kv_heads,
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
    layers = int(config.get("num_hidden_layers") or 0)
    if rank := config.get("kv_lora_rank"):
        return layers * (int(rank) + int(config.get("qk_rope_head_dim") or 0)), 1
    heads = int(config.get("num_attention_heads") or 1)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return layers * 2 * kv_heads * width, kv_heads


def _largest_experts(checkpoint: Checkpoint) -> int:
    """Elements of the largest layer's experts."""
    layers: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        if ".experts." in name:
            layer = name.split(".experts.")[0]
            layers[layer] = layers.get(layer, 0) + tensor.n_elements
    return max(layers.values(), default=0)
