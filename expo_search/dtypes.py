"""Floating-point types: how checkpoints and torch name them, and which of them a machine multiplies well.

The dtype of a trial's weights and the dtype that an engine multiplies in are two things. Weights are theta(alpha)
rounded once to the checkpoint's dtype, the same bits on every machine. Arithmetic is in that dtype where the machine
has instructions for it, and in float32, on exactly those weights widened, where it has not: there bfloat16 products
are emulated, at a sixth of float32's speed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from expo_search.errors import StudyError

Float = Literal["bfloat16", "float16", "float32"]
Asked = Literal["auto", "bfloat16", "float16", "float32"]

# fmt: off
_TABLE = (  # safetensors' name, bits of an element, torch's name where we read or write it; in the order in which the
    # library lays tensors out in a file
    ("U64", 64, "uint64"), ("I64", 64, "int64"), ("F64", 64, "float64"), ("F32", 32, "float32"), ("U32", 32, "uint32"),
    ("I32", 32, "int32"), ("BF16", 16, "bfloat16"), ("F16", 16, "float16"), ("U16", 16, "uint16"), ("I16", 16, "int16"),
    ("I8", 8, "int8"), ("U8", 8, "uint8"), ("BOOL", 8, "bool"), ("C64", 64, None), ("F8_E5M2", 8, None),
    ("F8_E4M3", 8, None), ("F8_E8M0", 8, None), ("F6_E2M3", 6, None), ("F6_E3M2", 6, None), ("F4", 4, None),
)
# fmt: on
BITS = {name: bits for name, bits, _ in _TABLE}
TORCH_DTYPES = {name: torch_name for name, _, torch_name in _TABLE if torch_name is not None}
ITEMSIZE = {torch_name: BITS[name] // 8 for name, torch_name in TORCH_DTYPES.items() if "float" in torch_name}  # bytes
STORED = {own: next(s for s, name in TORCH_DTYPES.items() if name == own) for own in get_args(Float)}  # of weights
_INSTRUCTIONS = {  # as `torch.cpu.get_capabilities` names them, of x86 and of Arm
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


@dataclass(frozen=True)
class Dtypes:
    """Of one run: what theta(alpha) is rounded to; what the engine, and what the reward model multiply in."""

    weights: Float
    engine: Float
    reward: Float

    def sentence(self, *, rated: bool = True) -> str:
        """As it is said when an engine starts. `rated`: by a reward model."""
        held = self.weights if self.engine == self.weights else f"{self.weights}, widened to {self.engine} to multiply"
        return f"weights in {held}" + (f"; reward model in {self.reward}" if rated else "")


def own_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that a checkpoint's config.json names."""
    return config.get("dtype") or config.get("torch_dtype")


def weights_dtype(asked: Asked, config: Mapping[str, Any], stored: Collection[str]) -> Float:
    """What theta(alpha) is rounded to: what was asked for, or the checkpoint's own, where vLLM halves float32.

    `stored`: the dtypes of the checkpoint's tensors, as safetensors spells them, for a config that names none.
    """
    if asked != "auto":
        return asked
    text = config.get("text_config")
    own = own_dtype(config) or (own_dtype(text) if isinstance(text, Mapping) else None)
    return "float16" if own == "float16" or (own is None and set(stored) == {"F16"}) else "bfloat16"


def arithmetic(asked: Asked, weights: Float, *, native: bool, where: str) -> Float:
    """What is multiplied in, with weights of one dtype: that dtype where this machine is good at it, else float32.

    `native`: whether it is: whether the GPU, or `has_instructions` the processor, multiplies in it by itself.

    Raises:
        StudyError: a dtype was asked for in which the weights cannot be held exactly.
    """
    if asked not in ("auto", "float32", weights):
        raise StudyError(
            where=f"arithmetic {asked}",
            found=f"{where} in {weights}",
            expected=f"{weights} or float32, which hold those weights exactly",
            do=f"give --arithmetic {weights} or float32, or leave it out",
        )
    if asked != "auto":
        return asked
    return weights if native else "float32"


def reward_arithmetic(asked: Asked, *, cuda: bool) -> Float:
    """What a reward model computes in: it is only read, so its weights may be rounded to whatever was asked for."""
    return asked if asked != "auto" else "bfloat16" if cuda or has_instructions("bfloat16") else "float32"


def has_instructions(dtype: Float) -> bool:
    """Whether this machine's processor multiplies in a dtype by itself."""
    import torch

    if dtype == "float32":
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _INSTRUCTIONS[dtype])
