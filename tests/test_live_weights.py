"""A switch on devices and with kernels that this machine need not have, by stand-ins: what is written, and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.fused_moe.oracle import unquantized
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.utils import replace_parameter

from expo_search.engine.worker import materializer
from expo_search.engine.worker.expert_padding import padding_of, zero_unwritten
from expo_search.engine.worker.loader import Weight, _share_memory
from expo_search.engine.worker.materializer import LiveWeights
from expo_search.engine.worker.source_pieces import PieceReader
from expo_search.weights.fingerprint import WORDS_PER_BLOCK
from expo_search.weights.formula import plain_theta


def weight(
    module: nn.Module, attribute: str, aligned: torch.Tensor, sft: torch.Tensor, *, name: str | None = None
) -> Weight:
    """As the loader leaves it, with its live tensor wherever the module has it."""
    live = getattr(module, attribute)
    return Weight(
        name or attribute, module, attribute, live, live.dtype, live.dtype, live.shape, live.device,
        aligned, sft,
    )  # fmt: skip


class TestOnAnotherDeviceThanTheSources:
    """A GPU engine whose sources stay in (pinned) host memory; the device "meta" stands for the GPU."""

    @pytest.fixture
    def plain(self) -> Weight:
        module = nn.Linear(48, 64, bias=False, device="meta", dtype=torch.bfloat16)
        aligned, sft = (torch.randn(64, 48).bfloat16() for _ in range(2))
        return weight(module, "weight", aligned, sft)

    def live(self, weight: Weight) -> LiveWeights:
        reader = PieceReader(weight.device, stage=True)
        return LiveWeights(nn.Sequential(weight.module), None, [weight], reader)

    def test_the_c_kernel_is_neither_compiled_nor_given_the_devices_pointer(
        self, plain: Weight, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compiles() -> None:
            raise AssertionError("compiled for a device that C cannot write to")

        monkeypatch.setattr(materializer, "load_kernel", compiles)
        live = self.live(plain)
        pieces = PieceReader(plain.device, stage=True).read([plain])
        total = live._into(plain.tensor.data, plain, 0.7, pieces)
        assert isinstance(total, torch.Tensor)
        assert total.device.type == "meta"  # the sum of what torch wrote stays there
        assert next(pieces, None) is None

    def test_the_pieces_of_every_such_weight_are_asked_for(
        self, plain: Weight, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which weights C writes is decided twice, for the reader and for the writer: both must agree."""
        asked: list[Any] = []

        def read(_: PieceReader, weights: Iterable[Any]) -> Iterator[Any]:
            asked.extend(weights)
            return iter([])

        monkeypatch.setattr(PieceReader, "read", read)
        monkeypatch.setattr(LiveWeights, "_write", lambda *_, **__: 0)
        monkeypatch.setattr(LiveWeights, "_derive_attention", lambda _: None)
        self.live(plain).switch(0.7)
        assert asked == [plain]

    @pytest.mark.parametrize("reread", [False, True])
    @pytest.mark.parametrize("by_kernel", [False, True])
    def test_a_switch_waits_for_the_device_once_whatever_it_writes(
        self, by_kernel: bool, reread: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernel = StandInKernel()
        monkeypatch.setattr(materializer, "_gpu_kernel", lambda _: kernel if by_kernel else None)
        model = nn.Sequential(
            nn.Linear(48, 256, device="meta", dtype=torch.bfloat16),
            nn.Linear(256, 33, device="meta", dtype=torch.float16),
            nn.Linear(33, 3, device="meta", dtype=torch.float32),
        )
        weights = [
            weight(layer, attribute, *(torch.randn(p.shape).to(p.dtype) for _ in range(2)), name=f"{i}.{attribute}")
            for i, layer in enumerate(model)
            for attribute, p in layer.named_parameters()
        ]
        weights[-1].dtype = torch.bfloat16  # held wider than it is rounded to, as gates of experts are
        reader = PieceReader(torch.device("meta"), stage=True, piece=2 * WORDS_PER_BLOCK)
        live = LiveWeights(model, None, weights, reader)
        with Waits():
            live.switch(-0.4)  # the first brings the keys of the fingerprint to the device
        launched = kernel.n
        with Waits() as waits:
            live.switch(0.7, reread=reread)
        assert waits.calls == ["aten._to_copy.default"]
        assert kernel.n - launched == (4 if by_kernel else 0)  # three pieces and a bias: one launch each


class StandInKernel:
    """As `GpuKernel` is called, on a device that has no memory."""

    n = 0

    @staticmethod
    def takes(*tensors: torch.Tensor) -> bool:
        return all(t.dtype == torch.bfloat16 for t in tensors)

    def switch(self, out: torch.Tensor, *rest: Any) -> None:
        total = rest[3]
        assert (total.device, total.shape, total.dtype) == (out.device, (), torch.int64)
        self.n += 1


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes calls for which this process would wait for a GPU; the device "meta", which refuses them, stands for one.

    Copies to it wait, too, where they are not from pinned memory and on their way meanwhile.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices = [a.device.type for a in args if isinstance(a, torch.Tensor)]
        aten = torch.ops.aten
        if "meta" in devices and func in (aten._local_scalar_dense.default, aten.equal.default):
            self.calls.append(str(func))
            return 0
        if func is aten._to_copy.default and kwargs.get("device", args[0].device).type != args[0].device.type:
            self.calls.append(str(func))
            return torch.zeros_like(args[0], device=kwargs["device"])
        if func is aten.copy_.default and len(set(devices)) > 1 and not (args[2:] and args[2]):
            self.calls.append(str(func))
            return args[0]
        return func(*args, **kwargs)


class Packing(QuantizeMethodBase):  # type: ignore[misc]  # vllm is not followed by mypy
    """As vLLM packs a linear layer on a CPU: into memory of its own, and the weight is gone."""

    def create_weights(self, *_: Any, **__: Any) -> None: ...

    def apply(self, *_: Any, **__: Any) -> torch.Tensor: ...  # type: ignore[empty-body]

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.packed = layer.weight.detach().clone()
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)


