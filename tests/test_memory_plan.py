"""The memory plan: bytes by device from headers alone, where the sources go, and a refusal that says what would fit."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expo_search.checkpoint.folder import Checkpoint
from expo_search.checkpoint.header import TensorInfo
from expo_search.config.spec import EngineSpec, RewardSpec
from expo_search.dtypes import Dtypes
from expo_search.engine.machine import Machine, _cgroup_limits, measure_machine
from expo_search.engine.memory_plan import MemoryPlan, plan_memory
from expo_search.engine.needs import Needs
from expo_search.engine.reward_memory import activation_bytes
from expo_search.engine.trial_time import Workload
from expo_search.errors import CheckpointError, EngineError

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
    dtypes = Dtypes("bfloat16", "bfloat16", "float32")
    needs = Needs.of(aligned, sft, checkpoint({}, score=("F32", (1, 50))), dtypes)
    n = 1000 * 64 + 64 * 32
    assert (needs.live, needs.packed, needs.sources) == (2 * n, 2 * 64_000, 2 * n + 4 * n)
    assert needs.reward_model == 200
    assert (needs.kv_per_token, needs.kv_heads) == (3 * 2 * 2 * 8 * 2, 2)  # layers, k and v, heads, width, bytes
    assert (needs.largest, needs.largest_experts) == (2 * 64_000, 0)
    wide = Needs.of(aligned, sft, checkpoint({}), Dtypes("float32", "float32", "bfloat16"))
    assert (wide.live, wide.sources) == (4 * n, 4 * n + 4 * n)
    widened = Needs.of(aligned, sft, checkpoint({}), Dtypes("bfloat16", "float32", "float32"))
    assert (widened.live, widened.packed, widened.sources) == (4 * n, 4 * 64_000, 2 * n + 4 * n)
    assert widened.kv_per_token == 2 * needs.kv_per_token


def test_a_reward_models_activations_grow_with_its_batches_and_not_with_its_weights() -> None:
    pair, dtypes = checkpoint({"num_hidden_layers": 1}), Dtypes("bfloat16", "bfloat16", "bfloat16")
    config = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 10}

    def activations(rating: RewardSpec, n_rows: int = 10) -> int:
        rated = checkpoint(config, embed=("BF16", (n_rows, 64)))
        return Needs.of(pair, pair, rated, dtypes, rating).reward_activations

    standard = activations(RewardSpec())
    assert standard > 16384 * (4 * 64 + 3 * 256) * 2
    assert activations(RewardSpec(batch_tokens=8192)) == standard // 2
    assert activations(RewardSpec(), n_rows=1_000_000) == standard
    assert Needs.of(pair, pair, None, dtypes).reward_activations == 0


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


@pytest.mark.parametrize(
    ("config", "layers", "kv_heads", "width"),
    [
        ({"n_layer": 12, "n_head": 12, "n_embd": 768}, 12, 12, 64),  # GPT-2, GPT-J
        ({"n_layer": 30, "n_head": 32, "hidden_size": 4096}, 30, 32, 128),  # BLOOM
        ({"n_layers": 32, "n_heads": 32, "d_model": 4096, "attn_config": {"alibi": True}}, 32, 32, 128),  # MPT
        ({"n_layers": 40, "n_heads": 48, "d_model": 6144, "attn_config": {"kv_n_heads": 8}}, 40, 8, 128),  # DBRX
        (
            {"num_layers": 28, "num_attention_heads": 32, "hidden_size": 4096, "multi_query_group_num": 2}
            | {"kv_channels": 128},
            28, 2, 128,
        ),  # ChatGLM
        (
            {"num_hidden_layers": 32, "num_attention_heads": 71, "hidden_size": 4544, "multi_query": True},
            32, 1, 64,
        ),  # Falcon 7B
        (
            {"num_hidden_layers": 60, "num_attention_heads": 128, "hidden_size": 8192, "num_kv_heads": 8}
            | {"multi_query": True, "new_decoder_architecture": True},
            60, 8, 64,
        ),  # Falcon 40B
        ({"text_config": "x", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 2, 4, 16),
    ],
)  # fmt: skip
def test_keys_and_values_are_counted_whatever_an_architecture_calls_them(
    config: dict[str, Any], layers: int, kv_heads: int, width: int
) -> None:
    pair, dtypes = checkpoint(config), Dtypes("bfloat16", "bfloat16", "bfloat16")
    needs = Needs.of(pair, pair, None, dtypes)
    assert (needs.kv_per_token, needs.kv_heads) == (layers * 2 * kv_heads * width * 2, kv_heads)


def test_where_no_layers_are_named_a_gpus_plan_says_that_it_counts_no_keys_and_values() -> None:
    assert (
        "KV cache not counted, as config.json names no layers"
        in plan(gpu(80), replace(NEEDS, kv_per_token=0)).sentence()
    )
    assert "not counted" not in plan(gpu(80)).sentence()


def test_experts_of_granite_are_found() -> None:
    tensors = {
        f"layers__0__block_sparse_moe__{name}_linear__weight": ("BF16", shape)
        for name, shape in (("input", (4, 6, 5)), ("output", (4, 5, 3)))
    }
    pair, dtypes = checkpoint({}, **tensors), Dtypes("bfloat16", "bfloat16", "bfloat16")
    assert Needs.of(pair, pair, None, dtypes).largest_experts == 2 * 4 * (30 + 15)


def test_a_count_may_be_a_list_of_one_for_each_layer_and_is_nothing_else_but_a_number() -> None:
    config: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4}

    def bytes_of(**more: Any) -> int:
        return activation_bytes(config | more, 2, batch_tokens=1024, longest=128)

    assert bytes_of(intermediate_size=[128, 256]) == bytes_of(intermediate_size=256)  # as Gemma 3n has it
    for value in ("256", {"a": 1}, 2.5, True, ["256"]):
        with pytest.raises(CheckpointError, match=f"intermediate_size {re.escape(repr(value))}; expected a whole"):
            bytes_of(intermediate_size=value)


def test_on_a_cpu_everything_shares_one_memory_and_each_rank_has_a_cache() -> None:
    one, two = plan(Machine(100 * GIB), kv_cache_gib=4), plan(Machine(100 * GIB), kv_cache_gib=4, tensor_parallel=2)
    assert one.device["weights"] == 15 * GIB  # with the packed copies of the vocabulary's matrices
    assert (one.device["sources"], one.device["reward model"]) == (28 * GIB, 15 * GIB)
    assert (one.device["KV cache"], two.device["KV cache"]) == (4 * GIB, 8 * GIB)
    assert two.device["other"] > one.device["other"] > 2 * NEEDS.largest
    assert (one.sources, one.gpu_memory_utilization, one.host) == ("host", None, {})


def test_a_start_on_a_cpu_holds_what_is_packed_twice_before_a_reward_model_is_loaded() -> None:
    none, small, large = (plan(Machine(100 * GIB), replace(NEEDS, reward_model=n * GIB)) for n in (0, 5, 13))
    assert none.device["start"] == (14 - 1) * GIB  # all but the vocabulary's matrices, of which copies are packed
    assert small.device["start"] == (14 - 1 - 5) * GIB
    assert large.device["start"] == 0, "in the reward model's place"


def test_sources_that_do_not_fit_on_the_gpu_go_to_the_host_and_those_asked_for_stay() -> None:
    large, small = plan(gpu(80), sources="gpu"), plan(gpu(48))
    assert (large.sources, small.sources) == ("gpu", "host")
    assert (large.device["sources"], large.host["sources"]) == (28 * GIB, 0)
    assert (small.device["sources"], small.host["sources"]) == (0, 28 * GIB)
    assert small.device["other"] > large.device["other"] * 48 // 80  # with the two buffers for streaming
    assert "sources in host memory, as there is no room on the GPU; " in small.sentence()
    assert (plan(gpu(80), sources="host").sources, large.why) == ("host", "")
    assert plan(gpu(80, host=16)).sources == "gpu", "the host has no room"


def shaped(live: float, kv_per_token: int, kv_heads: int) -> Needs:
    """A pair in bfloat16 beside a 7B reward model; GiB, and KiB of keys and values a token."""
    return Needs(
        live=int(live * GIB), packed=0, sources=int(2 * live * GIB), reward_model=14 * GIB,
        kv_per_token=kv_per_token << 10, kv_heads=kv_heads, largest=GIB // 2, reward_activations=2 * GIB,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "needs", "ranks", "sources"),
    [
        ("Mistral 7B", shaped(14, 128, 8), 1, "host"),  # half the sequences at once, for a second a switch
        ("Llama 2 7B", shaped(13, 512, 32), 1, "host"),
        ("Llama 3.2 1B", shaped(2.5, 32, 8), 1, "gpu"),  # all sequences fit beside them
        ("Llama 2 13B", shaped(25, 800, 40), 1, "host"),  # no room on the GPU
        ("Llama 3 70B", shaped(140, 320, 8), 8, "host"),
    ],
)
def test_auto_puts_the_sources_where_a_trial_is_over_sooner(name: str, needs: Needs, ranks: int, sources: str) -> None:
    chosen = plan(gpu(80, host=512), needs, tensor_parallel=ranks)
    assert chosen.sources == sources, name
    for where in ("gpu", "host"):
        try:
            assert chosen.trial_s <= plan(gpu(80, host=512), needs, tensor_parallel=ranks, sources=where).trial_s
        except EngineError:
            assert (name, where) == ("Llama 2 13B", "gpu")
    assert f"sources {'on the GPU' if sources == 'gpu' else 'in host memory'}, " in chosen.sentence()


def test_a_trial_of_few_prompts_does_not_pay_for_streaming() -> None:
    needs = shaped(14, 128, 8)
    few = plan_memory(needs, EngineSpec(), gpu(80), Workload(n_prompts=16))
    many = plan_memory(needs, EngineSpec(), gpu(80), Workload(n_prompts=1000))
    assert (few.sources, many.sources) == ("gpu", "host")
    assert many.why.startswith("sources in host memory, for a trial in about ")


def test_as_many_sequences_run_at_once_as_the_cache_has_room_for_or_as_was_asked_for() -> None:
    needs, work = shaped(14, 128, 8), Workload(prompt_tokens=100, max_tokens=2048)
    roomy = plan_memory(needs, EngineSpec(), gpu(141), work)
    tight = plan_memory(needs, EngineSpec(sources="gpu"), gpu(80), work)
    assert roomy.max_num_seqs == 512, "no more than vLLM captures graphs for"
    assert 8 <= tight.max_num_seqs < 256
    assert tight.max_num_seqs % 8 == 0
    assert tight.gpu_memory_utilization is not None
    left = tight.gpu_memory_utilization * 80 * GIB - 14 * GIB - 28 * GIB - 6 * GIB  # weights, sources, activations
    assert left - 9 * 612 * (128 << 10) <= tight.max_num_seqs * 612 * (128 << 10) <= left + 0.001 * 80 * GIB
    longer = plan_memory(needs, EngineSpec(sources="gpu"), gpu(80), Workload(prompt_tokens=1000))
    assert longer.max_num_seqs < tight.max_num_seqs
    assert "sequences at once" in tight.sentence()
    assert plan(gpu(80), max_num_seqs=1000).max_num_seqs == 1000
    assert plan(Machine(100 * GIB)).max_num_seqs == 256, "a CPU's batches stay, and so the last bits of its answers"
    assert plan(Machine(100 * GIB), max_num_seqs=128).max_num_seqs == 128


def test_a_loaded_reward_model_is_counted_once_when_the_engine_is_planned_anew() -> None:
    needs = shaped(14, 128, 8)
    before = plan(gpu(80, free=79), needs, sources="host")
    held = needs.reward_model
    after = plan(replace(gpu(80, free=79 - 14), gpu_held=held), needs, sources="host")
    assert before.gpu_memory_utilization is not None
    assert after.gpu_memory_utilization == before.gpu_memory_utilization
    assert after.device["reward model"] == needs.reward_activations
    # it holds 4 GiB more than planned: the engine gets those less, and still leaves room for the activations
    more = plan(replace(gpu(80, free=79 - 18), gpu_held=held + 4 * GIB), needs, sources="host")
    assert more.gpu_memory_utilization == pytest.approx(before.gpu_memory_utilization - 4 / 80, abs=0.001)
    assert more.gpu_memory_utilization is not None
    # vLLM refuses to start with more than is free (`request_memory`)
    assert more.gpu_memory_utilization * 80 <= 79 - 18
    with pytest.raises(EngineError, match="GPU memory"):
        plan(replace(gpu(80, free=20), gpu_held=held + 45 * GIB), needs, sources="host")


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


def test_engines_that_share_a_host_share_the_sources_in_its_memory() -> None:
    others = 14 + 1 + 2 + 15 + 1.5 + 1  # weights and packed, KV cache, reward model, libraries, twice the largest
    one = plan(Machine(200 * GIB))
    assert one.host_bytes == (others + 28) * GIB
    assert "engines on a host" not in one.sentence()
    four = plan(Machine(int((4 * others + 28) * GIB), n_engines=4))
    assert four.device == one.device
    assert four.host_bytes == (4 * others + 28) * GIB
    assert "; 4 engines on a host, which share the sources: 166.0 GiB of it in all; " in four.sentence()
    with pytest.raises(EngineError, match="4 engines on a host, which share the sources"):
        plan(Machine(int((4 * others + 27) * GIB), n_engines=4))
    joining = plan(Machine(int(others * GIB), host_held=28 * GIB))
    assert joining.host_bytes == others * GIB


def test_engines_with_gpus_of_their_own_share_the_sources_on_the_host_and_nothing_else() -> None:
    machine = replace(gpu(80), n_engines=8)
    shared = plan(machine, sources="host")
    assert shared.host_bytes == 28 * GIB + 8 * 3 * GIB
    assert shared.device == plan(gpu(80), sources="host").device
    assert plan(machine, sources="gpu").host_bytes == 8 * 3 * GIB
    assert "8 engines on a host: 24.0 GiB" in plan(machine, sources="gpu").sentence()
    held = plan(replace(machine, host_held=28 * GIB), sources="host")
    assert held.host["sources"] == 0
    assert plan(replace(machine, host_held=28 * GIB), sources="gpu").device["sources"] == 28 * GIB


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
        (Machine(60 * GIB), {"kv_cache_gib": 1}, "memory", "a smaller reward model would fit"),
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


def test_smaller_batches_of_the_reward_model_are_named_where_they_would_fit() -> None:
    needs = replace(NEEDS, reward_activations=8 * GIB)
    with pytest.raises(EngineError) as fault:
        plan(Machine(64 * GIB), needs, kv_cache_gib=1)
    assert fault.value.do == "a search with 1/4 of batch_tokens in [reward] would fit"


def test_sources_on_a_gpu_that_is_not_there_are_refused() -> None:
    with pytest.raises(EngineError, match="--sources gpu: no GPU; expected host or auto"):
        plan(Machine(100 * GIB), sources="gpu")
    assert plan(Machine(100 * GIB), sources="host").sources == plan(Machine(100 * GIB)).sources == "host"


def test_free_memory_is_a_part_of_what_the_machine_has() -> None:
    machine = measure_machine()
    assert machine.host_free > 0
    assert 0 <= machine.gpu_free <= machine.gpu_total


GROUPS: dict[str, tuple[str, dict[str, dict[str, Any]], list[tuple[int, int]]]] = {
    "nested": (  # a systemd unit's, in a slice with less
        "0::/user.slice/run.scope\n",
        {
            "user.slice/run.scope": {"memory.max": 8, "memory.current": 2, "memory.stat": "file 1\nshmem 0\n"},
            "user.slice": {"memory.max": 7, "memory.current": 3, "memory.stat": "file 2\nshmem 1\n"},
            "": {"memory.stat": ""},
        },
        [(8, 1), (7, 2)],
    ),
    "container": (  # which sees its own group as the root
        "0::/docker/abc\n",
        {"": {"memory.max": 5, "memory.current": 1, "memory.stat": "anon 1\n"}},
        [(5, 1)],
    ),
    "unlimited": ("0::/\n", {"": {"memory.max": "max", "memory.current": 1, "memory.stat": ""}}, []),
    "v1": (
        "5:cpu,cpuacct:/slurm\n4:memory:/slurm/job_1\n",
        {
            "memory/slurm/job_1": {
                "memory.limit_in_bytes": 6,
                "memory.usage_in_bytes": 4,
                "memory.stat": "cache 9\ntotal_cache 3\ntotal_shmem 1\n",
            },
            "slurm": {"memory.max": 1, "memory.current": 0, "memory.stat": ""},
        },
        [(6, 2)],
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_limits_of_all_control_groups_around_this_process_are_read(kind: str, tmp_path: Path) -> None:
    own, groups, expected = GROUPS[kind]
    (tmp_path / "own").write_text(own)
    for name, files in groups.items():
        folder = tmp_path / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(str(content))
    assert list(_cgroup_limits(tmp_path / "cgroup", tmp_path / "own")) == expected
    assert list(_cgroup_limits(tmp_path / "cgroup", tmp_path / "none")) == []


class Cuda:
    """`torch.cuda` of a GPU whose allocator keeps 3 GiB that nothing uses, beside 14 GiB of tensors."""

    def __init__(self, **device: int) -> None:
        self.unused, self._device = 3 * GIB, SimpleNamespace(**device)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def empty_cache(self) -> None:
        self.unused = 0

    def mem_get_info(self) -> tuple[int, int]:
        return 79 * GIB - 14 * GIB - self.unused, 80 * GIB

    def memory_reserved(self) -> int:
        return 14 * GIB + self.unused

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, _: int) -> SimpleNamespace:
        return self._device


def test_a_gpu_is_measured_with_its_bandwidth_what_we_hold_and_after_unused_memory_was_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "cuda", Cuda(memory_clock_rate=2_619_000, memory_bus_width=5120))  # an H100's
    machine = measure_machine()
    assert (machine.gpu_free, machine.gpu_total, machine.gpu_held) == (65 * GIB, 80 * GIB, 14 * GIB)
    assert machine.gpu_bandwidth == pytest.approx(3.35e12, rel=0.01)
    monkeypatch.setattr(torch, "cuda", Cuda())
    assert measure_machine().gpu_bandwidth == 0, "a torch that does not say"
