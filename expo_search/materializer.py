"""alpha -> the weights of a running vLLM engine, in place. Runs inside a vLLM worker.

The extrapolation is elementwise and linear, so it commutes with fusing, sharding and permuting. Each weight is
written from its two sources (`loader.py`), in load layout; then the modules that derive something from their weights
after loading (packed matrices on a CPU, fused experts, absorbed MLA projections) derive it again. The sources are
never written to, so the weights depend on alpha alone.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.platforms import current_platform

from expo_search.extrapolate import Extrapolator, plain_theta
from expo_search.fingerprint import Fingerprinter, digest, line
from expo_search.kernel import load_kernel
from expo_search.loader import Weight, weights_of
from expo_search.storage import Scratch, keeping_storage


class ExpoWorker:
    """Worker extension: vLLM mixes it into its worker class, and `LLM.collective_rpc` calls it on every rank."""

    model_config: ModelConfig
    model_runner: Any
    vllm_config: Any
    _expo_live: LiveWeights | None = None

    def expo_switch(self, alpha: float, reread: bool = False) -> dict[str, Any]:
        """Write theta(alpha) on this rank; seconds by part, and the fingerprint of what was written."""
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            return self._live().switch(alpha, reread=reread)

    def expo_overflow(self, alpha: float) -> str | None:
        """The first weight of this rank that would not be finite at alpha."""
        with torch.no_grad():
            return self._live().overflow(alpha)

    def expo_poison(self) -> None:
        """Write NaN into every weight, then vLLM's whole post-load processing: what a switch does not refresh shows."""
        with set_current_vllm_config(self.vllm_config), torch.no_grad():
            self._live().poison()

    def expo_expected(self, alpha: float) -> str:
        """Fingerprint that theta(alpha) has by the formula, computed whole and apart from the switch."""
        fingerprinter = Fingerprinter()
        return digest(
            fingerprinter.line(w.name, plain_theta(w.aligned, w.sft, alpha).to(w.dtype))
            for w in weights_of(self.model_runner.get_model())
        )

    def expo_sources(self) -> dict[str, Any]:
        """Fingerprints and size of the two sources on this rank, and the norm of the delta against the weights'."""
        return _describe(weights_of(self.model_runner.get_model()))

    def _live(self) -> LiveWeights:
        if self._expo_live is None:
            model = self.model_runner.get_model()
            self._expo_live = LiveWeights(model, self.model_config, weights_of(model))
        return self._expo_live


