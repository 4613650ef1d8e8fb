"""Two checkpoints -> the two sources of every weight, in vLLM's load layout. Runs inside a vLLM worker.

`ExpoLoader` is vLLM's own safetensors loader run twice. Every parameter is pointed at a fresh buffer full of NaN and
the model's own `load_weights` fills it, once from aligned and once from sft. Both snapshots are then in vLLM's load
layout: fused projections, tensor-parallel shards and experts match element by element, with no map of tensor names,
and an element that no load wrote is still NaN, which is an error.

A source is kept in float32 where its file's dtype is not the engine's, so that it is rounded only once, at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from expo_search.checkpoint import Checkpoint, open_checkpoint
from expo_search.errors import MaterializeError
from expo_search.match import PairCheck, check_pair, with_rows_of

LOAD_FORMAT = "expo"
SFT_OPTION = "expo_sft"
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
_EMPTY = torch.empty(0)


@dataclass(frozen=True)
class Spread:
    """How far a weight's two sources are apart: largest magnitudes, sums of squares, elements that differ, elements."""

    max_aligned: float
    max_delta: float
    square_aligned: float
    square_delta: float
    n_changed: int
    n: int

    def bound(self, alpha: float) -> float:
        """No element of theta(alpha) is larger than this."""
        return self.max_aligned + abs(alpha) * self.max_delta


@dataclass(eq=False)
class Weight:
    """One distinct tensor of the model in load layout, its two sources, and where it lives.

    Attributes:
        tensor: the object vLLM made: a Parameter with its weight_loader, or a persistent buffer.
        dtype, shape: of the live weight in load layout; theta(alpha) is rounded to `dtype` once.
        aligned, sft: the sources, of this shape; only read after loading.
        views: tensors elsewhere in the model that share its storage, each with its size, stride and offset.
    """

    name: str
    module: nn.Module
    attribute: str
    tensor: torch.Tensor
    dtype: torch.dtype
    shape: torch.Size
    aligned: torch.Tensor = _EMPTY
    sft: torch.Tensor = _EMPTY
    views: list[tuple[torch.Tensor, torch.Size, tuple[int, ...], int]] = field(default_factory=list)

    @cached_property
    def spread(self) -> Spread:
        """Measured once; reads both sources."""
        aligned = self.aligned.float()
        delta = aligned - self.sft.float()
        if not delta.numel():
            return Spread(0.0, 0.0, 0.0, 0.0, 0, 0)
        return Spread(
            float(aligned.abs().max()),
            float(delta.abs().max()),
            float((aligned**2).sum(dtype=torch.float64)),
            float((delta**2).sum(dtype=torch.float64)),
            int(torch.count_nonzero(delta)),
            delta.numel(),
        )

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.tensor, nn.Parameter)

    @property
    def is_loaded_float(self) -> bool:
        """Whether a checkpoint must write every element (buffers may keep the model's own constants)."""
        return self.is_parameter and self.dtype.is_floating_point


@register_model_loader(LOAD_FORMAT)
class ExpoLoader(DefaultModelLoader):  # type: ignore[misc]  # vllm is not followed by mypy
    """vLLM's default loader for aligned, and again for sft; leaves aligned in the model and both in `weights_of`."""

    def __init__(self, load_config: LoadConfig) -> None:
        config = copy.copy(load_config)
        options: dict[str, Any] = dict(config.model_loader_extra_config or {})
        self._sft_path = Path(options.pop(SFT_OPTION))
        config.model_loader_extra_config = options
        config.load_format = "safetensors"
        super().__init__(config)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        aligned = open_checkpoint(Path(model_config.model), role="aligned")
        sft = open_checkpoint(self._sft_path, role="sft")
        check = check_pair(aligned, sft)
        # Post-load processing would tie lm_head to the input embedding where aligned holds two equal copies of it;
        # they need not stay equal at another alpha.
        model_config.word_embeddings_untied_by_checkpoint = False
        weights = list(_distinct_weights(model))
        live = [weight.tensor.data for weight in weights]
        _point_at_fresh(weights, aligned)
        super().load_weights(model, model_config)
        _take(weights, "aligned", live)
        _point_at_fresh(weights, sft)
        model.load_weights(_sft_tensors(self._iterate(model, model_config, sft), aligned, check))  # type: ignore[operator]
        _take(weights, "sft", live)
        for weight, data in zip(weights, live, strict=True):
            weight.tensor.data = data
            data.copy_(weight.aligned)
        _find_views(model, weights)
        # The worker extension and the loader meet only in the model; a plain attribute would register as a submodule.
        object.__setattr__(model, "_expo_weights", weights)

    def _iterate(
        self, model: nn.Module, model_config: ModelConfig, sft: Checkpoint
    ) -> Iterator[tuple[str, torch.Tensor]]:
        config = copy.copy(model_config)
        config.model, config.revision, config.model_weights = str(sft.path), None, ""
        yield from self.get_all_weights(config, model)


