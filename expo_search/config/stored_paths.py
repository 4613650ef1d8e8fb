"""The spec that a study keeps, with paths as they were typed -> the same, as its files are found from this folder."""

from __future__ import annotations

import os
from pathlib import Path

from expo_search.config.own_scorer import from_folder
from expo_search.config.spec import StudySpec
from expo_search.folders import path_in, user_path

_OF_MODEL, _OF_RATING = ("aligned", "sft", "adapter"), ("reward_model", "check_reward_model")


def found_from_here(
    spec: StudySpec, folder: str | None, *, own_model: bool = True, own_scorer: bool = True
) -> StudySpec:
    """A stored spec whose files that are not in the working folder, but in that of the search, have whole paths.

    Args:
        folder: where the search ran; None: a study that is older than this was kept.
        own_model, own_scorer: as of `preflight.check`; what the caller has in their place has names, and no files.
    """
    if folder is None:
        return spec
    there = Path(folder)

    def found(path: str) -> str:
        is_there_alone = not os.path.exists(user_path(path)) and os.path.exists(there / path)  # noqa: PTH110
        return path_in(there, path) if is_there_alone else path

    roles = (*(_OF_MODEL if own_model else ()), *(_OF_RATING if own_scorer else ()))
    named = {role: getattr(spec.pair, role) for role in roles}
    pair = spec.pair.model_copy(update={role: found(path) for role, path in named.items() if path is not None})
    prompts = spec.prompts.model_copy(update={"source": found(spec.prompts.source)})
    rewards = tuple(entry.model_copy(update={"model": found(entry.model)}) for entry in spec.rewards)
    reward = spec.reward
    if own_scorer and reward.scorer is not None:
        reward = reward.model_copy(update={"scorer": from_folder(reward.scorer, there)})
    return spec.model_copy(update={"pair": pair, "prompts": prompts, "rewards": rewards, "reward": reward})
