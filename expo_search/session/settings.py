"""A spec and what it was resolved to -> `Settings`: all that changes a reward, or the sampler's view of a study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import StudySpec
from expo_search.contracts import Prompt
from expo_search.dtypes import Dtypes
from expo_search.inputs.prompts import prompts_hash
from expo_search.inputs.source import LOCAL, PLUG_IN, Pair, Source
from expo_search.store.settings import (
    EngineSettings,
    FilesSettings,
    FreeTable,
    PairSettings,
    PromptsSettings,
    RewardSettings,
    Settings,
    differing,
)


def sources_settings(pair: Pair, aligned: Checkpoint, sft: Checkpoint) -> Settings:
    """What identifies the two checkpoints of a search."""
    made_of = [pair.base, pair.adapter] if pair.base and pair.adapter else [pair.aligned]
    return Settings(
        pair=PairSettings(aligned=_identity(made_of, aligned), sft=_identity([pair.sft], sft)),
        files=FilesSettings(aligned=aligned.sample_hash, sft=sft.sample_hash),
    )


def study_settings(
    spec: StudySpec,
    pair: Pair,
    aligned: Checkpoint | None,
    sft: Checkpoint | None,
    rewards: Sequence[Settings],
    prompts: Sequence[Prompt],
    dtypes: Dtypes | None,
    *,
    template: object,
    scorer: str | None = None,
) -> Settings:
    """All of them but the weights' fingerprints, which the engine finds.

    Args:
        aligned, sft, dtypes: None where another model than our engine answers.
        rewards: of each reward model, as `reward_settings` has them; none where another scorer rates.
        template: chat template of aligned.
        scorer: what identifies the scorer that the study names in the place of a reward model.
    """
    return (
        _model_settings(spec, pair, aligned, sft, dtypes, template)
        .updated(_reward_settings(spec, pair, rewards, scorer))
        .updated(spec_settings(spec))
        .updated(Settings(prompts=PromptsSettings(n=len(prompts), hash=prompts_hash(prompts))))
    )


def spec_settings(spec: StudySpec) -> Settings:
    """Those of them that the spec alone tells."""
    # when to end changes no trial, and `expo` takes trials from any range: its range may be widened in mid-study
    free = {"tolerance", "combine_rewards"} | ({"alpha_min", "alpha_max"} if spec.search.sampler == "expo" else set())
    return Settings(
        sampling=FreeTable.model_validate(spec.sampling.model_dump()),
        # what a benchmark may lose changes no trial
        guardrails=FreeTable.model_validate(spec.guardrails.model_dump(exclude={"bench"})),
        search=FreeTable.model_validate(spec.search.model_dump(exclude=free)),
    )


def _model_settings(
    spec: StudySpec,
    pair: Pair,
    aligned: Checkpoint | None,
    sft: Checkpoint | None,
    dtypes: Dtypes | None,
    template: object,
) -> Settings:
    if aligned is None or sft is None or dtypes is None:
        return Settings(pair=PairSettings(aligned=_name(pair.aligned), sft=_name(pair.sft)))
    own = Settings(
        pair=PairSettings(
            stop_token_ids=spec.pair.stop_token_ids,
            stop_strings=spec.pair.stop_strings,
            chat_template=_hash(template),
        ),
        engine=EngineSettings(
            dtype=spec.engine.dtype,
            arithmetic=dtypes.engine,
            max_model_len=spec.engine.max_model_len,
            tensor_parallel=spec.engine.tensor_parallel,
            batch_invariant=spec.engine.batch_invariant,
        ),
    )
    return sources_settings(pair, aligned, sft).updated(own)


def _reward_settings(spec: StudySpec, pair: Pair, rewards: Sequence[Settings], scorer: str | None) -> Settings:
    if rewards:
        return rewards[0] if len(rewards) == 1 else _together(rewards, spec.search.combine_rewards)
    if scorer is not None or pair.reward_model is None:
        return Settings(reward=RewardSettings(scorer=scorer or f"{spec.reward.named}@{PLUG_IN}"))
    return reward_settings(spec, pair.reward_model, None, None, None)


def _together(rewards: Sequence[Settings], combine: str) -> Settings:
    """The settings of several reward models: names and hashes one after the other, and what else differs as a list."""
    each = [settings.flat() for settings in rewards]
    flat: dict[str, Any] = {}
    for key in each[0]:
        values = [of_one[key] for of_one in each]
        if key.startswith(("pair.", "files.")):
            flat[key] = " + ".join(map(str, values))
        else:
            flat[key] = values[0] if all(value == values[0] for value in values) else values
    return Settings.from_flat(flat | {"reward.combine": combine})


def judge_key(settings: Settings, trained_on: Collection[str] = ()) -> str:
    """The key of a reward model's rewards beside a study's own: another one for other weights, template, arithmetic.

    And for another list of prompts that it was trained on, since that says which answers it rates.
    """
    told = [json.dumps(settings.flat(), sort_keys=True), *sorted(trained_on)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def reward_settings(
    spec: StudySpec, source: Source, reward: Checkpoint | None, dtypes: Dtypes | None, template: object
) -> Settings:
    """What identifies the rewards of a reward model. `reward`: its checkpoint, None where the caller's scorer rates."""
    if reward is None:
        return Settings(pair=PairSettings(reward_model=_name(source)), reward=RewardSettings(scorer=""))
    kept = RewardSettings(
        backend=spec.reward.backend, max_tokens=spec.reward.max_tokens, chat_template=_hash(template), scorer=""
    )
    if dtypes is not None:
        kept = kept.model_copy(update={"arithmetic": dtypes.reward})
    return Settings(
        pair=PairSettings(reward_model=_identity([source], reward)),
        files=FilesSettings(reward_model=reward.sample_hash),
        reward=kept,
    )


