"""The memory plan: bytes by device from headers alone, where the sources go, and a refusal that says what would fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expo_search.checkpoint.folder import Checkpoint
from expo_search.checkpoint.header import TensorInfo
from expo_search.config.spec import EngineSpec
from expo_search.dtypes import Dtypes
from expo_search.engine.machine import Machine, measure_machine
from expo_search.engine.memory_plan import MemoryPlan, Needs, plan_memory
from expo_search.errors import EngineError

GIB = 2**30
# a 7B-shaped pair in bfloat16, a 7B reward model, 128 KiB of keys and values a token in 8 heads
NEEDS = Needs(
    live=14 * GIB, packed=GIB, sources=28 * GIB, reward_model=15 * GIB, kv_per_token=128 << 10, kv_heads=8,
    largest=GIB // 2,
)  # fmt: skip


def gpu(total: int, free: int | None = None, host: int = 256) -> Machine:
    return Machine(host * GIB, (total - 1 if free is None else free) * GIB, total * GIB)


def plan(machine: Machine, needs: Needs = NEEDS, **engine: Any) -> MemoryPlan:
    return plan_memory(needs, EngineSpec(**engine), machine)


def checkpoint(config: dict[str, Any], **tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    infos = [TensorInfo(name.replace("__", "."), *info, 0, Path("x")) for name, info in tensors.items()]
    return Checkpoint(Path("x"), config, {info.name: info for info in infos})


def test_needs_are_counted_in_the_engines_dtype_and_sources_stay_wide_where_a_file_is() -> None:
    config = {
        "vocab_size": 1000, "num_hidden_layers": 3, "hidden_size": 64,
        "num_attention_heads": 8, "num_key_value_heads": 2,
    }  # fmt: skip
    aligned = checkpoint(config, embed=("BF16", (1000, 64)), layer=("BF16", (64, 32)))
    sft = checkpoint(config, embed=("F32", (1000, 64)), layer=("F32", (64, 32)))
    needs = Needs.of(aligned, sft, checkpoint({}, score=("F32", (1, 50))), Dtypes("bfloat16", "bfloat16", "float32"))
    n = 1000 * 64 + 64 * 32
    assert (needs.live, needs.packed, needs.sources) == (2 * n, 2 * 64_000, 2 * n + 4 * n)
    assert needs.reward_model == 220  # a tenth more than the weights, for its activations
    assert (needs.kv_per_token, needs.kv_heads) == (3 * 2 * 2 * 8 * 2, 2)  # layers, k and v, heads, width, bytes
    assert (needs.largest, needs.largest_experts) == (2 * 64_000, 0)
    wide = Needs.of(aligned, sft, checkpoint({}), Dtypes("float32", "float32", "bfloat16"))
    assert (wide.live, wide.sources) == (4 * n, 4 * n + 4 * n)
    widened = Needs.of(aligned, sft, checkpoint({}), Dtypes("bfloat16", "float32", "float32"))
    assert (widened.live, widened.packed, widened.sources) == (4 * n, 4 * 64_000, 2 * n + 4 * n)
    assert widened.kv_per_token == 2 * needs.kv_per_token


def test_experts_of_the_largest_layer_and_the_compressed_cache_of_mla_are_found() -> None:
    config = {"num_hidden_layers": 2, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 16}
    experts = {
        f"layers__{layer}__mlp__experts__{e}__up": ("BF16", (10 * (layer + 1), 7)) for layer in (0, 1) for e in (0, 1)
    }
    needs = Needs.of(
        checkpoint(config, **experts),
        checkpoint(config, **experts),
        checkpoint({}),
        Dtypes("bfloat16", "bfloat16", "bfloat16"),
    )
    assert needs.largest_experts == 2 * 20 * 7 * 2
    assert (needs.kv_per_token, needs.kv_heads) == (2 * (512 + 64) * 2, 1)


def test_on_a_cpu_everything_shares_one_memory_and_each_rank_has_a_cache() -> None:
    one, two = plan(Machine(100 * GIB), kv_cache_gib=4), plan(Machine(100 * GIB), kv_cache_gib=4, tensor_parallel=2)
    assert one.device["weights"] == 15 * GIB  # with the packed copies of the vocabulary's matrices
    assert (one.device["sources"], one.device["reward model"]) == (28 * GIB, 15 * GIB)
    assert (one.device["KV cache"], two.device["KV cache"]) == (4 * GIB, 8 * GIB)
    assert two.device["other"] > one.device["other"] > 2 * NEEDS.largest
    assert (one.sources, one.gpu_memory_utilization, one.host) == ("host", None, {})


def test_auto_keeps_the_sources_on_the_gpu_where_they_fit_and_else_on_the_host() -> None:
    large, small = plan(gpu(80)), plan(gpu(48))
    assert (large.sources, small.sources) == ("gpu", "host")
    assert (large.device["sources"], large.host["sources"]) == (28 * GIB, 0)
    assert (small.device["sources"], small.host["sources"]) == (0, 28 * GIB)
    assert small.device["other"] > large.device["other"] * 48 // 80  # with the two buffers for streaming
    assert plan(gpu(80), sources="host").sources == "host"


def test_vllm_gets_all_that_the_reward_model_a_switch_and_other_programs_leave() -> None:
    for machine, sources in ((gpu(80), "gpu"), (gpu(80), "host"), (gpu(80, free=70), "gpu"), (gpu(48), "host")):
        found = plan(machine, sources=sources)
        assert found.gpu_memory_utilization is not None
        taken = found.gpu_memory_utilization * machine.gpu_total
        outside = machine.gpu_free - taken  # of what is free now
        assert NEEDS.reward_model + GIB <= outside <= NEEDS.reward_model + 2 * GIB
        needed = found.device["weights"] + found.device["sources"] + found.device["KV cache"]
        assert taken > needed + 4 * GIB  # activations and CUDA graphs
    assert found.sentence().startswith("memory plan: a GPU weights 14.0 + KV cache 0.5 + reward model 15.0 + other ")


def test_each_gpu_of_several_holds_its_share_and_the_host_the_whole_sources() -> None:
    found = plan(gpu(48), tensor_parallel=4, sources="host")
    assert found.device["weights"] == NEEDS.live // 4
    assert found.device["KV cache"] == (128 << 10) * 4096 // 4
    assert found.host["sources"] == NEEDS.sources
    assert plan(gpu(48), tensor_parallel=4, sources="gpu").device["sources"] == NEEDS.sources // 4


def test_caches_with_fewer_heads_than_ranks_are_not_spread_further() -> None:
    few = Needs(NEEDS.live, NEEDS.packed, NEEDS.sources, NEEDS.reward_model, NEEDS.kv_per_token, kv_heads=2)
    assert plan(gpu(80), few, tensor_parallel=8).device["KV cache"] == (128 << 10) * 4096 // 2


@pytest.mark.parametrize(
    ("machine", "engine", "where", "would_fit"),
    [
        (gpu(64), {"sources": "gpu"}, "GPU memory", "--sources host or --tensor-parallel 2, with as many such GPUs"),
        (gpu(40), {"max_model_len": 131072}, "GPU memory", "--max-model-len 32768 or --tensor-parallel 2"),
        (gpu(34), {}, "GPU memory", "--tensor-parallel 2, with as many such GPUs would fit"),
        (gpu(20), {}, "GPU memory", "a smaller reward model would fit"),
        (gpu(10), {}, "GPU memory", "free memory, or take a smaller pair"),
        (gpu(48, host=16), {}, "host memory", "--tensor-parallel 2"),
        (Machine(66 * GIB), {"kv_cache_gib": 16}, "memory", "kv_cache_gib = 5 in [engine] would fit"),
        (Machine(50 * GIB), {"kv_cache_gib": 1}, "memory", "a smaller reward model would fit"),
        (Machine(20 * GIB), {}, "memory", "free memory, or take a smaller pair"),
    ],
)  # fmt: skip
def test_an_impossible_plan_says_what_there_is_what_it_takes_and_what_would_fit(
    machine: Machine, engine: dict[str, Any], where: str, would_fit: str
) -> None:
    with pytest.raises(EngineError) as fault:
        plan(machine, **engine)
    assert fault.value.where == where
    assert "GiB free" in fault.value.found
    assert fault.value.expected.startswith("memory plan: ")
    assert would_fit in fault.value.do


def test_sources_on_a_gpu_that_is_not_there_are_refused() -> None:
    with pytest.raises(EngineError, match="--sources gpu: no GPU; expected host or auto"):
        plan(Machine(100 * GIB), sources="gpu")
    assert plan(Machine(100 * GIB), sources="host").sources == plan(Machine(100 * GIB)).sources == "host"


def test_free_memory_is_a_part_of_what_the_machine_has() -> None:
    machine = measure_machine()
    assert machine.host_free > 0
    assert 0 <= machine.gpu_free <= machine.gpu_total
