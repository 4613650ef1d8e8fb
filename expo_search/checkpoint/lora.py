"""A LoRA adapter folder in PEFT's format -> a merged checkpoint, or the same adapter rescaled. Without peft.

The merge is W + s B A, with A of shape (r, in), B of shape (out, r) and s = lora_alpha / r, or lora_alpha / sqrt(r)
for rank-stabilised LoRA (Hu et al., "LoRA", section 4.1; Kalajdzievski, "rsLoRA", 2023): computed in float32 and
rounded once to W's dtype. What a merge of this kind does not cover is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.checkpoint.header import TensorInfo, read_header
from expo_search.checkpoint.shard_writer import ShardWriter, known_dtype
from expo_search.checkpoint.side_files import TOKENIZER_FILES
from expo_search.dtypes import TORCH_DTYPES
from expo_search.errors import PairError
from expo_search.text import cut, first_of, one_line

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# Every key of a config must be in one of the following tables, or off. Checked against PEFT 0.21.
_READ = frozenset({"peft_type", "r", "lora_alpha"})  # and checked where they are read
_NO_EFFECT = frozenset({  # on a merge of the factors in the file, whatever they say
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config",
    "task_type",
    "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules",  # which layers have factors
    "ensure_weight_tying",  # more layers that have factors
    "lora_dropout",  # in training
    "corda_config", "eva_config", "loftq_config", "lora_ga_config",  # of the start, which `init_lora_weights` names
    "megatron_core", "qalora_group_size",  # details of keys that must be off
})  # fmt: skip
_MUST_BE_OFF = frozenset({  # variants of LoRA whose merge is another, or that change more than the factors' weights
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "fan_in_fan_out", "kasa_config", "layer_replication",
    "lora_bias", "megatron_config", "modules_to_save", "monteclora_config", "rank_pattern", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "velora_config",
})  # fmt: skip
# Starts that change only the adapter's first values; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something
# out of the base as well, and what was trained is to be added to that changed base.
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_CHOICES = {
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, *_PLAIN_STARTS),
    "use_rslora": (None, True, False),
}


@dataclass(frozen=True)
class Adapter:
    """A checked adapter folder.

    Attributes:
        factors: name of a base tensor, shape (out, in) -> its A, shape (r, in), and B, shape (out, r).
        others: tensors that are no factors, such as the score head of a reward model.
    """

    path: Path
    config: Mapping[str, Any]
    factors: Mapping[str, tuple[TensorInfo, TensorInfo]]
    others: Mapping[str, TensorInfo]

    @property
    def scale(self) -> float:
        """The factor s in W + s B A: lora_alpha / r, or with rank-stabilised LoRA lora_alpha / sqrt(r)."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def content_hash(self) -> str:
        """16 hex digits over config, weights and tokenizer."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS, *TOKENIZER_FILES):
            if (self.path / name).is_file():
                with (self.path / name).open("rb") as file:
                    digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def open_adapter(path: Path, *, extra: tuple[str, ...] = ()) -> Adapter:
    """Read and check an adapter's config and header; `extra` names the tensors beside LoRA factors that may be there.

    Raises:
        PairError: not an adapter folder, or an adapter that is no plain LoRA.
    """
    config = _read_config(path, heads=bool(extra))
    if not (path / WEIGHTS).is_file():
        pickled = (path / "adapter_model.bin").is_file()
        raise PairError(
            where=f"adapter {path}",
            found="pickled weights, which can run code and are never loaded" if pickled else f"no {WEIGHTS}",
            expected=WEIGHTS,
            do="save it with peft's save_pretrained(DIR, safe_serialization=True) on a machine you trust",
        )
    tensors = {t.name.removeprefix(_PREFIX): t for t in read_header(path / WEIGHTS, f"adapter {path}")}
    factors = {
        name.removesuffix(_A) + ".weight": (a, tensors[name.removesuffix(_A) + _B])
        for name, a in tensors.items()
        if name.endswith(_A) and name.removesuffix(_A) + _B in tensors
    }
    others = {name: t for name, t in tensors.items() if not _is_factor(name, factors)}
    if set(others) != set(extra) or not factors:
        beside = first_of(sorted(set(others) - set(extra)), between=", ") or "nothing"
        raise misfit(path, f"{beside} beside {len(factors)} pairs of LoRA factors", " and ".join(("factors", *extra)))
    return Adapter(path, config, factors, others)


def check_fits(adapter: Adapter, base: Checkpoint) -> None:
    """Check that every pair of factors has a tensor of its shape in the base.

    Raises:
        PairError: a base tensor is not there or has another shape; names the first such factors.
    """
    faults, rank = [], adapter.config["r"]
    for name, (a, b) in adapter.factors.items():
        target = base.tensors.get(name)
        if target is None:
            faults.append(f"{name}: not in the base")
        elif (a.shape, b.shape) != ((rank, *target.shape[1:]), (*target.shape[:1], rank)):
            faults.append(f"{name}: base {list(target.shape)}, A {list(a.shape)}, B {list(b.shape)}, rank {rank}")
    if faults:
        raise misfit(adapter.path, f"{len(faults)} of {len(adapter.factors)} that do not fit ({first_of(faults)})")


def merged(adapter: Adapter, base: Checkpoint, name: str) -> torch.Tensor:
    """One tensor of the merged checkpoint: in float32 where the adapter moves it, else the base's own."""
    from safetensors import safe_open

    tensor = base.read(name)
    if name not in adapter.factors:
        return tensor
    a, b = adapter.factors[name]
    with safe_open(a.file, framework="pt") as file:
        product: torch.Tensor = file.get_tensor(b.name).float() @ file.get_tensor(a.name).float()
    return tensor.float() + product * adapter.scale


