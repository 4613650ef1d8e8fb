"""A second judge: found and checked before an engine starts, loaded once nothing else needs the memory, then asked.

What it is asked are stored answers (`evaluation/second_judge.py`), so no token is generated and no engine started for
it. One reward model is loaded at a time: the study's own is let go before, and loaded again where it is next needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.contracts import Part, Scorer
from expo_search.errors import RewardError
from expo_search.evaluation.reward_model import check_whole
from expo_search.evaluation.second_judge import new_to, rate
from expo_search.inputs.chat_template import load_tokenizer
from expo_search.inputs.pair import resolve_check_model
from expo_search.inputs.source import LOCAL, PLUG_IN, Source
from expo_search.inputs.trained_on import ids_among, read_trained_on
from expo_search.session.planning import plans, search_needs
from expo_search.session.preflight import Checked
from expo_search.session.running import Running
from expo_search.session.settings import judge_key, reward_settings
from expo_search.session.starting import start_scorer
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store


@dataclass(frozen=True)
class SecondJudge:
    """A second judge that was found good.

    Attributes:
        key: of its rewards in the database: another one for other weights, template or arithmetic.
        name: as people are told it: a Hub id, a folder's last part, or the name of one that ships with the pair.
        source: its checkpoint, or what rates in its place.
        trained_on: hashes of the prompts that it was trained on, where its folder lists them.
    """

    key: str
    name: str
    source: Source | Scorer
    trained_on: frozenset[str] = frozenset()


def find_judge(
    checked: Checked,
    model: str | None,
    scorer: Scorer | None,
    say: Callable[[str], None],
    *,
    doing: Callable[[str], None] = lambda _: None,
    fetch: bool = True,
) -> tuple[SecondJudge | None, Checked]:
    """The second judge that is asked for, or that the study's spec names; None where there is none.

    Reads headers, config and tokenizer, no weights.

    Args:
        model: a folder or Hub id, in the place of the spec's. scorer: rates in its place; `model` is then its name.
        doing, fetch: as of `preflight.check`.

    Returns:
        The judge, and the study with it: its spec names it, and the memory plan has room for it.

    Raises:
        ExpoError: a folder or repository that is not there, no scalar reward model, one without its score head or with
            a list of prompts that is none; the study's own; no room for it.
    """
    asked = (
        checked.spec.pair
        if model is None
        else checked.spec.pair.model_copy(update={"check_reward_model": model, "check_reward_revision": None})
    )
    id = asked.check_reward_model
    if id is None:
        return None, checked
    spec = checked.spec.model_copy(update={"pair": asked})
    for own in spec.each_reward:
        if id == own.pair.reward_model and asked.check_reward_revision in (None, own.pair.reward_revision):
            raise _own_again(id, several=bool(spec.rewards))
    # one that ships with a pair has no name in the spec, but cards and reports name it; a folder here may be another
    is_own = any(id == own.id and not own.on_hub for own in checked.pair.rating)
    if is_own and not Path(id).is_dir():
        raise _own_again(id, several=bool(spec.rewards))
    checked = replace(checked, spec=spec)
    if scorer is not None:
        key = hashlib.sha256(f"{id}@{PLUG_IN}".encode()).hexdigest()[:16]
        return SecondJudge(key, id, scorer), checked
    trust = spec.trust_remote_code
    source = resolve_check_model(asked, trust_remote_code=trust, say=say, doing=doing, fetch=fetch)
    check_whole(source.path, trust_remote_code=trust)
    checkpoint = open_checkpoint(source.path, role="check reward model")
    rewards = _own_checkpoints(checked)
    if any(checkpoint.is_same_as(own) for own in rewards):
        raise _own_again(id, several=bool(spec.rewards))
    template = load_tokenizer(str(source.path), trust_remote_code=trust).chat_template
    trained_on = read_trained_on(source.path)
    key = judge_key(reward_settings(spec, source, checkpoint, checked.dtypes, template), trained_on)
    if source.on_hub:  # a branch may move
        pair = asked.model_copy(update={"check_reward_revision": source.revision})
        checked = replace(checked, spec=spec.model_copy(update={"pair": pair}))
    judge = SecondJudge(key, source.path.name if source.revision == LOCAL else source.id, source, trained_on)
    return judge, _with_room(checked, checkpoint, rewards, say)


def _own_again(id: str, *, several: bool) -> RewardError:
    return RewardError(
        where=f"--check-reward-model {id}",
        found=f"{'one of the reward models' if several else 'the reward model'} that the search uses",
        expected="another one, which the search never used",
        do="give another reward model, or leave it out",
    )


def _own_checkpoints(checked: Checked) -> list[Checkpoint]:
    """The study's own reward models; none where a scorer rates in their place."""
    sources = [source for source in checked.pair.rating if source.revision != PLUG_IN]
    return [open_checkpoint(source.path, role="reward model") for source in sources]


def _with_room(
    checked: Checked, judge: Checkpoint, rewards: Sequence[Checkpoint], say: Callable[[str], None]
) -> Checked:
    """The memory planned for the larger of judge and study's reward models, which are not loaded at the same time.

    Many engines are gone before the judge is loaded (`Running.let_scorer_go`), so their plan stays.
    """
    spec, dtypes, work = checked.spec, checked.dtypes, checked.work
    if checked.memory is None or checked.sites is not None or dtypes is None or work is None:
        return checked
    pair = checked.pair
    aligned, sft = open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft")
    alone = spec.model_copy(update={"rewards": ()})
    needs, own = search_needs(aligned, sft, [judge], dtypes, alone), search_needs(aligned, sft, rewards, dtypes, spec)
    if needs.reward_model + needs.reward_activations <= own.reward_model + own.reward_activations:
        return checked
    memory, again = plans(needs, alone, [judge], work)
    say(f"{memory.sentence()} (the second judge is the larger reward model)")
    return replace(checked, memory=memory, plan_again=again)


def judge_answers(
    running: Running,
    store: Store,
    judge: SecondJudge,
    trial: int,
    part: Part,
    n: int,
    doing: Callable[[str], None],
    stop: Callable[[], bool],
) -> bool:
    """Load the judge, have it rate what it has not of a trial and of alpha = 0, and keep it; whether it got to the end.

    It is not loaded where it was trained on all of the prompts but one: those it does not rate (`read_check`).
    `doing`: gets a line on what is done.

    Raises:
        RewardError: it cannot be loaded, or a reward that is not finite. What was rated before is kept.
    """
    stored = [*store.prompts("search"), *store.prompts("confirm")]
    CheckStore(store).name(judge.key, judge.name, ids_among(judge.trained_on, stored))
    if len(new_to(store, judge.key, part, n)) < 2:
        return True
    scored = 0

    def on_scored(more: int) -> None:
        nonlocal scored
        scored += more
        doing(f"{judge.name} rates stored answers: {scored}")

    if not isinstance(judge.source, Source):
        return rate(store, judge.key, judge.source, trial, part, n, on_scored, stop)
    running.let_scorer_go()
    doing(f"loading {judge.name}")
    checked = running.checked
    scorer = start_scorer(checked.spec, checked.pair.rated_by(judge.source), checked.memory, None)
    try:
        return rate(store, judge.key, scorer, trial, part, n, on_scored, stop)
    finally:
        scorer.close()