def weights_of(model: nn.Module) -> list[Weight]:
    """The weights that `ExpoLoader` left in a model."""
    weights: list[Weight] = vars(model)["_expo_weights"]
    return weights


def _distinct_weights(model: nn.Module) -> Iterator[Weight]:
    """Every parameter and persistent buffer once, tied ones under their first name."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        prefix = module_name + "." if module_name else ""
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for attribute, tensor in [*module._parameters.items(), *persistent.items()]:
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield Weight(prefix + attribute, module, attribute, tensor, tensor.dtype, tensor.shape)


def _point_at_fresh(weights: list[Weight], checkpoint: Checkpoint) -> None:
    """Give each weight a new buffer of NaN, wide enough for every dtype the checkpoint stores."""
    stored = {_DTYPES.get(t.dtype) for t in checkpoint.tensors.values()} & set(_DTYPES.values())
    for weight in weights:
        if weight.is_loaded_float:
            dtype = weight.dtype if stored <= {weight.dtype} else torch.float32
            weight.tensor.data = torch.full(weight.shape, float("nan"), dtype=dtype, device=weight.tensor.device)


def _take(weights: list[Weight], source: str, live: list[torch.Tensor]) -> None:
    """Keep what a load wrote as `source`.

    Raises:
        MaterializeError: an element that the load did not write, or that is not finite in the file.
    """
    for weight, data in zip(weights, live, strict=True):
        loaded = weight.tensor.data
        if not weight.is_loaded_float:
            setattr(weight, source, data.clone())
            continue
        bad = loaded.numel() - int(torch.isfinite(loaded).sum())
        if bad:
            raise MaterializeError(
                where=f"{source} checkpoint, weight {weight.name}",
                found=f"{bad} of {loaded.numel()} elements that no tensor of the file wrote, or that are not finite",
                expected="every element written with a finite number",
                do="check that the checkpoint is whole and of the architecture that its config.json names",
            )
        setattr(weight, source, loaded)


def _sft_tensors(
    tensors: Iterator[tuple[str, torch.Tensor]], aligned: Checkpoint, check: PairCheck
) -> Iterator[tuple[str, torch.Tensor]]:
    """sft's tensors, shaped for aligned's model: vocabulary rows that sft lacks are aligned's, so they do not move."""
    copies = {source: name for name, source in check.tied_in_sft.items()}
    for name, tensor in tensors:
        if name in check.skipped_in_sft:
            continue
        if name in check.longer_vocabulary:
            tensor = with_rows_of(aligned.read(name), tensor)
        yield name, tensor
        if name in copies:
            output = copies[name]
            yield output, with_rows_of(aligned.read(output), tensor)


def _find_views(model: nn.Module, weights: list[Weight]) -> None:
    """Find tensors over a weight's storage that are kept elsewhere (such as Mamba-2's conv_weights)."""
    by_storage = {w.tensor.untyped_storage().data_ptr(): w for w in weights if w.tensor.numel()}
    known = {id(w.tensor) for w in weights}
    for module in model.modules():
        for tensor in [*module._buffers.values(), *vars(module).values()]:
            if isinstance(tensor, torch.Tensor) and tensor.numel() and id(tensor) not in known and not tensor.is_meta:
                weight = by_storage.get(tensor.untyped_storage().data_ptr())
                if weight is not None:
                    weight.views.append((tensor, tensor.size(), tensor.stride(), int(tensor.storage_offset())))
