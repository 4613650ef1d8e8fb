"""A switch on devices and with kernels that this machine need not have, by stand-ins: what is written, and where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from expo_search.engine.worker import materializer
from expo_search.engine.worker.loader import Weight
from expo_search.engine.worker.materializer import LiveWeights
from expo_search.engine.worker.source_pieces import PieceReader


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
        return LiveWeights(nn.Sequential(weight.module), None, [weight], reader)  # type: ignore[arg-type]

    def test_the_c_kernel_is_neither_compiled_nor_given_the_devices_pointer(
        self, plain: Weight, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def compiles() -> None:
            raise AssertionError("compiled for a device that C cannot write to")

        monkeypatch.setattr(materializer, "load_kernel", compiles)
        live = self.live(plain)
        pieces = PieceReader(plain.device, stage=True).read([plain])
        assert live._into(plain.tensor.data, plain, 0.7, pieces) is None  # the sum of what torch wrote comes later
        assert next(pieces, None) is None

    def test_the_pieces_of_every_such_weight_are_asked_for(
        self, plain: Weight, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which weights C writes is decided twice, for the reader and for the writer: both must agree."""
        asked: list[Any] = []
        monkeypatch.setattr(PieceReader, "read", lambda _, weights: asked.extend(weights) or iter([]))
        monkeypatch.setattr(LiveWeights, "_write", lambda *_, **__: "")
        monkeypatch.setattr(LiveWeights, "_derive_attention", lambda _: None)
        self.live(plain).switch(0.7)
        assert asked == [plain]
