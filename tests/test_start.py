"""What an engine is started with, by hardware; that looking at the hardware leaves CUDA usable for a forked process."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import pytest

from expo_search.config.presets import load_study
from expo_search.config.spec import EngineSpec
from expo_search.engine import start
from expo_search.engine.start import attention_settings, check_batch_invariant, engine_settings
from expo_search.errors import EngineError
from expo_search.session.preflight import check

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"

# torch with CUDA and one GPU that NVML counts; the runtime's own count is what spoils CUDA for forked processes (as the
# question does whether a GPU has bfloat16, which is asked where a memory plan is made as well, and engines are spawned)
LOOK = """
import sys, types
import torch
from pathlib import Path
touched = []
torch.cuda._is_compiled = lambda: True
torch.cuda._device_count_nvml = lambda: 1
torch._C._cuda_getDeviceCount = lambda: touched.append("count") or 1
torch.cuda._lazy_init = lambda: touched.append("init")
from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import EngineSpec, RewardSpec
from expo_search.engine.machine import has_gpu
from expo_search.engine.start import dtypes_of, start_engine
found = dtypes_of(EngineSpec(), RewardSpec(), Checkpoint(Path("x"), {"dtype": "float16"}, {}))
print(has_gpu(), found.engine, found.reward, touched)
"""


def settings(*, cuda: bool) -> dict[str, str]:
    return engine_settings(EngineSpec(), cuda=cuda, gpu_memory_utilization=None)[0]


def test_looking_for_a_gpu_does_not_initialise_cuda() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[-2] == "True float16 bfloat16 []"


def test_on_a_gpu_the_engines_processes_are_spawned_unless_the_user_chose_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(METHOD, raising=False)
    assert settings(cuda=True)[METHOD] == "spawn"
    assert METHOD not in settings(cuda=False)
    monkeypatch.setenv(METHOD, "fork")
    assert settings(cuda=True)[METHOD] == "fork"


def test_batch_invariance_is_vllms_own_switch_and_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    invariant = EngineSpec(batch_invariant=True)
    assert engine_settings(invariant, cuda=True, gpu_memory_utilization=None)[0]["VLLM_BATCH_INVARIANT"] == "1"
    assert "VLLM_BATCH_INVARIANT" not in settings(cuda=True)
    monkeypatch.setattr(start, "compute_capability", lambda: (8, 0))
    check_batch_invariant(invariant)
    monkeypatch.setattr(start, "compute_capability", lambda: pytest.fail("asked without need"))
    check_batch_invariant(EngineSpec())


@pytest.mark.parametrize(
    ("config", "dtype", "cuda", "chosen"),
    [
        ({"kv_lora_rank": 512}, "float32", False, {"attention_backend": "CPU_MLA"}),
        ({"kv_lora_rank": 512}, "float16", False, {"attention_backend": "CPU_MLA"}),
        ({"kv_lora_rank": 512}, "bfloat16", False, {}),
        ({"kv_lora_rank": 512}, "float32", True, {}),
        ({"num_attention_heads": 4}, "float32", False, {}),
    ],
)
def test_latent_attention_on_a_cpu_is_left_to_amx_in_bfloat16_alone(
    config: dict[str, Any], dtype: str, cuda: bool, chosen: dict[str, str]
) -> None:
    assert attention_settings(config, dtype, cuda=cuda) == chosen


@pytest.mark.parametrize(("capability", "found"), [(None, "no GPU"), ((7, 5), r"a GPU of compute capability 7\.5")])
def test_a_search_that_asks_for_it_in_vain_is_refused_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, found: str
) -> None:
    monkeypatch.setattr(start, "compute_capability", lambda: capability)
    tables: dict[str, dict[str, Any]] = {
        "pair": {"aligned": "nowhere", "sft": "nowhere", "reward_model": "nowhere"},
        "engine": {"batch_invariant": True},
    }
    with pytest.raises(EngineError, match=rf"^--batch-invariant: {found}; expected one of compute capability 8\.0"):
        check(load_study(overrides=tables, name="x"), "sqlite:///x.db", lambda _: None)


def test_what_the_imports_left_stays_frozen_while_an_engine_comes_and_goes() -> None:
    """vLLM's own freezing and thawing does nothing within, and works again after it."""
    gc.collect()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with start.imports_stay_frozen():
        gc.unfreeze()
        gc.freeze()
        assert 0 < frozen - 1000 < gc.get_freeze_count() <= frozen, "but for what other threads let go"
    gc.unfreeze()
    assert gc.get_freeze_count() == 0


def test_two_engines_that_end_at_once_leave_freezing_as_it_was() -> None:
    """One hangs at its end while the next one starts: whichever ends last."""
    blocks = [start.imports_stay_frozen(), start.imports_stay_frozen()]
    freeze, thaw = gc.freeze, gc.unfreeze
    for block in blocks:
        block.__enter__()
    for block in blocks:
        block.__exit__(None, None, None)
    assert (gc.freeze, gc.unfreeze) == (freeze, thaw)
