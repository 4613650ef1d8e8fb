"""What a search will hold in memory, by device, planned before anything is loaded.

On a CPU everything shares one memory. On GPUs each holds its share of the live weights, the two sources (or the two
buffers through which they are streamed from pinned host memory), the KV cache, and what vLLM and CUDA need; the first
one also holds the reward model. All GPUs get the settings that suit the first.

Engines that share a host share the sources in its memory (`worker/node_memory.py`), which count once for all of them.

An engine that is started anew is planned anew, beside a reward model that is loaded by then (`Machine.gpu_held`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from expo_search.config.spec import EngineSpec
from expo_search.dtypes import Float
from expo_search.engine.machine import Machine
from expo_search.engine.needs import Needs
from expo_search.engine.trial_time import BANDWIDTH, Placement, Workload
from expo_search.errors import EngineError

Where = Literal["gpu", "host"]
_GIB = 1 << 30
_LIBRARIES_BYTES = int(1.5 * _GIB)  # of one process: torch, vllm and transformers themselves
_CONTEXT_BYTES = int(0.75 * _GIB)  # CUDA's context of one engine process, and NCCL's buffers
_ACTIVATIONS_SHARE = 0.1  # of a GPU, at most `_ACTIVATIONS_BYTES`: activations and CUDA graphs, which vLLM measures
_ACTIVATIONS_BYTES = 6 * _GIB
_SWITCH_BYTES = 1 << 29  # scratch of formula, fingerprint and source report, on pieces of that size
_MOST_SEQS = 512  # at once: what vLLM captures CUDA graphs for; beyond it every step launches its kernels one by one
_SEQS_STEP = 8  # those graphs' distance
_CPU_SEQS = 256  # at once on a CPU, which gains nothing from more
_LENGTHS = (32768, 16384, 8192, 4096, 2048, 1024)  # contexts, in tokens, that an impossible plan is tried with


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose on the fullest device, and on the host beside a GPU.

    Attributes:
        sources: where aligned and sft, which every switch reads, are kept.
        arithmetic: what the engine multiplies in, and holds weights, keys and values in.
        gpu_memory_utilization: the share of a GPU that vLLM is told it may take; None on a CPU.
        max_num_seqs: sequences that are answered at once, at most.
        trial_s: expected seconds of a trial on a GPU; see `trial_time.py`.
        why: what `sources = "auto"` was decided by; empty where there was nothing to decide.
        n_engines: how many such engines share the host, with what is on it of the sources.
        n_reward_models: how many reward models are under that purpose.
    """

    device: Mapping[str, int]
    host: Mapping[str, int]
    sources: Where
    gpu_memory_utilization: float | None
    arithmetic: Float = "bfloat16"
    max_num_seqs: int = _CPU_SEQS
    trial_s: float = 0.0
    why: str = ""
    n_engines: int = 1
    n_reward_models: int = 1

    def sentence(self) -> str:
        """The plan as it is printed."""
        n, together = self.n_engines, ""
        if n > 1:
            sources = ", which share the sources" if self._on_host.get("sources") else ""
            together = f"{n} engines on a host{sources}: {self.host_bytes / _GIB:.1f} GiB of it in all; "
        if self.gpu_memory_utilization is None:
            return f"memory plan: {self._on_device()}; {together}computed in {self.arithmetic}"
        unknown = "" if self.device.get("KV cache") else "KV cache not counted, as config.json names no layers; "
        return (
            f"memory plan: a GPU {self._on_device()}; {unknown}host {_sum(self.host)}; {together}"
            f"vLLM may take {self.gpu_memory_utilization:.0%} of a GPU, {self.max_num_seqs} sequences at once; "
            f"{self.why and self.why + '; '}computed in {self.arithmetic}"
        )

    def fits(self, machine: Machine) -> bool:
        """Whether the plan takes no more than what is free on the GPU and the host (on a CPU: on the host)."""
        fits_gpu = not machine.has_gpu or sum(self.device.values()) <= machine.gpu_free
        return fits_gpu and self.host_bytes <= machine.host_free

    @property
    def host_bytes(self) -> int:
        """What all engines of a host take of its memory."""
        sources = self._on_host.get("sources", 0)
        return sources + self.n_engines * (sum(self._on_host.values()) - sources)

    def _on_device(self) -> str:
        n, named = self.n_reward_models, _sum(self.device)
        return named if n < 2 else named.replace("reward model", f"{n} reward models", 1)

    @property
    def _on_host(self) -> Mapping[str, int]:
        return self.device if self.gpu_memory_utilization is None else self.host


