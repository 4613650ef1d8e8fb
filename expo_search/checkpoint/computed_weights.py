"""Architectures whose weights vLLM 0.32 computes from a checkpoint's numbers, and that so cannot be extrapolated.

theta(alpha) of -exp(x) is not -exp of theta(alpha): what is exported would not be what was evaluated. The loader finds
any such weight by itself (`engine/worker/load_check.py`); the known ones are refused here, before an engine starts.
Where in vLLM each is computed is in `docs/vllm-loaders.md`. A weight that is the same in both checkpoints stays so at
every alpha, and is no obstacle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.errors import MaterializeError


@dataclass(frozen=True)
class Computed:
    """Tensors of a checkpoint, by the ends of their names, and what vLLM makes of them as it loads them.

    `applies`: whether it does so for a model with this config.json.
    """

    names: tuple[str, ...]
    as_what: str
    applies: Callable[[Any], bool] = lambda _: True


_EXPONENTIAL = Computed((".A_log",), "-exp of it")
_SHIFTED = Computed(("_norm.weight", "model.norm.weight"), "it plus a constant, rounded again")
_NORMALISED = Computed(
    ("lm_head.weight",), "its columns divided by their lengths", lambda config: bool(config.get("norm_head"))
)
_SCALED = Computed(
    ("q_a_layernorm.weight", "kv_a_layernorm.weight"),
    "it times a constant, rounded again",
    lambda config: bool(config.get("mla_scale_q_lora") or config.get("mla_scale_kv_lora")),
)
_SINKS = Computed(
    (".param_sink_key", ".param_sink_value"),
    "a copy that it makes only when it loads",
    lambda config: bool(config.get("param_sink_number")),
)
_COMPUTED = {
    **dict.fromkeys(
        (
            "MambaForCausalLM", "FalconMambaForCausalLM", "Mamba2ForCausalLM", "JambaForCausalLM", "Zamba2ForCausalLM",
            "FalconH1ForCausalLM", "GraniteMoeHybridForCausalLM", "NemotronHForCausalLM", "NemotronHPuzzleForCausalLM",
            "NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3",
            "NemotronH_Omni_Reasoning_V3",
        ),
        _EXPONENTIAL,
    ),
    "Plamo3ForCausalLM": _SHIFTED,
    "BailingMoeForCausalLM": _NORMALISED,
    "BailingMoeV2ForCausalLM": _NORMALISED,
    "LongcatFlashForCausalLM": _SCALED,
    "LongcatFlashNgramForCausalLM": _SCALED,
    "PanguEmbeddedForCausalLM": _SINKS,
    "PanguProMoEV2ForCausalLM": _SINKS,
    "PanguUltraMoEForCausalLM": _SINKS,
}  # fmt: skip


def check_computed(aligned: Checkpoint, sft: Checkpoint) -> None:
    """Refuse a pair that differs in a weight that vLLM is known to compute. Reads those tensors alone.

    Raises:
        MaterializeError: the first such tensor.
    """
    import torch

    computed = _COMPUTED.get(aligned.architecture)
    if computed is None or not computed.applies(aligned.config):
        return
    for name in sorted(aligned.tensors.keys() & sft.tensors.keys()):
        if name.endswith(computed.names) and not torch.equal(aligned.read(name).double(), sft.read(name).double()):
            found = f"aligned and sft differ in it, and vLLM multiplies with {computed.as_what}"
            raise not_linear(name, aligned.architecture, found)


def not_linear(name: str, architecture: str, found: str) -> MaterializeError:
    """The error for a weight that vLLM computes; `found` says what is known of that."""
    return MaterializeError(
        where=f"weight {name} of {architecture}",
        found=found,
        expected="weights that are copied as they are, so that what is exported is what was evaluated",
        do="take a pair of another architecture, or one that has this weight in common",
    )
