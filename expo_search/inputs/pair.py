"""A `PairSpec` -> three local checkpoint folders: aligned, sft and reward model.

Each comes from a folder, from the Hub (one commit of it, safetensors only), or from parts that ship with the
package and are put together in the cache folder on first use. So is an aligned model that is a base and an adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.checkpoint.remote_code import check_code
from expo_search.checkpoint.side_files import small_files_hash
from expo_search.config.spec import PairSpec, RewardModelSpec, StudySpec
from expo_search.errors import PairError
from expo_search.folders import build_once, cache_folder, is_built, is_there, user_path
from expo_search.inputs.hub_download import HubCommit, check_room, find_on_hub
from expo_search.inputs.hub_outline import outline
from expo_search.inputs.shipped_parts import second_judge_name, shipped_judge, shipped_pair
from expo_search.inputs.source import CODE_REVISIONS, LOCAL, PLUG_IN, Pair, Source
from expo_search.inputs.weights_hash import weights_hash

_CHECK = "check reward model"  # its role, for messages


def resolve_pair(
    spec: PairSpec,
    *,
    rewards: Sequence[RewardModelSpec] = (),
    trust_remote_code: bool,
    say: Callable[[str], None],
    doing: Callable[[str], None] = lambda _: None,
    fetch: bool = True,
    own_model: bool = True,
    own_scorer: bool = True,
    with_reward: bool = True,
    with_judge: bool = False,
) -> Pair:
    """Find, fetch or build the checkpoints of a pair and of what rates; all are found before the first is fetched.

    Where another model than our engine answers, or another scorer rates, the checkpoints' names are kept as they are.

    Args:
        rewards: several reward models, in the place of the pair's.
        say: gets a line before what takes long. doing: how far it is (see `HubCommit.fetch`).
        fetch: False: of weights that are on the Hub alone the headers will do (`hub_outline`), but where an adapter is
            to be merged into them.
        with_reward: False leaves the reward model's name alone.
        with_judge: the second judge is found as well, and the disk has room for it; `resolve_check_model` fetches it.

    Raises:
        PairError: a path that is no folder, a repository or file that cannot be had, a missing package.
    """
    with_reward = with_reward and not rewards
    given = (
        (spec.aligned, spec.aligned_revision, "aligned"),
        (spec.sft, spec.sft_revision, "sft"),
        (spec.reward_model if with_reward else None, spec.reward_revision, "reward model"),
    )
    is_own = {"aligned": own_model, "sft": own_model, "reward model": own_scorer}
    found: dict[str, Source | HubCommit] = {
        role: _find(id, revision, role, trust_remote_code) if is_own[role] else Source(Path(id), id, PLUG_IN)
        for id, revision, role in given
        if id
    }
    if spec.adapter and "aligned" in found and own_model:
        found["adapter"] = _find(
            spec.adapter, spec.adapter_revision, "adapter", trust_remote_code, "adapter_config.json"
        )
    role = "one of the reward models"
    several = {f"{role}, {i}": _find(e.model, e.revision, role, trust_remote_code) for i, e in enumerate(rewards, 1)}
    judge = _find_check_model(spec, trust_remote_code) if with_judge and spec.check_reward_model else None
    later = [] if judge is None else [judge]
    here = _at_hand(found | several, say, doing, later, fetch=fetch or "adapter" in found)
    aligned, sft, reward_model = (here.get(role) for _, _, role in given)
    base, adapter = None, here.get("adapter")
    if adapter and aligned:
        base = aligned
        aligned, sft = _with_adapter(base, adapter, trust_remote_code, say), sft or base
    reward_models = tuple(here[name] for name in several)
    if aligned and sft and (reward_model or not with_reward):
        return Pair(aligned, sft, reward_model, base, adapter, reward_models)
    assert spec.parts is not None, "StudySpec checks that all three are given where there are no parts"
    parts = shipped_pair(spec.parts, say)
    rated_by = (reward_model or parts.reward_model) if with_reward else None
    return Pair(aligned or parts.aligned, sft or parts.sft, rated_by, reward_models=reward_models)


def resolve_check_model(
    spec: PairSpec,
    *,
    trust_remote_code: bool,
    say: Callable[[str], None],
    doing: Callable[[str], None] = lambda _: None,
    fetch: bool = True,
) -> Source:
    """Find, fetch or build the second judge that a spec names. Arguments and errors as of `resolve_pair`."""
    judge = _find_check_model(spec, trust_remote_code)
    if judge is None:
        assert spec.parts is not None
        assert spec.check_reward_model is not None
        return shipped_judge(spec.parts, spec.check_reward_model, say)
    return _at_hand({_CHECK: judge}, say, doing, fetch=fetch)[_CHECK]


def _find_check_model(spec: PairSpec, trust_remote_code: bool) -> Source | HubCommit | None:
    """The second judge that a spec names; None where it ships with the pair."""
    assert spec.check_reward_model is not None
    if spec.parts is not None and spec.check_reward_model == second_judge_name(spec.parts):
        return None
    return _find(spec.check_reward_model, spec.check_reward_revision, _CHECK, trust_remote_code)


def pinned(spec: StudySpec, pair: Pair) -> StudySpec:
    """A spec that names the exact Hub revisions of a resolved pair, since a branch may move later."""
    sources = {"aligned": pair.base or pair.aligned, "adapter": pair.adapter, "sft": pair.sft}
    sources |= {"reward": pair.reward_model}
    revisions = {f"{role}_revision": s.revision for role, s in sources.items() if s is not None and s.on_hub}
    rewards = spec.rewards
    if pair.reward_models:
        both = zip(spec.rewards, pair.reward_models, strict=True)
        rewards = tuple(e.model_copy(update={"revision": s.revision}) if s.on_hub else e for e, s in both)
    return spec.model_copy(update={"pair": spec.pair.model_copy(update=revisions), "rewards": rewards})


def _find(
    id: str, revision: str | None, role: str, trust_remote_code: bool, first: str = "config.json"
) -> Source | HubCommit:
    """A folder, or the Hub's commit of an id; `first` is a small file that such a folder has."""
    path = user_path(id)
    expected = "a checkpoint folder or a Hub id"
    if is_there(path, PairError, where=f"{role} {id}", expected=expected) and path.is_dir():
        if trust_remote_code and role in CODE_REVISIONS:
            check_code(path, f"{role} {id}")
        return Source(path.resolve(), id, LOCAL)
    if path.is_absolute() or id.startswith((".", "~")) or id.count("/") != 1:
        raise PairError(
            where=f"{role} {id}",
            found="no such folder, and not a Hub id (owner/name)",
            expected=expected,
            do="check the path",
        )
    return find_on_hub(id, revision, role, trust_remote_code, first)