def write_merged(adapter: Adapter, base: Checkpoint, folder: Path) -> None:
    """Write the merged weights, in the base's dtypes, into a folder. Holds one tensor at a time."""
    import torch

    specs = [(t.name, known_dtype(t), t.shape) for t in base.tensors.values()]
    with ShardWriter(folder, specs) as writer:
        for name, dtype, _ in specs:
            tensor = merged(adapter, base, name).to(getattr(torch, TORCH_DTYPES[dtype]))
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise misfit(adapter.path, f"a merged {name} that is not finite")
            writer.write(name, tensor)


def write_rescaled(adapter: Adapter, alpha: float, folder: Path, *, base: str, revision: str | None) -> None:
    """Write the adapter whose merge is theta(alpha) of (base + adapter, base): lora_alpha times (1 + alpha).

    The factors are copied as they are, so the scale is exact; the sum with the base is rounded where it is made.
    `base`, and `revision` of the Hub, are what PEFT is told to load it with.
    """
    shutil.copyfile(adapter.path / WEIGHTS, folder / WEIGHTS)
    config = dict(adapter.config) | {"lora_alpha": adapter.config["lora_alpha"] * (1 + alpha)}
    config |= {"base_model_name_or_path": base, "revision": revision}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def misfit(path: Path, found: str, expected: str = "LoRA factors that fit the base") -> PairError:
    """The error for an adapter that cannot be used with its base, or for what it is wanted."""
    return PairError(
        where=f"adapter {path}", found=found, expected=expected,
        do="give this base's own plain LoRA adapter, or merge it with peft and give the merged checkpoint",
    )  # fmt: skip


def _read_config(path: Path, *, heads: bool) -> dict[str, Any]:
    """Read and check the adapter's config. `heads`: whether whole modules may be saved beside the factors."""
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank, alpha = config["peft_type"], config["r"], config["lora_alpha"] * 1.0
    except FileNotFoundError:
        raise PairError(
            where=f"adapter {path}",
            found=f"no {CONFIG}",
            expected="an adapter folder in PEFT's format",
            do="check the path, or give a whole checkpoint as --aligned",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as fault:
        raise misfit(path, f"a {CONFIG} that is not readable ({type(fault).__name__}: {fault})") from None
    if type(rank) is not int or rank < 1 or not math.isfinite(alpha):
        raise misfit(path, f"r = {rank}, lora_alpha = {alpha}", "a rank of 1 or more and a finite scale")
    used = _not_plain({key: value for key, value in config.items() if not (heads and key == "modules_to_save")})
    if kind != "LORA":  # of which the keys need not be known
        raise misfit(path, one_line(cut(str(kind), 80)), "plain LoRA")
    if used:
        raise misfit(path, f"LORA with {', '.join(used)}", "plain LoRA")
    return dict(config)


def _not_plain(config: Mapping[str, Any]) -> list[str]:
    """Keys, with their values, that a plain merge does not cover, or that may mean anything."""
    used = []
    for key, value in config.items():
        if key in _CHOICES:
            is_plain = (value.lower() if isinstance(value, str) else value) in _CHOICES[key]
        else:
            is_plain = key in _READ | _NO_EFFECT or _is_off(value)
        if not is_plain:
            known = key in _MUST_BE_OFF | _CHOICES.keys()
            shown = f"{one_line(cut(key, 80))} = {cut(json.dumps(value), 80)}"
            used.append(shown if known else f"{shown} (a key that is not known here)")
    return used


def _is_off(value: object) -> bool:
    """Whether a value (None, False or empty) means that its key has no effect.

    This holds for unknown keys too: each version of PEFT writes all of its keys, new ones with the value at which
    nothing changes, and that is None, False or empty. Refusing those would refuse every adapter of a newer PEFT.
    """
    return value is None or value is False or value in ("", [], {})


def _is_factor(name: str, factors: Mapping[str, object]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) + ".weight" in factors for end in (_A, _B))
