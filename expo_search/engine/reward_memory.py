"""A reward model's config -> the bytes that its forward pass takes beside its weights.

Letters: B sequences of a batch, T tokens of its longest, N = B T padded tokens; h hidden size, m intermediate size,
q and k the widths of all query heads and of all key heads, x experts of a token, e bytes of an element.

Source: transformers 5.19, `models/llama/modeling_llama.py` and `integrations/sdpa_attention.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_search.engine.config_counts import HEADS, HIDDEN, WIDTH, count, kv_heads, text_config

KEPT = 1.25  # of the peak: PyTorch's allocator keeps freed blocks of other batches' sizes, and cuBLAS a workspace


def activation_bytes(config: Mapping[str, Any], itemsize: int, *, batch_tokens: int, longest: int) -> int:
    """Peak of one forward pass under `inference_mode` without a cache, in bytes, on one device.

    Every layer frees what the one before it took, so the peak is a single layer's, the largest of three moments. In
    elements a token:

        MLP        4 h + 3 m              embedding, the layer's input, residual, norm; gate, up and their product
        attention  3 h + 5 q + 2 k        embedding, input, norm; q, k and v, keys and values repeated for every query
                                          head (`repeat_kv`, where a batch has padding), the output and its copy
        norm       3 h, and 8 h bytes     the residual widened to float32, twice

    and with experts, of which a token takes x: 4 h + x max(h + 4 m, 4 h), with m of one expert. A batch with padding
    has a mask besides, of T bytes a token, which SDPA turns into numbers and on a GPU copies once more to align it:
    T (1 + 2 e). DeBERTa has no SDPA: all heads' scores, five times with what is added to them, and an index into
    relative positions, T heads (5 e + 8).

    Args:
        config: of a checkpoint, as its file has it.
        itemsize: bytes of an element of what the model computes in.
        batch_tokens: the budget of a batch. longest: tokens of the longest conversation, which may exceed it.
    """
    text = text_config(config)
    heads, hidden = count(text, *HEADS) or 1, count(text, *HIDDEN)
    width = count(text, *WIDTH) or hidden // heads
    queries, keys = heads * width, kv_heads(text) * width
    longest = min(longest, count(text, "max_position_embeddings") or longest)

    mlp = 4 * hidden + _mlp_width(text, hidden)
    attention = 3 * hidden + 5 * queries + 2 * keys
    layer = max(mlp * itemsize, attention * itemsize, 3 * hidden * itemsize + 8 * hidden)
    scores = longest * (1 + 2 * itemsize)
    if str(text.get("model_type")).startswith("deberta"):
        scores += heads * longest * (5 * itemsize + 8)
    return int(max(batch_tokens, longest) * (layer + scores) * KEPT)


def _mlp_width(text: Mapping[str, Any], hidden: int) -> int:
    """Elements a token that an MLP, or the experts of one token, take beside what the layer holds."""
    intermediate = count(text, "intermediate_size", "n_inner") or 4 * hidden
    n_experts = count(text, "num_experts_per_tok")
    routed = count(text, "moe_intermediate_size") or intermediate
    return max(3 * intermediate, n_experts * max(hidden + 4 * routed, 4 * hidden))
