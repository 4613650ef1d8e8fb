"""Checkpoints and prompts -> the memory plan of an engine on this machine, and what makes it anew for another start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import StudySpec
from expo_search.dtypes import Dtypes
from expo_search.engine.machine import measure_machine
from expo_search.engine.memory_plan import MemoryPlan, plan_memory
from expo_search.engine.needs import Needs
from expo_search.engine.trial_time import Workload
from expo_search.session.reward_engine import with_reward_engine


def search_needs(
    aligned: Checkpoint, sft: Checkpoint, rewards: Sequence[Checkpoint], dtypes: Dtypes, spec: StudySpec
) -> Needs:
    """What a search loads. `rewards`: its reward models, all of which are loaded at once; none where a scorer rates.

    Those of one process rate one after the other, so that it needs the activations of the largest; each in an engine of
    its own keeps its own.
    """
    if not rewards:
        return Needs.of(aligned, sft, None, dtypes, spec.reward)
    alone = zip(spec.each_reward, rewards, strict=True)
    each = [Needs.of(aligned, sft, reward, dtypes, of_one.reward) for of_one, reward in alone]
    activations = [needs.reward_activations for needs in each]
    return replace(
        each[0],
        reward_model=sum(needs.reward_model for needs in each),
        reward_activations=sum(activations) if spec.reward.backend == "vllm" else max(activations),
        n_reward_models=len(each),
    )


def plans(
    needs: Needs,
    spec: StudySpec,
    rewards: Sequence[Checkpoint],
    work: Workload,
    *,
    n_engines: int = 1,
    shared_sources: str | None = None,
) -> tuple[MemoryPlan, Callable[[], MemoryPlan]]:
    """The plan with what is free now, where nothing of ours is loaded yet, and what makes it anew.

    `rewards`: see `search_needs`; `n_engines`: see `Machine`; `shared_sources`: see `measure_machine`.

    Raises:
        EngineError: it does not fit.
    """
    before = measure_machine(shared_sources)
    for of_one, reward in zip(spec.each_reward, rewards, strict=False):
        needs = with_reward_engine(needs, of_one, reward, before)
    # by then a reward model in a process of its own has taken what it needs, and that is no longer free
    loaded = replace(needs, reward_model=0, reward_activations=0) if spec.reward.backend == "vllm" else needs

    def again() -> MemoryPlan:
        now = measure_machine()
        ours = max(0, now.gpu_held - before.gpu_held)  # a notebook may have held tensors of its own before
        return plan_memory(loaded, spec.engine, replace(now, gpu_held=ours), work)

    machine = replace(before, gpu_held=0, n_engines=n_engines)
    return plan_memory(needs, spec.engine, machine, work), again