def computing_as(spec: StudySpec, settings: Settings) -> StudySpec:
    """The spec with the arithmetic that a study's settings name, where it left that to the machine."""
    engine, reward = spec.engine, spec.reward
    if engine.arithmetic == "auto" and settings.engine.arithmetic:
        engine = engine.model_copy(update={"arithmetic": settings.engine.arithmetic})
    if reward.arithmetic == "auto" and settings.reward.arithmetic:
        reward = reward.model_copy(update={"arithmetic": settings.reward.arithmetic})
    rewards = tuple(entry.model_copy(update={"arithmetic": reward.arithmetic}) for entry in spec.rewards)
    return spec.model_copy(update={"engine": engine, "reward": reward, "rewards": rewards})


def advice_on_changes(stored: Settings, settings: Settings) -> str:
    """Advice to who has other settings than a study; where only the machine is another, an option that goes on."""
    others = differing(stored, settings).keys()
    if stored.engine.arithmetic and others <= {"engine.arithmetic", "reward.arithmetic"}:
        engine, reward = stored.engine.arithmetic, stored.reward.arithmetic
        if reward in (None, "", engine):
            return f"--arithmetic {engine} goes on as there, or give another --study-name"
        of_file = f'[engine] arithmetic = "{engine}" and [reward] arithmetic = "{reward}" in a study file'
        return f"{of_file} go on as there, or give another --study-name"
    return "drop the differing options, or give another --study-name"


def _identity(made_of: Sequence[Source], checkpoint: Checkpoint) -> str:
    """A folder is what is in it, wherever it lies and however its path is spelled; a base with an adapter has both."""
    names = [LOCAL if source.revision == LOCAL else _name(source) for source in made_of]
    return f"{'+'.join(names)}#{checkpoint.header_hash}"


def _name(source: Source) -> str:
    return f"{source.id}@{source.revision}"


def _hash(template: object) -> str:
    return hashlib.sha256(str(template).encode()).hexdigest()[:16]
