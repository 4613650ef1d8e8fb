"""Weights that a model's loader computes from a checkpoint's numbers are found, and refused before any trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from vllm.model_executor.model_loader.weight_utils import composed_weight_loader, default_weight_loader

from expo_search.checkpoint.computed_weights import _COMPUTED, check_computed
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.engine.worker.load_check import first_difference, is_computed, made_up, tensors_beside
from expo_search.engine.worker.loader import _refuse_computed
from expo_search.errors import MaterializeError
from expo_search.session.preflight import _check_sources


def loaded(fn: Callable[[torch.Tensor], torch.Tensor], *shape: int, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a weight of vLLM's `composed_weight_loader` with `fn` is found to be computed."""
    weight = nn.Parameter(torch.full(shape, float("nan"), dtype=dtype))
    for _, tensor in made_up([("w", torch.zeros(shape).bfloat16())]):
        composed_weight_loader(default_weight_loader, fn)(weight, tensor)
    return is_computed(weight.data)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: -torch.exp(x.float()), lambda x: x + 1, lambda x: x * 1.7, lambda x: -x, torch.abs, torch.relu,
        torch.sigmoid, nn.functional.softplus, lambda x: x.clamp(-1e3, 1e3), lambda x: x.clamp(max=0),
        lambda x: nn.functional.normalize(x, dim=0), lambda x: (x + x.roll(1, 0)) / 2, lambda x: x - x.mean(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_whatever_computes_is_found(fn: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> None:
    assert loaded(fn, 32, 6, dtype=dtype)


@pytest.mark.parametrize(
    "fn",
    [lambda x: x, lambda x: x.flip(0), lambda x: x[torch.randperm(32)], lambda x: x.reshape(6, 32).t().contiguous()],
)
def test_whatever_copies_is_not(fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert not loaded(fn, 32, 6)


def test_padding_and_elements_that_no_load_wrote_are_not() -> None:
    for rest in (0.0, float("nan")):
        weight = torch.full((40, 6), rest)
        for _, tensor in made_up([("w", torch.zeros(32, 6))]):
            weight[:32] = tensor
        assert not is_computed(weight)
    assert not is_computed(torch.empty(0))


def test_tensors_that_are_no_numbers_are_the_files_own() -> None:
    ids = torch.arange(5)
    assert next(iter(made_up([("ids", ids)])))[1] is ids


class Beside(nn.Module):
    """A constant, a view of a weight, and what its loader derives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4), requires_grad=False)
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.view = self.weight.data.view(2, 2)

    def load(self, number: float, *, derives: bool) -> dict[str, torch.Tensor]:
        self.weight.data.fill_(number)
        if derives:
            self.derived = self.weight.data / 2
        return tensors_beside(nn.Sequential(self), [self.weight.data])


def test_what_is_derived_beside_the_weights_while_loading_is_found_by_name() -> None:
    assert first_difference(*(Beside().load(number, derives=False) for number in (1.0, 2.0))) is None
    assert first_difference(*(Beside().load(number, derives=True) for number in (1.0, 2.0))) == "0.derived"
    assert first_difference(*(Beside().load(1.0, derives=True) for _ in range(2))) is None


def test_a_tensor_beside_the_weights_is_refused_by_name() -> None:
    with pytest.raises(MaterializeError, match=r"weight 0.derived of X: vLLM derives it from the weights only when"):
        _refuse_computed([], "X", "0.derived")


class TestKnownArchitectures:
    """Refused before an engine starts."""

    def pair(self, folder: Path, architecture: str, name: str, delta: float, **config: object) -> list[Checkpoint]:
        made = []
        for role, number in (("aligned", 1.0), ("sft", 1.0 + delta)):
            (folder / role).mkdir()
            save_file({name: torch.full((4,), number)}, folder / role / "model.safetensors")
            (folder / role / "config.json").write_text(json.dumps({"architectures": [architecture]} | config))
            made.append(open_checkpoint(folder / role, role=role))
        return made

    def test_a_weight_that_differs_is_named(self, tmp_path: Path) -> None:
        name = "backbone.layers.0.mixer.A_log"
        aligned, sft = self.pair(tmp_path, "Mamba2ForCausalLM", name, 0.5)
        with pytest.raises(MaterializeError) as fault:
            _check_sources(aligned, sft, print)
        assert str(fault.value) == (
            f"weight {name} of Mamba2ForCausalLM: aligned and sft differ in it, and vLLM multiplies with -exp of it; "
            "expected weights that are copied as they are, so that what is exported is what was evaluated; take a "
            "pair of another architecture, or one that has this weight in common"
        )

    @pytest.mark.parametrize(
        ("architecture", "name", "delta", "config"),
        [
            ("Mamba2ForCausalLM", "backbone.layers.0.mixer.A_log", 0.0, {}),
            ("Mamba2ForCausalLM", "backbone.layers.0.mixer.D", 0.5, {}),
            ("LlamaForCausalLM", "model.layers.0.A_log", 0.5, {}),
            ("BailingMoeForCausalLM", "lm_head.weight", 0.5, {"norm_head": False}),
        ],
    )
    def test_others_are_not(
        self, architecture: str, name: str, delta: float, config: dict[str, object], tmp_path: Path
    ) -> None:
        check_computed(*self.pair(tmp_path, architecture, name, delta, **config))

    def test_each_is_one_that_vllm_has(self) -> None:
        from vllm.model_executor.models.registry import ModelRegistry

        assert _COMPUTED.keys() <= ModelRegistry.get_supported_archs()