def _at_hand(
    found: Mapping[str, Source | HubCommit],
    say: Callable[[str], None],
    doing: Callable[[str], None],
    later: Sequence[Source | HubCommit] = (),
    *,
    fetch: bool,
) -> dict[str, Source]:
    """What was found, in local folders: fetched, or as outlines where that will do. `later`: needs room as well."""
    if fetch:
        check_room([source for source in (*found.values(), *later) if isinstance(source, HubCommit)])

    def here(source: Source | HubCommit) -> Source:
        if isinstance(source, Source):
            return source
        if not fetch and source.lacks_weights:
            return outline(source)
        return source.fetch(say, doing, from_cache=not fetch and source.files is None)

    return {name: here(source) for name, source in found.items()}


def _with_adapter(base: Source, adapter: Source, trust_remote_code: bool, say: Callable[[str], None]) -> Source:
    """The base with the adapter merged in: built once in the cache for exactly these two."""
    from expo_search.checkpoint.build import merge_adapter
    from expo_search.checkpoint.lora import check_fits, open_adapter

    checkpoint, lora = open_checkpoint(base.path, role="aligned"), open_adapter(adapter.path)
    check_fits(lora, checkpoint)
    weights = base.revision if base.on_hub else weights_hash(checkpoint, base.id, say)
    small = small_files_hash(base.path, code=trust_remote_code)
    parts = (weights, small, lora.content_hash(), str(trust_remote_code))
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    merged = cache_folder() / "checkpoints" / f"merged-{key}"
    if not is_built(merged):
        say(f"merging adapter {adapter.id} into {base.id} (once, kept in {merged})")
        build_once(merged, lambda: merge_adapter(base.path, adapter.path, merged, code=trust_remote_code))
    return Source(merged, f"{base.id}+{adapter.id}", f"{base.revision}+{lora.content_hash()}")
