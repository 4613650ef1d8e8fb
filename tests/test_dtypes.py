"""What weights are rounded to, and what is multiplied in, by what was asked for and what a processor can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from twins import make_pair

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.config.spec import EngineSpec, PairSpec, RewardSpec, StudySpec
from expo_search.dtypes import Dtypes, arithmetic, has_instructions, reward_arithmetic, weights_dtype
from expo_search.engine import machine, start
from expo_search.errors import StudyError
from expo_search.session.settings import computing_as
from expo_search.store.settings import Settings

AVX2 = {"avx2": True, "avx512_bf16": False}
GENOA = {"avx2": True, "avx512_f": True, "avx512_bf16": True}
SAPPHIRE = GENOA | {"amx_bf16": True, "avx512_fp16": True}
GRAVITON = {"neon": True, "bf16": True, "fp16_arith": True}


@pytest.fixture(
    params=[AVX2, {"avx512_f": True}, GENOA, SAPPHIRE, GRAVITON], ids=["avx2", "avx512", "bf16", "amx", "arm"]
)
def capabilities(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param)
    found: dict[str, bool] = request.param
    return found


def test_float32_replaces_a_dtype_for_which_a_processor_has_no_instructions(capabilities: dict[str, bool]) -> None:
    bf16 = capabilities in (GENOA, SAPPHIRE, GRAVITON)
    assert has_instructions("bfloat16") == bf16
    assert arithmetic("auto", "bfloat16", native=bf16, where="x") == ("bfloat16" if bf16 else "float32")
    assert reward_arithmetic("auto", cuda=False) == ("bfloat16" if bf16 else "float32")
    fp16 = capabilities in (SAPPHIRE, GRAVITON)
    assert has_instructions("float16") == fp16
    assert arithmetic("auto", "float16", native=fp16, where="x") == ("float16" if fp16 else "float32")
    assert arithmetic("auto", "float32", native=has_instructions("float32"), where="x") == "float32"


@pytest.mark.parametrize("weights", ["bfloat16", "float16", "float32"])
def test_a_gpu_multiplies_in_the_weights_dtype_and_either_can_be_forced(
    weights: Any, capabilities: dict[str, bool]
) -> None:
    assert arithmetic("auto", weights, native=True, where="x") == weights
    assert arithmetic("float32", weights, native=True, where="x") == "float32"
    assert arithmetic(weights, weights, native=False, where="x") == weights
    assert reward_arithmetic("auto", cuda=True) == "bfloat16"
    assert reward_arithmetic("float32", cuda=True) == "float32"


@pytest.mark.parametrize(
    ("capability", "weights", "computed"),
    [((7, 5), "bfloat16", "float32"), ((7, 5), "float16", "float16"), ((9, 0), "bfloat16", "bfloat16")],
)
def test_a_gpu_that_has_no_bfloat16_gets_those_weights_widened(
    capability: tuple[int, int], weights: Any, computed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would else take float16 for them with no more than a warning, and another model would be evaluated."""
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    monkeypatch.setattr(machine, "compute_capability", lambda: capability)
    monkeypatch.setattr(start, "has_gpu", lambda: True)
    aligned, _ = make_pair(tmp_path, "llama-tied")
    found = start.dtypes_of(EngineSpec(dtype=weights), RewardSpec(), open_checkpoint(aligned, role="aligned"))
    assert (found.weights, found.engine) == (weights, computed)


def test_an_arithmetic_that_cannot_hold_the_weights_is_refused() -> None:
    with pytest.raises(StudyError, match="arithmetic float16: weights of x in bfloat16; expected bfloat16 or float32"):
        arithmetic("float16", "bfloat16", native=True, where="weights of x")


@pytest.mark.parametrize(
    ("asked", "config", "stored", "expected"),
    [
        ("auto", {"dtype": "bfloat16"}, {"BF16"}, "bfloat16"),
        ("auto", {"torch_dtype": "float16"}, {"F16"}, "float16"),
        ("auto", {"dtype": "float32"}, {"F32"}, "bfloat16"),
        ("auto", {"text_config": {"dtype": "float16"}}, {"F16"}, "float16"),
        ("auto", {}, {"F16"}, "float16"),
        ("auto", {}, {"F16", "F32"}, "bfloat16"),
        ("float32", {"dtype": "bfloat16"}, {"BF16"}, "float32"),
    ],
)
def test_weights_are_rounded_to_what_was_asked_for_or_is_the_checkpoints_own(
    asked: Any, config: dict[str, Any], stored: set[str], expected: str
) -> None:
    assert weights_dtype(asked, config, stored) == expected


def test_the_line_at_the_start_says_what_is_held_and_what_is_multiplied() -> None:
    assert Dtypes("bfloat16", "bfloat16", "bfloat16").sentence() == "weights in bfloat16; reward model in bfloat16"
    widened = Dtypes("bfloat16", "float32", "float32").sentence()
    assert widened == "weights in bfloat16, widened to float32 to multiply; reward model in float32"


def test_a_stored_study_computes_as_its_trials_did_unless_it_says_otherwise() -> None:
    pair = PairSpec(aligned="a", sft="s", reward_model="r")
    settings = Settings.from_flat({"engine.arithmetic": "float32", "reward.arithmetic": "bfloat16"})
    spec = StudySpec(name="x", pair=pair)
    again = computing_as(spec, settings)
    assert (again.engine.arithmetic, again.reward.arithmetic) == ("float32", "bfloat16")
    assert computing_as(spec, Settings()) == spec
    said = StudySpec(
        name="x", pair=pair, engine=EngineSpec(arithmetic="bfloat16"), reward=RewardSpec(arithmetic="float32")
    )
    assert computing_as(said, settings) == said