def test_switches_go_through_memory_for_one_module_also_after_all_were_poisoned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(materializer, "current_platform", SimpleNamespace(is_cpu=lambda: True))
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16) for _ in range(8)))
    weights = []
    for i, layer in enumerate(model):
        layer.quant_method = Packing()
        weights.append(weight(layer, "weight", *(torch.randn(64, 64).bfloat16() for _ in range(2)), name=str(i)))
    config: Any = SimpleNamespace(word_embeddings_untied_by_checkpoint=False, dtype=torch.bfloat16, quantization=None)
    live = LiveWeights(model, config, weights, PieceReader(torch.device("cpu"), stage=False))
    for alpha in (0.0, "poison", 0.7, 0.7):
        if isinstance(alpha, str):
            live.poison()
        else:
            live.switch(alpha)
    for layer, w in zip(model, weights, strict=True):
        assert torch.equal(vars(layer)["packed"], plain_theta(w.aligned, w.sft, 0.7).bfloat16())
    assert live._scratch._buffer.nbytes == 64 * 64 * 2


E, INNER, PADDED, HIDDEN = 3, 96, 128, 4  # experts, intermediate size in the checkpoint and in memory, hidden size


class Blackwell(UnquantizedFusedMoEMethod):  # type: ignore[misc]  # vllm is not followed by mypy
    """vLLM's own method with a FlashInfer backend; only what needs a GPU is left out: its kernels."""

    def __init__(self, backend: UnquantizedMoeBackend, config: Any) -> None:
        nn.Module.__init__(self)
        self.unquantized_backend, self.moe = backend, config
        self.moe_kernel: Any = None

    def _init_moe_kernel(self, _: nn.Module) -> None:
        self.moe_kernel = SimpleNamespace(fused_experts=SimpleNamespace(process_weights_after_loading=lambda _: None))


class Transposing(QuantizeMethodBase):  # type: ignore[misc]
    """Post-load processing to another shape: by a new parameter each time, and by other memory for the same one."""

    def create_weights(self, *_: Any, **__: Any) -> None: ...

    def apply(self, *_: Any, **__: Any) -> torch.Tensor: ...  # type: ignore[empty-body]

    def process_weights_after_loading(self, layer: Any) -> None:
        replace_parameter(layer, "w13_weight", layer.w13_weight.transpose(1, 2).contiguous())
        layer.w2_weight.data = layer.w2_weight.data.transpose(1, 2).contiguous()


class Turning(Transposing):
    """The same memory, read in another order: of square matrices, the shape does not tell."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.w13_weight.data = layer.w13_weight.data.transpose(1, 2)


def block_layout(_: Any, w13: torch.Tensor, w2: torch.Tensor, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for FlashInfer's: reorders both in place."""
    for w in (w13, w2):
        w.copy_(w.flip(1, 2))
    return w13, w2


