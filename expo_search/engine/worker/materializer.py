"""alpha -> the weights of a running vLLM engine, in place. Runs inside a vLLM worker.

The extrapolation is elementwise and linear, so it commutes with fusing, sharding and permuting. Each weight is
recomputed from its two sources (`loader.py`), which are never written to, so the weights depend on alpha alone. Module
by module, the weights are written in load layout; then what vLLM derived from them after loading (packed matrices on a
CPU, fused experts, absorbed MLA projections) is derived again, by vLLM's own code. A GPU is waited for once, at the
end, when the sums of what was written are read.

Packing anew is most of a switch on a CPU, and worth it: a plain product from load layout, which a switch could write
for good, is slower than the packed one by more than all switches of a search cost (`benchmarks/generation.py`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from expo_search.engine.worker.host_memory import Scratch
from expo_search.engine.worker.live_memory import keeping_storage
from expo_search.engine.worker.loader import Weight, weights_of
from expo_search.engine.worker.owned import OwnedWorker
from expo_search.engine.worker.source_pieces import PIECE, Piece, PieceReader
from expo_search.engine.worker.source_report import Sources
from expo_search.engine.worker.vllm_names import (
    ModelConfig,
    ParallelLMHead,
    QuantizeMethodBase,
    UnquantizedEmbeddingMethod,
    UnquantizedLinearMethod,
    VocabParallelEmbedding,
    current_platform,
    is_deferred_attention_layer,
    process_weights_after_loading,
    set_current_vllm_config,
)
from expo_search.weights.cpu_kernel import Kernel, load_kernel
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, Fingerprinter, digest, line
from expo_search.weights.formula import Extrapolator
from expo_search.weights.shape import alpha_of, from_message

_Sum = int | torch.Tensor  # a weight's in the fingerprint: a number, or modulo 2^64 where it was written, int64, ()


class ExpoWorker(OwnedWorker):
    """Worker extension: vLLM mixes it into its worker class, and `LLM.collective_rpc` calls it on every rank."""

    model_config: ModelConfig
    model_runner: Any
    vllm_config: Any
    _expo_parts: tuple[LiveWeights, Sources] | None = None

    def expo_pid(self) -> int:
        """The process of this rank."""
        return os.getpid()

    def expo_graphs(self) -> str:
        """Which steps of this rank replay captured CUDA graphs, as vLLM resolved it for the model."""
        return str(self.vllm_config.compilation_config.cudagraph_mode)

    def expo_switch(self, alpha: float | list[Any], reread: bool = False) -> dict[str, Any]:
        """Write theta(alpha) on this rank; seconds by part, and the fingerprint of what was written.

        Here and below alpha comes as `shape.to_message` gives it.
        """
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            return self._expo()[0].switch(from_message(alpha), reread=reread)

    def expo_poison(self) -> None:
        """Write NaN into every weight, then run vLLM's whole post-load processing."""
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self._expo()[0].poison()

    def expo_overflow(self, alpha: float | list[Any]) -> str | None:
        """The first weight of this rank that would not be finite at alpha."""
        with torch.no_grad():
            return self._expo()[1].overflow(from_message(alpha))

    def expo_expected(self, alpha: float | list[Any]) -> str:
        """Fingerprint that theta(alpha) has by the formula, computed apart from the switch."""
        with torch.no_grad():
            return self._expo()[1].expected(from_message(alpha))

    def expo_sources(self) -> dict[str, Any]:
        """Fingerprints and size of the two sources on this rank, and the norm of the delta against the weights'."""
        with torch.no_grad():
            return self._expo()[1].describe()

    def _expo(self) -> tuple[LiveWeights, Sources]:
        if self._expo_parts is None:
            model = self.model_runner.get_model()
            weights = weights_of(model)
            elsewhere = any(source.device != w.device for w in weights for source in (w.aligned, w.sft))
            reader = PieceReader(weights[0].device, stage=elsewhere)
            self._expo_parts = LiveWeights(model, self.model_config, weights, reader), Sources(weights, reader)
        return self._expo_parts


@dataclass(eq=False)
class SwitchedModule:
    """A module that has weights to switch (`own`), or of which vLLM makes something after loading (`derives`)."""

    module: nn.Module
    own: list[Weight]
    derives: bool


