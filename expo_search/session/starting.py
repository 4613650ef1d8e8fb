"""A checked spec -> an engine's `ModelSpec`, and the reward model, loaded: what every process that starts them does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from expo_search.config.spec import StudySpec
from expo_search.engine.memory_plan import MemoryPlan
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineDied
from expo_search.inputs.source import Pair

if TYPE_CHECKING:
    from expo_search.evaluation.conversation_scorer import ConversationScorer
    from expo_search.evaluation.ensemble import RewardModels


def model_spec(spec: StudySpec, pair: Pair, plan: MemoryPlan, plan_again: Callable[[], MemoryPlan] | None) -> ModelSpec:
    """What the engine of a study is made from. `plan_again`: see `ModelSpec`."""
    return ModelSpec(
        aligned=pair.aligned.path,
        sft=pair.sft.path,
        sampling=spec.sampling,
        engine=spec.engine,
        seed=spec.search.seed,
        stop_token_ids=spec.pair.stop_token_ids,
        stop_strings=spec.pair.stop_strings,
        chat_template=spec.pair.chat_template,
        trust_remote_code=spec.trust_remote_code,
        plan_again=plan_again,
    ).planned(plan)


def start_rating(
    spec: StudySpec, pair: Pair, plan: MemoryPlan | None, give_up: Callable[[EngineDied], None] | None
) -> ConversationScorer | RewardModels:
    """Load the reward model, or all of several. As `start_scorer`."""
    if not spec.rewards:
        return start_scorer(spec, pair, plan, give_up)
    from expo_search.evaluation.ensemble import RewardModels

    started: list[ConversationScorer] = []
    try:
        for alone, source in zip(spec.each_reward, pair.reward_models, strict=True):
            started.append(start_scorer(alone, pair.rated_by(source), plan, give_up))
    except BaseException:
        RewardModels(started).close()
        raise
    return RewardModels(started)


def start_scorer(
    spec: StudySpec, pair: Pair, plan: MemoryPlan | None, give_up: Callable[[EngineDied], None] | None
) -> ConversationScorer:
    """Load the reward model. `plan`: None where no engine of ours answers; `give_up`: see `Watchdog`.

    Raises:
        RewardError: it cannot be loaded.
        EngineError: the engine that serves it does not start.
        PairError: its weights were not fetched.
    """
    pair.refuse_outlines()
    path = pair.reward_source.path
    if spec.reward.backend == "vllm":
        from expo_search.session.reward_engine import start_reward_engine

        return start_reward_engine(spec, path, plan, give_up)
    from expo_search.evaluation.reward_model import SequenceRewardModel

    return SequenceRewardModel(path, spec.reward, trust_remote_code=spec.trust_remote_code)