def n_at_once(engine: EngineSpec) -> int:
    """Sequences that are answered at once, at most; where no memory plan has set it, as many as on a CPU."""
    return _CPU_SEQS if engine.max_num_seqs == "auto" else engine.max_num_seqs


def plan_memory(needs: Needs, engine: EngineSpec, machine: Machine, work: Workload | None = None) -> MemoryPlan:
    """The plan that `engine` asks for; `sources = "auto"` takes the place where a trial of `work` is over sooner.

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
    plans = [_plan(needs, engine, machine, where, work) for where in _places(engine, machine)]
    fitting = sorted((plan for plan in plans if plan.fits(machine)), key=lambda plan: plan.trial_s)
    if fitting:
        return replace(fitting[0], why=_why(fitting, plans))
    plan = plans[-1]
    short_of_host = machine.has_gpu and sum(plan.device.values()) <= machine.gpu_free
    free = machine.gpu_free if machine.has_gpu and not short_of_host else machine.host_free
    raise EngineError(
        where="host memory" if short_of_host else "GPU memory" if machine.has_gpu else "memory",
        found=f"{free / _GIB:.1f} GiB free",
        expected=plan.sentence(),
        do=_what_fits(needs, engine, machine),
    )


def _why(fitting: Sequence[MemoryPlan], plans: Sequence[MemoryPlan]) -> str:
    """Why the sources are where the first of the plans that fit has them."""
    if len(plans) == 1:
        return ""
    names = {"gpu": "on the GPU", "host": "in host memory"}
    best, other = fitting[0], next(plan for plan in plans if plan.sources != fitting[0].sources)
    if len(fitting) == 1:
        return f"sources {names[best.sources]}, as there is no room {names[other.sources]}"
    return (
        f"sources {names[best.sources]}, for a trial in about {best.trial_s:.0f} s; "
        f"{names[other.sources]} {other.trial_s:.0f} s, {other.max_num_seqs} at once"
    )


def _plan(needs: Needs, engine: EngineSpec, machine: Machine, where: Where, work: Workload | None = None) -> MemoryPlan:
    """The plan of one place for the sources.

    On a GPU vLLM 0.32 (`Worker.determine_available_memory`) gives to the KV cache

        utilization * total - (free before loading - free after a trial run) - peak of the trial run above that

    so whatever our loader allocates, the sources too, counts as consumed within `utilization * total`. Outside of that
    stay what is taken before vLLM looks (`total - free`, and the context of the engine's process) and what comes after:
    the scratch of a switch, and the reward model, or where that is loaded already (when an engine is started anew) its
    activations alone, since its weights are in `total - free`. Hence

        utilization = (free - context - reward model to come - scratch) / total

    and the rest of `utilization * total` must hold the weights, the sources, activations, and keys and values for one
    sequence of `max_model_len`, without which vLLM does not start; what is left beyond that is more KV cache.
    """
    ranks = engine.tensor_parallel
    in_host_memory = max(0, needs.sources - machine.host_held)
    if not machine.has_gpu:
        reward = needs.reward_model + needs.reward_activations
        everything = {
            "weights": needs.live + needs.packed,
            # what is packed is there unpacked as well until the canary has passed, when the reward model is loaded
            "start": max(0, needs.live - needs.packed - reward),
            "sources": in_host_memory,
            "KV cache": ranks * engine.kv_cache_gib * _GIB,
            "reward model": reward,
            # a switch writes a matrix in load layout and packs it anew, before the old one goes
            "other": (1 + (ranks if ranks > 1 or engine.own_process else 0)) * _LIBRARIES_BYTES + 2 * needs.largest,
        }
        return MemoryPlan(
            everything,
            {},
            "host",
            None,
            needs.arithmetic,
            n_at_once(engine),
            n_engines=machine.n_engines,
            n_reward_models=needs.n_reward_models,
        )
    from expo_search.engine.worker.source_pieces import STAGING_BYTES

    on_gpu = where == "gpu"
    scratch = _SWITCH_BYTES + 2 * needs.largest_experts // ranks + (0 if on_gpu else STAGING_BYTES)
    activations = min(int(machine.gpu_total * _ACTIVATIONS_SHARE), _ACTIVATIONS_BYTES)
    reward = max(0, needs.reward_model - machine.gpu_held) + needs.reward_activations
    kv_per_token = needs.kv_per_token // min(ranks, needs.kv_heads)
    device = {
        "weights": needs.live // ranks,
        "sources": needs.sources // ranks if on_gpu else 0,
        "KV cache": kv_per_token * engine.max_model_len,
        "reward model": reward,
        "other": scratch + _CONTEXT_BYTES + activations,
    }
    host = {
        "sources": 0 if on_gpu else max(0, needs.sources - machine.host_held),
        "other": (1 + ranks) * _LIBRARIES_BYTES,
    }
    taken = max(0, machine.gpu_free - _CONTEXT_BYTES - reward - scratch)
    placement = Placement(
        weights=device["weights"],
        kv_per_token=kv_per_token,
        kv_cache=max(0, taken - device["weights"] - device["sources"] - activations),
        streamed=0 if on_gpu else needs.sources // ranks,
        bandwidth=machine.gpu_bandwidth or BANDWIDTH,
    )
    work = work or Workload()
    room = min(_MOST_SEQS, placement.sequences(work))
    at_once = max(_SEQS_STEP, room // _SEQS_STEP * _SEQS_STEP) if engine.max_num_seqs == "auto" else engine.max_num_seqs
    return MemoryPlan(
        device,
        host,
        where,
        int(taken / machine.gpu_total * 1000) / 1000,
        needs.arithmetic,
        at_once,
        placement.trial_s(work, at_once),
        n_engines=machine.n_engines,
        n_reward_models=needs.n_reward_models,
    )


def _places(engine: EngineSpec, machine: Machine) -> tuple[Where, ...]:
    if not machine.has_gpu:
        return ("host",)
    return ("gpu", "host") if engine.sources == "auto" else (engine.sources,)


def _what_fits(needs: Needs, engine: EngineSpec, machine: Machine) -> str:
    """Changes, one at a time, with which the plan would fit; said of a search, since no other command has options."""

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

    def fits_beside(reward_model: int, reward_activations: int) -> bool:
        smaller = replace(needs, reward_model=reward_model, reward_activations=reward_activations)
        return any(_plan(smaller, engine, machine, w).fits(machine) for w in _places(engine, machine))

    part = next((n for n in (2, 4, 8) if fits_beside(needs.reward_model, needs.reward_activations // n)), None)
    if part:
        options.append(f"1/{part} of batch_tokens in [reward]")
    if not options and fits_beside(0, 0):
        options.append("a smaller reward model" if needs.n_reward_models < 2 else "fewer or smaller reward models")
    return f"a search with {' or '.join(options)} would fit" if options else "free memory, or take a smaller pair"


def _sum(parts: Mapping[str, int]) -> str:
    shown = " + ".join(f"{name} {size / _GIB:.1f}" for name, size in parts.items() if size)
    return f"{shown} = {sum(parts.values()) / _GIB:.1f} GiB"


def process_bytes(machine: Machine) -> int:
    """What one more engine process takes where the weights are, beside its tensors."""
    return _CONTEXT_BYTES if machine.has_gpu else _LIBRARIES_BYTES
