"""Two checkpoints -> the two sources of every weight, in vLLM's load layout. Runs inside a vLLM worker.

`ExpoLoader` is vLLM's own safetensors loader run twice. Every parameter is pointed at a fresh buffer full of NaN and
the model's own `load_weights` fills it, once from aligned and once from sft. Both snapshots are then in vLLM's load
layout: fused projections, tensor-parallel shards and experts match element by element, with no map of tensor names,
and an element that no load wrote is still NaN, which is an error (but in padding, see `expert_padding.py`). Before,
a load of made-up numbers shows whether the model's loader copies them at all (`load_check.py`).

A source is kept in float32 where its file's dtype is not the weight's, so that it is rounded only once, at the end.
Sources that are to stay in host memory are loaded there and never touch the device's. Where engines of one machine
share them, the first one fills them; the others run both loads into their live weights, and compare.

An engine that multiplies in float32 with weights of a smaller dtype holds them widened. What they are rounded to is
then read off a second model, made but never loaded, as an engine would make it that multiplies in the weights' dtype:
some parameters are in float32 in either.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expo_search import errors
from expo_search.checkpoint.computed_weights import not_linear
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.pair_check import PairCheck, check_pair, with_rows_of
from expo_search.dtypes import ITEMSIZE, TORCH_DTYPES
from expo_search.engine.worker.expert_padding import padding_of, zero_unwritten
from expo_search.engine.worker.load_check import (
    NUMBERS,
    WIDE_NUMBERS,
    first_difference,
    is_computed,
    made_up,
    tensors_beside,
)
from expo_search.engine.worker.source_buffers import Form, SourceBuffers
from expo_search.engine.worker.vllm_names import (
    DefaultModelLoader,
    LoadConfig,
    ModelConfig,
    VllmConfig,
    get_current_vllm_config,
    initialize_model,
    register_model_loader,
    set_current_vllm_config,
    set_default_torch_dtype,
)
from expo_search.errors import ExpoError, MaterializeError

LOAD_FORMAT = "expo"
SFT_OPTION = "expo_sft"
HOST_OPTION = "expo_sources_on_host"
SHARED_OPTION = "expo_sources_shared"  # the pair's name in memory that this machine's engines share
FAULT_OPTION = "expo_fault_file"  # of a rank in another process vLLM tells only that it did not start
WEIGHTS_OPTION = "expo_weights_dtype"  # where it is not what the engine multiplies in
_DTYPES = {stored: getattr(torch, name) for stored, name in TORCH_DTYPES.items() if name in ITEMSIZE}
_EMPTY = torch.empty(0)


@dataclass(eq=False)
class Weight:
    """One distinct tensor of the model in load layout, its two sources, and where it lives.

    Attributes:
        tensor: the object vLLM made: a Parameter with its weight_loader, or a persistent buffer.
        dtype: what theta(alpha) is rounded to, once. live_dtype: what the engine holds it in, the same or float32.
        shape, device: of the live weight in load layout.
        aligned, sft: the sources, of this shape, contiguous, on this device or in pinned host memory; only read after
            loading.
        views: tensors elsewhere in the model that share its storage, each with its size, stride and offset.
    """

    name: str
    module: nn.Module
    attribute: str
    tensor: torch.Tensor
    dtype: torch.dtype
    live_dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    aligned: torch.Tensor = _EMPTY
    sft: torch.Tensor = _EMPTY
    views: list[tuple[torch.Tensor, torch.Size, tuple[int, ...], int]] = field(default_factory=list)

    @property
    def is_parameter(self) -> bool:
        """Whether it is a Parameter, and not a buffer."""
        return isinstance(self.tensor, nn.Parameter)

    @property
    def slots(self) -> dict[str, Any]:
        """Where the module keeps it, by attribute."""
        slots: dict[str, Any] = vars(self.module)["_parameters" if self.is_parameter else "_buffers"]
        return slots

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
        self._on_host = bool(options.pop(HOST_OPTION, False))
        self._shared: str | None = options.pop(SHARED_OPTION, None)
        self._weights_dtype: str | None = options.pop(WEIGHTS_OPTION, None)
        self._fault_file = Path(options.pop(FAULT_OPTION))
        config.model_loader_extra_config = options
        config.load_format = "safetensors"
        super().__init__(config)
        self._files: set[Path] = set()  # of the two checkpoints

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Called by vLLM: load aligned and sft, leave alpha = 0 in `model`, and keep both sources beside it.

        Raises:
            MaterializeError: weights that are not finite, that the files do not give, or that are computed from them.
            CheckpointError: a folder that is no whole checkpoint.
            PairError: two checkpoints that do not match.
        """
        try:
            self._load_both(model, model_config)
        except ExpoError as fault:
            with suppress(FileExistsError):  # one rank's will do
                write_fault(fault, self._fault_file)
            raise

    def _load_both(self, model: nn.Module, model_config: ModelConfig) -> None:
        aligned = open_checkpoint(Path(model_config.model), role="aligned")
        sft = open_checkpoint(self._sft_path, role="sft")
        check = check_pair(aligned, sft)
        self._files = {t.file for checkpoint in (aligned, sft) for t in checkpoint.tensors.values()}
        # Post-load processing would tie lm_head to the input embedding where aligned holds two equal copies of it;
        # they need not stay equal at another alpha.
        model_config.word_embeddings_untied_by_checkpoint = False
        dtypes = {} if self._weights_dtype is None else _dtypes_at(getattr(torch, self._weights_dtype))
        weights = list(_distinct_weights(model, dtypes))
        live = [weight.tensor.data for weight in weights]
        rounded_to = getattr(torch, self._weights_dtype) if self._weights_dtype else model_config.dtype
        computed = _computed(model, weights, made_up(self.get_all_weights(model_config, model)), rounded_to)
        buffers = self._point_at_buffers(weights, live, "aligned", aligned)
        super().load_weights(model, model_config)
        _take(weights, "aligned", aligned, live, buffers, computed)
        beside = tensors_beside(model, live)
        buffers = self._point_at_buffers(weights, live, "sft", sft)
        model.load_weights(_sft_tensors(self._iterate(model, model_config, sft), aligned, check))  # type: ignore[operator]
        _take(weights, "sft", sft, live, buffers, computed)
        _refuse_computed(computed, aligned.architecture, first_difference(beside, tensors_beside(model, live)))
        for weight, data in zip(weights, live, strict=True):
            weight.tensor.data = data
            data.copy_(weight.aligned)
        _find_views(model, weights)
        # The worker extension and the loader meet only in the model; a plain attribute would register as a submodule.
        object.__setattr__(model, "_expo_weights", weights)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        """Called by vLLM: as its own, and a weight of the old form that was put elsewhere shares that memory.

        A second copy of the experts would else be alive while vLLM measures what is left. What a CPU engine has packed
        into another form stays in load layout besides until the first switch, as the canary poisons all of it.
        """
        model: nn.Module = super().load_model(vllm_config, model_config, prefix)
        for weight in weights_of(model):
            _share_memory(weight)
        return model

    def _prepare_weights(self, *args: Any, **kwargs: Any) -> tuple[str, list[str], bool, str]:
        """Called by vLLM, whose own takes every safetensors file where there is no index: keep what was checked.

        Other folders than the two are those of vLLM's `reload_weights`, which nobody here has checked.
        """
        folder, files, is_safetensors, index = super()._prepare_weights(*args, **kwargs)
        checked = {file.parent for file in self._files}
        kept = [file for file in files if Path(file) in self._files or Path(file).parent not in checked]
        return folder, kept, is_safetensors, index

    def _point_at_buffers(
        self, weights: list[Weight], live: list[torch.Tensor], source: str, checkpoint: Checkpoint
    ) -> SourceBuffers:
        """Give each weight NaN to be loaded over: in a buffer wide enough for every dtype the checkpoint stores.

        Where another engine has filled the buffers, the NaN are in the live weights.
        """
        stored = {_DTYPES.get(t.dtype) for t in checkpoint.tensors.values()} & set(_DTYPES.values())
        loaded = [(weight, data) for weight, data in zip(weights, live, strict=True) if weight.is_loaded_float]
        buffers = SourceBuffers.of(
            [Form(w.name, w.shape, w.dtype if stored <= {w.dtype} else torch.float32, w.device) for w, _ in loaded],
            on_host=self._on_host,
            shared=self._shared and f"{self._shared} {source}",
        )
        for (weight, data), buffer in zip(loaded, buffers.tensors, strict=True):
            weight.tensor.data = (data if buffers.are_whole else buffer).fill_(float("nan"))
        return buffers

    def _iterate(
        self, model: nn.Module, model_config: ModelConfig, sft: Checkpoint
    ) -> Iterator[tuple[str, torch.Tensor]]:
        config = copy.copy(model_config)
        config.model, config.revision, config.model_weights = str(sft.path), None, ""
        yield from self.get_all_weights(config, model)


