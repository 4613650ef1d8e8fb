"""The memory plan: bytes by purpose from headers alone, and a refusal that says what would be needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from expo_search.checkpoint import Checkpoint
from expo_search.errors import EngineError
from expo_search.header import TensorInfo
from expo_search.memory import MemoryPlan, free_memory, plan_memory

GIB = 2**30


def checkpoint(n_bytes: int) -> Checkpoint:
    half = n_bytes // 2
    names = {"a": half, "b": n_bytes - half}
    return Checkpoint(Path("x"), {}, {n: TensorInfo(n, "U8", (size,), size, Path("x")) for n, size in names.items()})


def test_a_cpu_holds_the_live_weights_both_sources_the_cache_and_the_reward_model() -> None:
    plan = plan_memory(
        checkpoint(10 * GIB),
        checkpoint(12 * GIB),
        20 * GIB,
        kv_cache=4 * GIB,
        ranks=1,
        cuda=False,
        device_bytes=64 * GIB,
    )
    assert (plan.weights, plan.sources, plan.kv_cache) == (10 * GIB, 22 * GIB, 4 * GIB)
    assert plan.reward_model == 22 * GIB  # a tenth more, for its activations
    assert plan.other > GIB  # the libraries
    assert plan.total == 58 * GIB + plan.other


def test_a_gpu_of_several_holds_its_share_of_the_weights_and_leaves_a_tenth_for_activations() -> None:
    plan = plan_memory(
        checkpoint(100 * GIB),
        checkpoint(100 * GIB),
        10 * GIB,
        kv_cache=1 * GIB,
        ranks=4,
        cuda=True,
        device_bytes=80 * GIB,
    )
    assert (plan.weights, plan.sources, plan.other) == (25 * GIB, 50 * GIB, 8 * GIB)
    assert plan.reward_model == 11 * GIB


def test_a_plan_that_does_not_fit_says_how_much_there_is_and_how_much_it_takes() -> None:
    plan = MemoryPlan(weights=2 * GIB, sources=4 * GIB, reward_model=GIB, kv_cache=GIB, other=GIB // 2)
    plan.check(plan.total, "memory")
    with pytest.raises(EngineError) as fault:
        plan.check(plan.total - 1, "GPU memory")
    assert str(fault.value) == (
        "GPU memory: 8.5 GiB free; expected 8.5 GiB (memory plan: weights 2.0 + sources 4.0 + KV cache 1.0 + "
        "reward model 1.0 + other 0.5 = 8.5 GiB); "
        "free memory, take a smaller pair or reward model, or more GPUs (--tensor-parallel)"
    )


def test_free_memory_is_a_part_of_what_the_device_has() -> None:
    free, total, _ = free_memory()
    assert 0 < free <= total
