"""A checkpoint's config.json -> counts of layers, heads and widths, whatever its architecture calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_search.errors import CheckpointError

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model")
WIDTH = ("head_dim", "kv_channels")
_KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, of one that sees as well; else all of it."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def count(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that the config has; the largest of a list, which has one for each layer. 0: it has none.

    Raises:
        CheckpointError: it is no number.
    """
    for name in names:
        if value := config.get(name):
            numbers = value if isinstance(value, list) else [value]
            if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
                raise CheckpointError(
                    where=f"config.json of {config.get('architectures') or config.get('model_type')}",
                    found=f"{name} {value!r}",
                    expected="a whole number",
                    do="download the file again",
                )
            return int(max(numbers))
    return 0


def kv_heads(config: Mapping[str, Any]) -> int:
    """Heads that have keys and values of their own, as vLLM 0.32 counts them (`model_arch_config_convertor.py`)."""
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # Falcon's
        return 1
    grouped = config.get("attn_config")  # MPT, DBRX
    of_group = count(grouped, "kv_n_heads") if isinstance(grouped, Mapping) else 0
    return of_group or count(config, *_KV_HEADS) or count(config, *HEADS) or 1
