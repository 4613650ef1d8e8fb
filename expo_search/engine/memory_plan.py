"""What a search will hold in memory, by device, computed from headers before anything is loaded.

On a CPU everything shares one memory. On GPUs each holds its share of the live weights, the two sources (or the two
buffers through which they are streamed from pinned host memory), the KV cache, and what vLLM and CUDA need; the first
one also holds the reward model. All GPUs get the settings that suit the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import EngineSpec
from expo_search.dtypes import ITEMSIZE, TORCH_DTYPES, Dtypes, Float
from expo_search.engine.machine import Machine
from expo_search.errors import EngineError

Where = Literal["gpu", "host"]
_GIB = 1 << 30
_LIBRARIES_BYTES = int(1.5 * _GIB)  # of one process: torch, vllm and transformers themselves
_CONTEXT_BYTES = int(0.75 * _GIB)  # CUDA's context of one engine process, and NCCL's buffers
_ACTIVATIONS_SHARE = 0.1  # of a GPU, at most `_ACTIVATIONS_BYTES`: activations and CUDA graphs, which vLLM measures
_ACTIVATIONS_BYTES = 6 * _GIB
_REWARD_ACTIVATIONS = 0.1  # of the reward model
_SWITCH_BYTES = 1 << 29  # scratch of formula, fingerprint and source report, on pieces of that size
_LENGTHS = (32768, 16384, 8192, 4096, 2048, 1024)  # contexts, in tokens, that an impossible plan is tried with


@dataclass(frozen=True)
class Needs:
    """What is to be loaded, in bytes over all ranks; from headers.

    Attributes:
        live: the running weights, in what the engine multiplies in. packed: copies that a CPU engine makes of the
            vocabulary's matrices.
        sources: aligned and sft, in float32 where a file's dtype is not the weights'.
        reward_model: as it is run. kv_per_token: keys and values of one token.
        kv_heads: over how many ranks those can be spread.
        arithmetic: what the engine multiplies in.
        largest: the largest tensor. largest_experts: one layer's experts, which vLLM may lay out anew at each switch.
    """

    live: int
    packed: int
    sources: int
    reward_model: int
    kv_per_token: int
    kv_heads: int = 1
    arithmetic: Float = "bfloat16"
    largest: int = 0
    largest_experts: int = 0

    @classmethod
    def of(cls, aligned: Checkpoint, sft: Checkpoint, reward: Checkpoint | None, dtypes: Dtypes) -> Needs:
        """From the headers and configs of the checkpoints; without a `reward` there is no reward model to load."""
        itemsize = ITEMSIZE[dtypes.engine]
        config = aligned.config.get("text_config") or aligned.config
        kv_per_token, kv_heads = _key_values(config)
        vocabulary = config.get("vocab_size", 0)
        rows = [t for t in aligned.tensors.values() if vocabulary and t.shape[:1] == (vocabulary,)]
        return cls(
            live=_n_elements(aligned) * itemsize,
            packed=sum(t.n_elements for t in rows) * itemsize,
            sources=sum(_source_bytes(c, dtypes.weights) for c in (aligned, sft)),
            reward_model=0
            if reward is None
            else int(_n_elements(reward) * ITEMSIZE[dtypes.reward] * (1 + _REWARD_ACTIVATIONS)),
            kv_per_token=kv_per_token * itemsize,
            kv_heads=kv_heads,
            arithmetic=dtypes.engine,
            largest=max((t.n_elements for t in aligned.tensors.values()), default=0) * itemsize,
            largest_experts=_largest_experts(aligned) * itemsize,
        )


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose on the fullest device, and on the host beside a GPU.

    Attributes:
        sources: where aligned and sft, which every switch reads, are kept.
        arithmetic: what the engine multiplies in, and holds weights, keys and values in.
        gpu_memory_utilization: the share of a GPU that vLLM is told it may take; None on a CPU.
    """

    device: Mapping[str, int]
    host: Mapping[str, int]
    sources: Where
    gpu_memory_utilization: float | None
    arithmetic: Float = "bfloat16"

    def sentence(self) -> str:
        """The plan as it is printed."""
        if self.gpu_memory_utilization is None:
            return f"memory plan: {_sum(self.device)}; computed in {self.arithmetic}"
        return (
            f"memory plan: a GPU {_sum(self.device)}; host {_sum(self.host)}; "
            f"vLLM may take {self.gpu_memory_utilization:.0%} of a GPU; computed in {self.arithmetic}"
        )

    def fits(self, machine: Machine) -> bool:
        """Whether the plan takes no more than what is free on the GPU and the host (on a CPU: on the host)."""
        host, device = sum(self.host.values()), sum(self.device.values())
        if not machine.has_gpu:
            return device <= machine.host_free
        return device <= machine.gpu_free and host <= machine.host_free