class LiveWeights:
    """The weights of one worker's model, and the switch between alphas."""

    def __init__(self, model: nn.Module, model_config: ModelConfig, weights: list[Weight], reader: PieceReader) -> None:
        self._model, self._model_config, self._weights, self._reader = model, model_config, weights, reader
        self._extrapolator, self._fingerprinter = Extrapolator(), Fingerprinter()
        # sources in host memory alone do not make C's work: it writes through the live weight's pointer, too
        self._kernel = load_kernel() if any(_in_host_memory(w) for w in weights) else None
        self._gpu_kernel = _gpu_kernel(weights[0].device)
        self._scratch = Scratch()
        # buffers that both checkpoints leave as the model made them (attention's scales): nothing to write, ever
        constants = [w for w in weights if not w.is_parameter and torch.equal(w.aligned, w.sft)]
        self._constant_lines = [self._fingerprinter.line(w.name, w.aligned) for w in constants]
        self._modules = _switched_modules(model, [w for w in weights if w not in constants])

    def switch(self, alpha: float, *, reread: bool = False) -> dict[str, Any]:
        """Write theta(alpha) into every weight, with its own alpha where there is a shape, and derive what vLLM keeps.

        The fingerprint is taken of each weight in load layout, so it is also that of a fresh engine which loads
        the exported checkpoint. It is summed as the weight is written; `reread` sums it afterwards, from the memory.
        """
        clock = time.perf_counter
        seconds = {"write": 0.0, "derive": 0.0}
        sums: list[_Sum] = []
        pieces = self._reader.read(w for m in self._modules for w in m.own if not self._is_compiled(w))
        for module in self._modules:
            with _graph_safe(module.module) if module.derives else nullcontext():
                t0 = clock()
                sums += [self._write(w, alpha_of(alpha, w.name), pieces, reread=reread) for w in module.own]
                t1 = clock()
                if module.derives:
                    _derive_again(module.module, module.own)
                    self._leave_scratch(module.own)
                seconds["write"] += t1 - t0
                seconds["derive"] += clock() - t1
        t0 = clock()
        self._derive_attention()
        t1 = clock()
        lines = [
            line(w.name, torch.empty(w.shape, dtype=w.dtype, device="meta"), number)
            for w, number in zip((w for m in self._modules for w in m.own), _read(sums), strict=True)
        ]
        seconds["derive"] += t1 - t0
        seconds["write"] += clock() - t1
        return {"fingerprint": digest([*self._constant_lines, *lines]), "seconds": seconds}

    def poison(self) -> None:
        """Fill every floating-point parameter with NaN and run vLLM's own post-load processing of the whole model."""
        with ExitStack() as addresses:
            # before anything is put back: what stands in the modules now is what captured graphs read
            for m in self._model.modules():
                addresses.enter_context(_graph_safe(m))
            for weight in (w for w in self._weights if w.is_loaded_float):
                self._put_back(weight).data.fill_(float("nan"))
            process_weights_after_loading(self._model, self._model_config, self._weights[0].device)
        self._scratch = Scratch()  # the old one would grow to the whole model, and no switch needs as much

    def _put_back(self, weight: Weight) -> torch.Tensor:
        """Give the module its load-layout tensor again, with memory of the right shape and dtype."""
        tensor = weight.tensor
        if not tensor.numel() and weight.shape.numel() and weight.device.type == "cpu":
            tensor.data = self._scratch.take(weight.shape, weight.live_dtype)  # packed into memory of its own
        elif tensor.data.shape != weight.shape or tensor.data.dtype != weight.live_dtype:
            # post-load processing gave it another form: it needs load-layout memory again
            tensor.data = torch.empty(weight.shape, dtype=weight.live_dtype, device=weight.device)
        weight.slots[weight.attribute] = tensor
        return tensor

    def _leave_scratch(self, own: list[Weight]) -> None:
        """A weight that was not packed after all keeps memory of its own; the next module uses the scratch again."""
        for weight in own:
            live = weight.module._parameters.get(weight.attribute)
            if live is not None and self._scratch.holds(live):
                live.data = live.data.clone()
        self._scratch.reset()

    def _write(self, weight: Weight, alpha: float, pieces: Iterator[Piece], *, reread: bool) -> _Sum:
        """Write one weight in load layout; its sum in the fingerprint. `pieces` stands at the weight's first."""
        tensor = self._put_back(weight)
        written = self._into(tensor.data, weight, alpha, pieces)
        for view, size, stride, offset in weight.views:
            if view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                view.copy_(torch.as_strided(tensor.data, size, stride, offset))
        return self._held(tensor.data, weight.dtype) if reread else written

    def _held(self, live: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The sum of what the memory holds, in the dtype that it was rounded to; another one where it was not."""
        if live.dtype == dtype:
            return self._fingerprinter.device_sum(live)
        flat, total = live.reshape(-1), torch.zeros((), dtype=torch.int64, device=live.device)
        for start in range(0, len(flat), PIECE):  # as little beside the weights as a switch takes
            wide = flat[start : start + PIECE]
            narrow = wide.to(dtype)
            block = start * narrow.itemsize // (4 * WORDS_PER_BLOCK)
            total += self._fingerprinter.device_sum(narrow, block) + (narrow.to(wide.dtype) != wide).any()
        return total

    def _into(self, out: torch.Tensor, weight: Weight, alpha: float, pieces: Iterator[Piece]) -> _Sum:
        """`out` <- theta(alpha), rounded to the weight's dtype; its sum in the fingerprint."""
        whole = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
        if self._kernel is not None and self._is_compiled(weight):
            written: _Sum = self._kernel.switch(whole, weight.aligned, weight.sft, alpha)
        else:
            written = self._in_pieces(whole.view(-1), weight, alpha, pieces)
        if whole is not out:
            out.copy_(whole)
        return written

    def _in_pieces(self, out: torch.Tensor, weight: Weight, alpha: float, pieces: Iterator[Piece]) -> torch.Tensor:
        kernel, total, done = self._gpu_kernel, torch.zeros((), dtype=torch.int64, device=out.device), 0
        while done < len(out):
            piece = next(pieces)
            assert (piece.weight, piece.start) == (weight, done)
            live = out[done : done + len(piece.aligned)]
            part = live if live.dtype == weight.dtype else torch.empty_like(live, dtype=weight.dtype)
            block = done * part.itemsize // (4 * WORDS_PER_BLOCK)
            if kernel is not None and kernel.takes(part, piece.aligned, piece.sft):
                kernel.switch(part, piece.aligned, piece.sft, alpha, total, block)
            else:
                self._extrapolator.into(part, piece.aligned, piece.sft, alpha)
                total += self._fingerprinter.device_sum(part, block)
            if part is not live:
                live.copy_(part)
            done += len(part)
        return total

    def _is_compiled(self, weight: Weight) -> bool:
        """Whether the C kernel writes this weight."""
        return self._kernel is not None and _in_host_memory(weight)

    def _derive_attention(self) -> None:
        """What vLLM does last after loading: attention layers, which may absorb projections, then the model."""
        for module in self._model.modules():
            if is_deferred_attention_layer(module):
                with _graph_safe(module):
                    module.process_weights_after_loading(self._model_config.dtype)  # type: ignore[operator]
        if hasattr(self._model, "process_weights_after_loading"):
            self._model.process_weights_after_loading()  # type: ignore[operator]


def _in_host_memory(weight: Weight) -> bool:
    """Whether the C kernel could write this weight: it and its sources are in this host's memory, in its dtypes."""
    live = torch.empty(0, dtype=weight.live_dtype, device=weight.device)
    return weight.dtype == torch.bfloat16 and Kernel.takes(live, weight.aligned, weight.sft)


def _read(sums: Sequence[_Sum]) -> list[int]:
    """The sums as numbers, in 0 .. 2^64 - 1: those on a device in one reading, which waits for it once."""
    on_device = [s for s in sums if isinstance(s, torch.Tensor)]
    numbers = iter(torch.stack([s.to(on_device[0].device) for s in on_device]).tolist() if on_device else [])
    return [(next(numbers) if isinstance(s, torch.Tensor) else s) & MASK for s in sums]


def _gpu_kernel(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    try:
        from expo_search.weights.gpu_kernel import load_gpu_kernel
    except ImportError as fault:
        logging.getLogger(__name__).warning("no Triton kernel: %s; torch does its work, slower", fault)
        return None
    return load_gpu_kernel(device)


def _switched_modules(model: nn.Module, weights: list[Weight]) -> list[SwitchedModule]:
    """The modules that a switch concerns, in the model's order."""
    of_module: dict[nn.Module, list[Weight]] = {}
    for weight in weights:
        of_module.setdefault(weight.module, []).append(weight)
    only_looked_up = _embeddings_beside_a_head(model)
    switched = []
    for module in model.modules():
        own = of_module.get(module, [])
        derives = _derives_from_weights(module) and module not in only_looked_up
        if own or derives:
            switched.append(SwitchedModule(module, own, derives))
    return switched


def _graph_safe(module: nn.Module) -> AbstractContextManager[None]:
    """Keeps addresses where CUDA graphs may have captured them; a CPU engine has none, and packs into other layouts."""
    return nullcontext() if current_platform.is_cpu() else keeping_storage(module)


def _embeddings_beside_a_head(model: nn.Module) -> set[nn.Module]:
    """Input embeddings of models whose output is a module of its own: rows are looked up, no product is taken.

    vLLM packs them for a matrix product all the same. The canary would show a packed copy that is used after all.
    """
    embeddings = {m for m in model.modules() if isinstance(m, VocabParallelEmbedding)}
    heads = {m for m in embeddings if isinstance(m, ParallelLMHead)}
    return embeddings - heads if heads else set()


def _derives_from_weights(module: nn.Module) -> bool:
    """Whether vLLM's post-load processing of this module makes something from its weights."""
    method = getattr(module, "quant_method", None)
    if not isinstance(method, QuantizeMethodBase):
        return False
    return current_platform.is_cpu() or not isinstance(method, UnquantizedLinearMethod | UnquantizedEmbeddingMethod)


def _derive_again(module: nn.Module, own: list[Weight]) -> None:
    method: Any = module.quant_method
    kernel = getattr(method, "moe_kernel", None)
    method.process_weights_after_loading(module)
    if kernel is not None and current_platform.is_cpu():
        # vLLM 0.32: a second call skips packing the experts, because the kernel exists; it would read them unpacked.
        method.moe_kernel.fused_experts.process_weights_after_loading(module)
    for weight in own:
        if weight.is_parameter and module._parameters.get(weight.attribute) is not weight.tensor:
            # packed elsewhere: let go of the load layout
            weight.tensor.data = torch.empty(0, dtype=weight.live_dtype, device=weight.device)