def write_fault(fault: ExpoError, file: Path) -> None:
    """Keep what stopped a load, for `read_fault`. Raises FileExistsError."""
    with file.open("x", encoding="utf-8") as out:
        json.dump({"kind": type(fault).__name__} | vars(fault), out)


def read_fault(file: Path) -> ExpoError:
    """What stopped a load, from the file that `FAULT_OPTION` names."""
    parts = json.loads(file.read_text(encoding="utf-8"))
    fault: ExpoError = getattr(errors, parts.pop("kind"))(**parts)
    return fault


def weights_of(model: nn.Module) -> list[Weight]:
    """The weights that `ExpoLoader` left in a model."""
    weights: list[Weight] = vars(model)["_expo_weights"]
    return weights


def _distinct_weights(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[Weight]:
    """Every parameter and persistent buffer once, tied ones under their first name.

    `dtypes`: what those are rounded to that are not rounded to the dtype they are held in.
    """
    seen: set[int] = set()
    for name, module, attribute, tensor in _tensors(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            dtype = dtypes.get(name, tensor.dtype)
            yield Weight(name, module, attribute, tensor, dtype, tensor.dtype, tensor.shape, tensor.device)


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """(name, module, attribute, tensor) of every parameter and persistent buffer."""
    for module_name, module in model.named_modules():
        prefix = module_name + "." if module_name else ""
        persistent = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
        for attribute, tensor in [*module._parameters.items(), *persistent.items()]:
            if tensor is not None:
                yield prefix + attribute, module, attribute, tensor


def _dtypes_at(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Name -> dtype of each tensor in an engine that multiplies in `dtype`. That model's memory is never touched."""
    config = copy.copy(get_current_vllm_config())
    config.model_config = copy.copy(config.model_config)
    config.model_config.dtype = dtype
    config.compilation_config = copy.copy(config.compilation_config)
    config.compilation_config.static_forward_context = {}  # where layers enter themselves by name, once each
    with set_current_vllm_config(config), set_default_torch_dtype(dtype), torch.device("cpu"):
        twin = initialize_model(vllm_config=config)
    return {name: tensor.dtype for name, _, _, tensor in _tensors(twin)}


def _computed(
    model: nn.Module, weights: list[Weight], tensors: Iterator[tuple[str, torch.Tensor]], rounded_to: torch.dtype
) -> list[Weight]:
    """The weights that the model's loader computes. Uses the live memory, which holds nothing yet.

    Sets `Weight.dtype` of those which vLLM keeps in float32 whatever the file has (gates of experts): an export writes
    them in the file's dtype, so theta(alpha) is rounded to `rounded_to` where the file holds them in 16 bits.
    """
    for weight in weights:
        if weight.is_loaded_float:
            weight.tensor.data.fill_(float("nan"))
    model.load_weights(tensors)  # type: ignore[operator]
    computed = []
    for weight in (w for w in weights if w.is_loaded_float):
        if not is_computed(weight.tensor.data, NUMBERS):
            if rounded_to.itemsize < weight.dtype.itemsize:
                weight.dtype = rounded_to
        elif is_computed(weight.tensor.data, WIDE_NUMBERS):
            computed.append(weight)
    return computed


def _refuse_computed(computed: list[Weight], architecture: str, beside: str | None) -> None:
    """Refuse a pair that differs in a weight that is computed, or in a tensor `beside` the weights.

    Raises:
        MaterializeError: either.
    """
    for weight in computed:
        if not torch.equal(weight.aligned, weight.sft):
            found = "aligned and sft differ in it, and vLLM computes it from the files' numbers when it loads them"
            raise not_linear(weight.name, architecture, found)
    if beside is not None:
        raise not_linear(beside, architecture, "vLLM derives it from the weights only when it loads them")


def _take(
    weights: list[Weight],
    source: str,
    checkpoint: Checkpoint,
    live: list[torch.Tensor],
    buffers: SourceBuffers,
    computed: list[Weight],
) -> None:
    """Keep what a load wrote as `source`; where another engine's load had written it, compare.

    Raises:
        MaterializeError: an element that the load did not write, that is not finite in the file, or that is another
            one than the other engine's (but in what vLLM computes, which may be rounded otherwise on its way).
    """
    n_taken = 0
    for weight, data in zip(weights, live, strict=True):
        loaded = weight.tensor.data
        if not weight.is_loaded_float:
            setattr(weight, source, data.to(weight.dtype, copy=True))
            continue
        zero_unwritten(loaded, padding_of(weight.module, weight.attribute, weight.shape))
        bad = loaded.numel() - int(torch.isfinite(loaded).sum())
        if bad:
            named = _not_finite(checkpoint)
            raise MaterializeError(
                where=f"{source} checkpoint, {named or f'weight {weight.name}'}",
                found="numbers that are not finite" if named else f"{bad} of {loaded.numel()} elements not written",
                expected="every element written with a finite number",
                do="check that the checkpoint is whole and of the architecture that its config.json names",
            )
        kept = buffers.kept(n_taken, loaded)
        if kept is None and weight not in computed:
            raise MaterializeError(
                where=f"{source} checkpoint, weight {weight.name}",
                found="other numbers in the files than another engine of this machine has loaded from them",
                expected="checkpoints that stay as they are",
                do="see who writes to the folder, end what runs with it, and start again",
            )
        setattr(weight, source, buffers.tensors[n_taken] if kept is None else kept)
        n_taken += 1
    buffers.seal()


def _not_finite(checkpoint: Checkpoint) -> str | None:
    """The first tensor of the files that holds NaN or an infinity; vLLM's weights have other names, several in one."""
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.read(name)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"tensor {name} of {info.file}"
    return None


def _share_memory(weight: Weight) -> None:
    """Point a weight's tensor at what took its place in the module, if that has the weight's own form."""
    live = weight.slots.get(weight.attribute)
    if live is not None and (live.shape, live.dtype, live.device) == (weight.shape, weight.live_dtype, weight.device):
        weight.tensor.data = live.data


def _sft_tensors(
    tensors: Iterator[tuple[str, torch.Tensor]], aligned: Checkpoint, check: PairCheck
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of sft, shaped for aligned's model: vocabulary rows that sft lacks are aligned's, so they do not move."""
    copies = {source: name for name, source in check.tied_in_sft.items()}
    for name, tensor in tensors:
        if name in check.skipped_in_sft:
            continue
        yield name, with_rows_of(aligned.read(name), tensor) if name in check.longer_vocabulary else tensor
        if name in copies:
            output = copies[name]
            yield output, with_rows_of(aligned.read(output), tensor)  # the rows that sft lacks are this one's own


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