def plan_memory(needs: Needs, engine: EngineSpec, machine: Machine) -> MemoryPlan:
    """The plan that `engine` asks for; `sources = "auto"` takes the GPU where both fit there.

    Raises:
        EngineError: nothing that was asked for fits; says what would. Or a GPU was asked for where there is none.
    """
    if engine.sources == "gpu" and not machine.has_gpu:
        raise EngineError(
            where="--sources gpu",
            found="no GPU",
            expected="host or auto: a CPU engine has one memory",
            do="leave the option out",
        )
    plans = [_plan(needs, engine, machine, where) for where in _places(engine, machine)]
    for plan in plans:
        if plan.fits(machine):
            return plan
    plan = plans[-1]
    short_of_host = machine.has_gpu and sum(plan.device.values()) <= machine.gpu_free
    free = machine.gpu_free if machine.has_gpu and not short_of_host else machine.host_free
    raise EngineError(
        where="host memory" if short_of_host else "GPU memory" if machine.has_gpu else "memory",
        found=f"{free / _GIB:.1f} GiB free",
        expected=plan.sentence(),
        do=_what_fits(needs, engine, machine),
    )


def _plan(needs: Needs, engine: EngineSpec, machine: Machine, where: Where) -> MemoryPlan:
    """The plan of one place for the sources.

    On a GPU vLLM 0.32 (`Worker.determine_available_memory`) gives to the KV cache

        utilization * total - (free before loading - free after a trial run) - peak of the trial run above that

    so whatever our loader allocates, the sources too, counts as consumed within `utilization * total`. Outside of that
    stay what is taken before vLLM looks (`total - free`, and the context of the engine's process) and what comes after:
    the reward model, and the scratch of a switch. Hence

        utilization = (free - context - reward model - scratch) / total

    and the rest of `utilization * total` must hold the weights, the sources, activations, and keys and values for one
    sequence of `max_model_len`, without which vLLM does not start; what is left beyond that is more KV cache.
    """
    ranks = engine.tensor_parallel
    if not machine.has_gpu:
        everything = {
            "weights": needs.live + needs.packed,
            "sources": needs.sources,
            "KV cache": ranks * engine.kv_cache_gib * _GIB,
            "reward model": needs.reward_model,
            # a switch writes a matrix in load layout and packs it anew, before the old one goes
            "other": (1 + (ranks if ranks > 1 or engine.own_process else 0)) * _LIBRARIES_BYTES + 2 * needs.largest,
        }
        return MemoryPlan(everything, {}, "host", None, needs.arithmetic)
    from expo_search.engine.worker.source_pieces import STAGING_BYTES

    on_gpu = where == "gpu"
    scratch = _SWITCH_BYTES + 2 * needs.largest_experts // ranks + (0 if on_gpu else STAGING_BYTES)
    device = {
        "weights": needs.live // ranks,
        "sources": needs.sources // ranks if on_gpu else 0,
        "KV cache": needs.kv_per_token * engine.max_model_len // min(ranks, needs.kv_heads),
        "reward model": needs.reward_model,
        "other": scratch + _CONTEXT_BYTES + min(int(machine.gpu_total * _ACTIVATIONS_SHARE), _ACTIVATIONS_BYTES),
    }
    host = {"sources": 0 if on_gpu else needs.sources, "other": (1 + ranks) * _LIBRARIES_BYTES}
    outside = _CONTEXT_BYTES + needs.reward_model + scratch
    utilization = max(0.0, (machine.gpu_free - outside) / machine.gpu_total)
    return MemoryPlan(device, host, where, int(utilization * 1000) / 1000, needs.arithmetic)


