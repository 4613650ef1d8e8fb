"""Several reward models in a study's settings -> one spelling: `rewards`, an entry each, and `reward` for what is left.

They are spelled as an array of tables, `[[reward]]`, or as a list of models in the place of the pair's one, as the
command line's repeated option gives it. What `[reward]` says of how a model is run holds for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUN = ("backend", "max_tokens", "batch_tokens", "arithmetic")  # how a reward model is run


def apart(data: Mapping[str, Any]) -> dict[str, Any]:
    """One layer of settings, by table and key, with its reward models under `rewards` where they are several.

    What is of another form than a table or a list stays as it is, for whoever checks it.
    """
    told = dict(data)
    reward, pair = told.get("reward"), told.get("pair")
    if isinstance(reward, list | tuple):
        del told["reward"]
        told["rewards"] = list(reward)
    models = pair.get("reward_model") if isinstance(pair, Mapping) else None
    if isinstance(pair, Mapping) and isinstance(models, list | tuple):
        if len(models) == 1:
            told["pair"] = {**pair, "reward_model": models[0]}
            return told
        told["pair"] = {key: value for key, value in pair.items() if key != "reward_model"}
        told["rewards"] = [{"model": model} for model in models]
    return told


def over(base: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two layers, each as `apart` has it, made ready to be merged table by table, `top` over `base`.

    Several reward models in `top` replace what `base` has, and one replaces several; what `base` says in `[reward]` of
    how a model is run holds for those of `top`, where they do not say it, and what `top` says there for `base`'s.
    """
    base, top = dict(base), dict(top)
    pair = top.get("pair")
    if "rewards" in top:
        base.pop("rewards", None)
        top = _run_alike(top, top.get("reward"))
        if isinstance(base.get("pair"), Mapping):
            one = ("reward_model", "reward_revision")
            base["pair"] = {key: value for key, value in base["pair"].items() if key not in one}
        usual = base.get("reward")
        if isinstance(usual, Mapping) and isinstance(top["rewards"], list | tuple):
            run = {key: usual[key] for key in RUN if key in usual}
            top["rewards"] = [run | dict(e) if isinstance(e, Mapping) else e for e in top["rewards"]]
            base["reward"] = {key: value for key, value in usual.items() if key not in RUN}
    elif isinstance(pair, Mapping) and pair.get("reward_model") is not None:
        base.pop("rewards", None)
    elif "rewards" in base:
        base = _run_alike(base, top.get("reward"))
        if isinstance(top.get("reward"), Mapping):
            top["reward"] = {key: value for key, value in top["reward"].items() if key not in RUN}
    return base, top


def _run_alike(told: Mapping[str, Any], reward: object) -> dict[str, Any]:
    """A layer whose reward models are all run as the table `reward` says, which then does not say it any more."""
    if not isinstance(reward, Mapping):
        return dict(told)
    if not isinstance(told["rewards"], list | tuple):
        return dict(told)
    run = {key: reward[key] for key in RUN if key in reward}
    rewards = [dict(e) | run if isinstance(e, Mapping) else e for e in told["rewards"]]
    left = {key: value for key, value in reward.items() if key not in RUN}
    return {**told, "rewards": rewards, "reward": left}
