"""A spec -> the reward model in a vLLM engine of its own, beside the one that answers, and what that needs of memory.

Never run on a GPU: that the planned share is enough there, and that two engines share one GPU in peace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.config.spec import RewardSpec, StudySpec
from expo_search.dtypes import Dtypes, reward_arithmetic
from expo_search.engine.machine import Machine, measure_machine
from expo_search.engine.memory_plan import MemoryPlan, process_bytes
from expo_search.engine.needs import Needs
from expo_search.engine.pooling import PoolingEngine, PoolingSpec
from expo_search.engine.start import engine_settings, not_for_children
from expo_search.engine.watchdog import Watchdog
from expo_search.errors import EngineDied
from expo_search.evaluation.reward_model_vllm import VllmRewardModel

_WHOLE_BLOCKS = 1.25  # a sequence gets whole blocks of the cache: many short ones take more than their tokens


def with_reward_engine(needs: Needs, spec: StudySpec, reward: Checkpoint, machine: Machine) -> Needs:
    """The needs, with those of the process that serves a reward model, where the study asks for one."""
    if spec.reward.backend != "vllm":
        return needs
    more = kv_cache_bytes(reward, spec.reward, cuda=machine.has_gpu) + process_bytes(machine)
    return replace(needs, reward_model=needs.reward_model + more)


def kv_cache_bytes(reward: Checkpoint, spec: RewardSpec, *, cuda: bool) -> int:
    """Keys and values of one batch, in bytes: nothing is kept from one batch to the next."""
    computed = reward_arithmetic(spec.arithmetic, cuda=cuda)
    per_token = Needs.of(reward, reward, None, Dtypes(computed, computed, computed)).kv_per_token
    return int(per_token * max(spec.batch_tokens, spec.max_tokens) * _WHOLE_BLOCKS)


def start_reward_engine(
    spec: StudySpec, path: Path, plan: MemoryPlan | None, give_up: Callable[[EngineDied], None] | None = None
) -> VllmRewardModel:
    """Start the engine and wait until it is ready. Takes 10 s and more.

    Args:
        plan: None where no engine of ours answers. give_up: see `Watchdog`.

    Raises:
        EngineError: vLLM is not installed, or lacks a name that is used.
        RewardError: the reward model is at fault, or vLLM does not start with it.
    """
    machine = measure_machine()
    alone = spec.engine.model_copy(update={"tensor_parallel": 1, "own_process": True})
    environment, _ = engine_settings(alone, cuda=machine.has_gpu, gpu_memory_utilization=None)
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, for the engine that answers
    if spec.engine.tensor_parallel > 1:  # whose ranks have cores of their own each, by the environment
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "auto"
    share = None
    if machine.has_gpu:
        # The cache has its size in bytes, so that vLLM does not fill this share: it only refuses to start where that
        # much is not free. The process's own context is taken before vLLM looks, and half is a first check enough.
        planned = 0.0 if plan is None else plan.device["reward model"] / plan.n_reward_models
        share = max(0.01, planned / 2 / machine.gpu_total)
    # first: its thread takes a Ctrl-C that the start of the engine keeps from this one (see `engine/start.py`)
    watch = Watchdog(spec.engine.timeout_s, give_up)
    checkpoint = open_checkpoint(path, role="reward model")
    cache = kv_cache_bytes(checkpoint, spec.reward, cuda=machine.has_gpu)

    def start(dtype: str, cap: int) -> PoolingEngine:
        made_of = PoolingSpec(
            path=path,
            dtype=dtype,
            max_model_len=cap,
            max_batched_tokens=max(spec.reward.batch_tokens, cap),
            kv_cache_bytes=cache,
            environment=environment,
            gpu_memory_utilization=share,
            trust_remote_code=spec.trust_remote_code,
        )
        with not_for_children():
            return PoolingEngine(made_of, watch)

    try:
        return VllmRewardModel(path, spec.reward, start, trust_remote_code=spec.trust_remote_code)
    except BaseException:
        watch.close()
        raise