def _places(engine: EngineSpec, machine: Machine) -> tuple[Where, ...]:
    if not machine.has_gpu:
        return ("host",)
    return ("gpu", "host") if engine.sources == "auto" else (engine.sources,)


def _what_fits(needs: Needs, engine: EngineSpec, machine: Machine) -> str:
    """Changes, one at a time, with which the plan would fit."""

    def fits(**changes: Any) -> bool:
        changed = engine.model_copy(update=changes)
        return any(_plan(needs, changed, machine, w).fits(machine) for w in _places(changed, machine))

    options = []
    if machine.has_gpu:
        if engine.sources == "gpu" and fits(sources="host"):
            options.append("--sources host")
        shorter = next((n for n in _LENGTHS if n < engine.max_model_len and fits(max_model_len=n)), None)
        if shorter:
            options.append(f"--max-model-len {shorter}")
        ranks = next((n for n in (2, 4, 8) if n > engine.tensor_parallel and fits(tensor_parallel=n)), None)
        if ranks:
            options.append(f"--tensor-parallel {ranks}, with as many such GPUs")
    elif fits(kv_cache_gib=1) and engine.kv_cache_gib > 1:
        most = next(n for n in range(engine.kv_cache_gib - 1, 0, -1) if fits(kv_cache_gib=n))
        options.append(f"kv_cache_gib = {most} in [engine]")
    smaller = replace(needs, reward_model=0)
    if not options and any(_plan(smaller, engine, machine, w).fits(machine) for w in _places(engine, machine)):
        options.append("a smaller reward model")
    return f"{' or '.join(options)} would fit" if options else "free memory, or take a smaller pair"


def _sum(parts: Mapping[str, int]) -> str:
    shown = " + ".join(f"{name} {size / _GIB:.1f}" for name, size in parts.items() if size)
    return f"{shown} = {sum(parts.values()) / _GIB:.1f} GiB"


def _n_elements(checkpoint: Checkpoint) -> int:
    return sum(t.n_elements for t in checkpoint.tensors.values())


def _source_bytes(checkpoint: Checkpoint, weights: Float) -> int:
    """As `worker/loader.py` keeps it: float32 throughout if any tensor's dtype is not the weights'."""
    stored = {TORCH_DTYPES.get(t.dtype) for t in checkpoint.tensors.values()} & set(ITEMSIZE)
    return _n_elements(checkpoint) * ITEMSIZE[weights if stored <= {weights} else "float32"]


def _key_values(config: Mapping[str, Any]) -> tuple[int, int]:
    """Elements of one token's keys and values in all layers, and their heads; MLA keeps one short vector instead."""
    layers = int(config.get("num_hidden_layers") or 0)
    if rank := config.get("kv_lora_rank"):
        return layers * (int(rank) + int(config.get("qk_rope_head_dim") or 0)), 1
    heads = int(config.get("num_attention_heads") or 1)
    width = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return layers * 2 * kv_heads * width, kv_heads


def _largest_experts(checkpoint: Checkpoint) -> int:
    """Elements of the largest layer's experts."""
    layers: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        if ".experts." in name:
            layer = name.split(".experts.")[0]
            layers[layer] = layers.get(layer, 0) + tensor.n_elements
    return max(layers.values(), default=0)


def process_bytes(machine: Machine) -> int:
    """What one more engine process takes where the weights are, beside its tensors."""
    return _CONTEXT_BYTES if machine.has_gpu else _LIBRARIES_BYTES