class TestExpertsOnAGpu:
    """Captured graphs read experts by address: every switch must end in the memory that loading left."""

    @pytest.fixture(autouse=True)
    def as_on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(materializer, "current_platform", SimpleNamespace(is_cpu=lambda: False))
        monkeypatch.setattr(unquantized, "convert_moe_weights_to_flashinfer_trtllm_block_layout", block_layout)

    def experts(self, method: str) -> RoutedExperts:
        config = SimpleNamespace(
            is_act_and_mul=True, has_bias=False, hidden_dim_unpadded=HIDDEN,
            intermediate_size_per_partition=PADDED, intermediate_size_per_partition_unpadded=INNER,
        )  # fmt: skip
        experts = RoutedExperts.__new__(RoutedExperts)
        nn.Module.__init__(experts)
        experts.moe_config = config
        shapes = {"w13_weight": (E, 2 * PADDED, HIDDEN), "w2_weight": (E, HIDDEN, PADDED)}
        if method == "turning":
            shapes["w13_weight"] = (E, 2 * PADDED, 2 * PADDED)
        for name, shape in shapes.items():
            setattr(experts, name, nn.Parameter(torch.empty(shape, dtype=torch.bfloat16), requires_grad=False))
        if method == "transposing":
            experts.quant_method = Transposing()
        elif method == "turning":
            experts.quant_method = Turning()
        else:
            experts.quant_method = Blackwell(UnquantizedMoeBackend[method], config)
        return experts

    def weights(self, experts: RoutedExperts) -> list[Weight]:
        """As two loads leave them: padding was not written."""
        made = []
        noise = torch.Generator().manual_seed(3)
        for name, live in experts.named_parameters():
            sources = [torch.randn(live.shape, generator=noise).bfloat16() for _ in range(2)]
            for source in sources:
                for region in padding_of(experts, name, live.shape):
                    source[region] = float("nan")
                zero_unwritten(source, padding_of(experts, name, live.shape))
            made.append(weight(experts, name, *sources))
        return made

    @pytest.mark.parametrize("method", ["FLASHINFER_CUTLASS", "FLASHINFER_TRTLLM", "transposing", "turning"])
    def test_every_switch_ends_in_the_memory_that_graphs_captured(self, method: str) -> None:
        experts = self.experts(method)
        model, weights = nn.Sequential(experts), self.weights(experts)
        config: Any = SimpleNamespace(
            word_embeddings_untied_by_checkpoint=False, dtype=torch.bfloat16, quantization=None
        )

        def fresh(alpha: float) -> dict[str, torch.Tensor]:
            """What a fresh engine would hold that loads theta(alpha)."""
            other = self.experts(method)
            for w in weights:
                getattr(other, w.attribute).data.copy_(plain_theta(w.aligned, w.sft, alpha))
            process_weights_after_loading(nn.Sequential(other), config, torch.device("cpu"))
            return {name: p.data for name, p in other.named_parameters()}

        for w in weights:
            w.tensor.data.copy_(w.aligned)
        process_weights_after_loading(model, config, torch.device("cpu"))
        for w in weights:
            _share_memory(w)
        captured = {name: p.data for name, p in experts.named_parameters()}  # as a graph: the memory and its order
        live = LiveWeights(model, config, weights, PieceReader(torch.device("cpu"), stage=False))
        fingerprints = set()
        for alpha in ("poison", 0.7, -0.4, "poison", 0.7):
            if isinstance(alpha, str):
                live.poison()
                assert all(memory.isnan().any() for memory in captured.values())
            else:
                fingerprints.add((alpha, live.switch(alpha)["fingerprint"]))
                for name, expected in fresh(alpha).items():
                    assert torch.equal(captured[name], expected), (method, alpha, name)
        assert len(fingerprints) == 2

    @pytest.mark.parametrize("method", ["FLASHINFER_CUTLASS", "FLASHINFER_TRTLLM"])
    def test_loading_leaves_one_copy_of_the_experts(self, method: str) -> None:
        experts = self.experts(method)
        weights = self.weights(experts)
        experts.quant_method.process_weights_after_loading(experts)
        for w in weights:
            _share_memory(w)
            assert w.tensor.data_ptr() == getattr(experts, w.attribute).data_ptr()


class TestPaddingOfExperts:
    """What no load wrote is refused (`loader._take`), but where vLLM 0.32 allocates more than a checkpoint holds."""

    def experts(self, *, gated: bool) -> RoutedExperts:
        experts = RoutedExperts.__new__(RoutedExperts)
        nn.Module.__init__(experts)
        experts.moe_config = SimpleNamespace(
            is_act_and_mul=gated, hidden_dim_unpadded=HIDDEN, intermediate_size_per_partition_unpadded=INNER
        )
        return experts

    @pytest.mark.parametrize("gated", [True, False])
    def test_it_is_zero_and_nothing_else_is(self, gated: bool) -> None:
        experts, wide, parts = self.experts(gated=gated), HIDDEN + 2, 2 if gated else 1
        shapes = {
            "w13_weight": (E, parts * PADDED, wide), "w2_weight": (E, wide, PADDED),
            "w13_bias": (E, parts * PADDED), "w2_bias": (E, wide),
        }  # fmt: skip
        held = {
            "w13_weight": parts * INNER * HIDDEN, "w2_weight": HIDDEN * INNER, "w13_bias": parts * INNER,
            "w2_bias": HIDDEN,
        }  # fmt: skip
        for name, shape in shapes.items():
            loaded = torch.full(shape, float("nan"))
            zero_unwritten(loaded, padding_of(experts, name, torch.Size(shape)))
            assert loaded.isnan().sum() == E * held[name]  # what a checkpoint must give is still missing
            assert (loaded[~loaded.isnan()] == 0).all()

    def test_what_a_loader_puts_there_stays(self) -> None:
        loaded = torch.ones(E, 2 * PADDED, HIDDEN)
        zero_unwritten(loaded, padding_of(self.experts(gated=True), "w13_weight", loaded.shape))
        assert (loaded == 1).all()

    def test_other_modules_have_none(self) -> None:
        assert padding_of(nn.Linear(4, 4), "w13_weight", torch.Size([E, 4, 4])) == []