class LiveWeights:
    """The weights of one worker's model, and the switch between alphas."""

    def __init__(self, model: nn.Module, model_config: ModelConfig, weights: list[Weight]) -> None:
        self._model, self._model_config, self._weights = model, model_config, weights
        self._extrapolator, self._fingerprinter, self._kernel = Extrapolator(), Fingerprinter(), load_kernel()
        self._scratch = Scratch()
        self._of_module: dict[nn.Module, list[Weight]] = {}
        # buffers that both checkpoints leave as the model made them (attention's scales): nothing to write, ever
        constants = [w for w in weights if not w.is_parameter and torch.equal(w.aligned, w.sft)]
        self._constant_lines = [self._fingerprinter.line(w.name, w.aligned) for w in constants]
        for weight in weights:
            if weight not in constants:
                self._of_module.setdefault(weight.module, []).append(weight)
        self._only_looked_up = _embeddings_beside_a_head(model)

    def switch(self, alpha: float, *, reread: bool = False) -> dict[str, Any]:
        """Write theta(alpha) into every weight, module by module, and derive what hangs on it.

        The fingerprint is taken of each weight in load layout, so it is also that of a fresh engine which loads
        the exported checkpoint. It is summed as the weight is written; `reread` sums it afterwards, from the memory.
        """
        seconds = {"write": 0.0, "derive": 0.0}
        lines = list(self._constant_lines)
        clock = time.perf_counter
        for module in self._model.modules():
            own = self._of_module.get(module, [])
            derives = _derives_from_weights(module) and module not in self._only_looked_up
            with _graph_safe(module) if derives else nullcontext():
                t0 = clock()
                lines += [self._write(weight, alpha, reread=reread) for weight in own]
                t1 = clock()
                if derives:
                    _derive_again(module, own)
                    self._leave_scratch(own)
                seconds["write"] += t1 - t0
                seconds["derive"] += clock() - t1
        t0 = clock()
        self._derive_attention()
        seconds["derive"] += clock() - t0
        return {"fingerprint": digest(lines), "seconds": seconds}

    def overflow(self, alpha: float) -> str | None:
        """The first weight that theta(alpha) would make infinite, if there is one. Writes nothing.

        Costs one comparison a weight, on bounds that were measured once, unless a bound is exceeded.
        """
        for weight in self._weights:
            if weight.is_loaded_float and weight.spread.bound(alpha) >= torch.finfo(weight.dtype).max * 0.99:
                theta = plain_theta(weight.aligned, weight.sft, alpha).to(weight.dtype)
                if not torch.isfinite(theta).all():
                    return weight.name
        return None

    def poison(self) -> None:
        """Fill every floating-point parameter with NaN and run vLLM's own post-load processing of the whole model."""
        for weight in (w for w in self._weights if w.is_loaded_float):
            self._put_back(weight).data.fill_(float("nan"))
        with ExitStack() as addresses:
            for module in self._model.modules():
                addresses.enter_context(_graph_safe(module))
            process_weights_after_loading(self._model, self._model_config, self._weights[0].aligned.device)

    def _put_back(self, weight: Weight) -> torch.Tensor:
        """Give the module its load-layout tensor again, with memory of the right shape and dtype."""
        tensor = weight.tensor
        if not tensor.numel() and weight.shape.numel():
            tensor.data = self._scratch.take(weight.shape, weight.dtype)  # packed into memory of its own (CPU)
        elif tensor.data.shape != weight.shape or tensor.data.dtype != weight.dtype:
            # post-load processing widened it: give it load-layout memory again
            tensor.data = torch.empty(weight.shape, dtype=weight.dtype, device=weight.aligned.device)
        slots = weight.module._parameters if weight.is_parameter else weight.module._buffers
        slots[weight.attribute] = tensor  # type: ignore[assignment]
        return tensor

    def _leave_scratch(self, own: list[Weight]) -> None:
        """A weight that was not packed after all keeps memory of its own; the next module uses the scratch again."""
        for weight in own:
            live = weight.module._parameters.get(weight.attribute)
            if live is not None and self._scratch.holds(live):
                live.data = live.data.clone()
        self._scratch.reset()

    def _write(self, weight: Weight, alpha: float, *, reread: bool) -> str:
        """Write one weight in load layout; its line of the fingerprint."""
        tensor = self._put_back(weight)
        fused_sum = self._into(tensor.data, weight.aligned, weight.sft, alpha)
        for view, size, stride, offset in weight.views:
            if view.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                view.copy_(torch.as_strided(tensor.data, size, stride, offset))
        if fused_sum is None or reread:
            return self._fingerprinter.line(weight.name, tensor.data)
        return line(weight.name, tensor.data, fused_sum)

    def _into(self, out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> int | None:
        """out <- theta(alpha); the fingerprint's sum where it came with the writing."""
        if self._kernel is not None and self._kernel.takes(out, aligned, sft):
            return self._kernel.switch(out, aligned, sft, alpha)
        self._extrapolator.into(out, aligned, sft, alpha)
        return None

    def _derive_attention(self) -> None:
        """What vLLM does last after loading: attention layers, which may absorb projections, then the model."""
        for module in self._model.modules():
            if is_deferred_attention_layer(module):
                with _graph_safe(module):
                    module.process_weights_after_loading(self._model_config.dtype)  # type: ignore[operator]
        if hasattr(self._model, "process_weights_after_loading"):
            self._model.process_weights_after_loading()  # type: ignore[operator]


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
            weight.tensor.data = torch.empty(0, dtype=weight.dtype)  # packed elsewhere: let go of the load layout


def _describe(weights: list[Weight]) -> dict[str, Any]:
    fingerprinter = Fingerprinter()
    spreads = [w.spread for w in weights if w.is_loaded_float]
    square_aligned = sum(s.square_aligned for s in spreads)
    return {
        "aligned": digest(fingerprinter.line(w.name, w.aligned) for w in weights),
        "sft": digest(fingerprinter.line(w.name, w.sft) for w in weights),
        "n_bytes": sum(w.aligned.nbytes + w.sft.nbytes for w in weights),
        "relative_delta": (sum(s.square_delta for s in spreads) / square_aligned) ** 0.5 if square_aligned else 0.0,
        "changed_share": sum(s.n_changed for s in spreads) / max(1, sum(s.n for s in spreads)),
    }
