"""A spec -> `Checked`: what can be wrong with the input is found here, the faults that are cheapest to find first.

Prompts, the two checkpoints' headers, the reward model's labels or the scorer in its place, the database, the settings
of a study that is resumed, memory: all before an engine starts and before anything is written.

What talks to a database takes half a second to import, and is imported when what comes before it has been said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from expo_search.checkpoint.computed_weights import check_computed
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.pair_check import check_pair, same_weights
from expo_search.config.options import MIN_PROMPTS
from expo_search.config.presets import studies_folder
from expo_search.config.spec import StudySpec, check_consent, stored_spec
from expo_search.config.stored_paths import found_from_here
from expo_search.contracts import Prompt
from expo_search.dtypes import Dtypes
from expo_search.engine.context_length import check_context, in_context, no_room
from expo_search.engine.memory_plan import MemoryPlan
from expo_search.engine.ranks import check_ranks
from expo_search.engine.start import INSTALL, check_batch_invariant, dtypes_of
from expo_search.engine.trial_time import PROMPT_TOKENS, Workload
from expo_search.errors import EngineError, RewardError, StudyError
from expo_search.evaluation.judge import Judge
from expo_search.evaluation.own_scorer import OwnScorer, load_scorer
from expo_search.evaluation.reward_model import check_labels, refuse_language_model
from expo_search.inputs.chat_template import encode_chat, load_tokenizer
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.prompts import confirm_part, load_prompts, path_of, search_part
from expo_search.inputs.source import Pair, Source
from expo_search.session.planning import plans, search_needs
from expo_search.session.settings import (
    advice_on_changes,
    computing_as,
    judge_key,
    reward_settings,
    spec_settings,
    study_settings,
)
from expo_search.session.site import SiteRecipe
from expo_search.session.sites import Sites
from expo_search.store.address import check_can_be_made, is_made, sqlite_path
from expo_search.store.settings import Settings, compare_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from expo_search.evaluation.ensemble import Members

SEARCH_SHARE = 0.75  # of a small source's prompts, where nobody said how many: the rest are for a confirmation
_AS_SEARCHED = "put back what was searched, or search again with what changed under another --study-name"
_LENGTHS_FROM = 64  # prompts whose lengths are measured for the memory plan


@dataclass(frozen=True)
class Checked:
    """Input that was found good: local checkpoints, prompts, and every setting that changes a reward.

    Attributes:
        prompts: all of them, in order; the search's are among the first `reach`.
        fits: whether a prompt leaves room for a whole answer in the context.
        plan_again: the memory plan anew, with what is free when it is called.
        memory, plan_again, dtypes: of an engine of ours; None where another model answers.
        work: what an engine answers of a trial.
        sites, recipe: where many engines run, and how they are started; None where one runs in this process.
        scorer: what the study names in the place of a reward model, imported and tried out.
        members: of a study that several reward models rate, these.
        rates: whether answers are to be rated; else nothing that would is loaded, or has room in the plan.
    """

    spec: StudySpec
    storage: str
    pair: Pair
    prompts: Sequence[Prompt]
    search_prompts: Sequence[Prompt]
    reach: int
    fits: Callable[[Prompt], bool]
    settings: Settings
    memory: MemoryPlan | None
    plan_again: Callable[[], MemoryPlan] | None
    dtypes: Dtypes | None
    sites: Sites | None = None
    recipe: SiteRecipe | None = None
    scorer: OwnScorer | Judge | None = None
    work: Workload | None = None
    members: Members | None = None
    rates: bool = True

    def confirm_prompts(self, n: int | None, option: str = "--n-prompts") -> list[Prompt]:
        """The n prompts (None: all) for a confirmation, which the search has not seen; see `confirm_part`."""
        where = f"prompts {self.spec.prompts.source}"
        return confirm_part(self.prompts, self.reach, n, where=where, fits=self.fits, option=option)


def check(
    spec: StudySpec,
    storage: str,
    say: Callable[[str], None],
    *,
    adds: bool = True,
    own_model: bool = True,
    own_scorer: bool = True,
    rates: bool = True,
    sites: Sites | None = None,
    doing: Callable[[str], None] = lambda _: None,
    fetch: bool = True,
    with_judge: bool = False,
    to_confirm: tuple[int, str] | None = None,
    do: str | None = None,
) -> Checked:
    """Check all input. Writes nothing but downloads and built checkpoints in their caches.

    Args:
        doing: see `working`.
        fetch, with_judge: see `resolve_pair`; where engines run on other machines each of them fetches.
        adds: trials are to be added, so a database that cannot be written to, or a study that another process adds to,
            is a fault as well.
        own_model, own_scorer: whether our engine answers, and what the spec names rates; of what the caller has in
            their place nothing is checked, and the spec's names of checkpoints are names alone.
        rates: answers are to be rated; without that what rates them is compared with what the study has, and no more.
        sites: where many engines of ours are to run, which are then asked for what this machine would be.
        to_confirm: how many prompts the search is to leave, and the option that says so.
        do: the advice where prompts or settings are not those of a study that is stored, to who cannot give others;
            None: a search is begun or gone on with, whose options are named.

    Raises:
        ExpoError: the first stage that finds a fault, naming all of that stage's faults.
    """
    if sites is not None:
        sites.open(spec.engine.tensor_parallel)
        say(sites.sentence())
    elif own_model:
        if find_spec("vllm") is None:
            raise EngineError(where="vllm", found="not installed", expected="vllm beside expo-search", do=INSTALL)
        check_batch_invariant(spec.engine)
    if spec.guardrails.bench:
        from expo_search.bench.registry import check_limits

        check_limits(spec.guardrails.bench)
    if spec.rewards and not own_scorer:
        raise StudyError(
            where="scorer",
            found=f"one beside {len(spec.rewards)} reward models",
            expected="one of the two",
            do="leave it out, or give a spec with one reward model",
        )
    scorer = load_scorer(spec.reward) if own_scorer else None
    has_reward = own_scorer and scorer is None
    wanted = spec.prompts.n if "n" in spec.prompts.model_fields_set else MIN_PROMPTS
    prompts = load_prompts(
        _prompts_source(spec.prompts.source), spec.prompts.split, spec.search.seed, say, at_least=wanted, do=do
    )
    _check_to_confirm(spec, prompts, to_confirm)
    kept = _kept_settings(spec, storage, adds=adds, do=do)
    pair = resolve_pair(  # which may have to fetch it
        spec.pair,
        rewards=spec.rewards,
        trust_remote_code=spec.trust_remote_code,
        say=say,
        doing=doing,
        fetch=fetch or sites is not None,
        own_model=own_model,
        own_scorer=own_scorer,
        with_reward=not spec.reward.rates_itself,
        with_judge=with_judge,
    )
    judges = pair.rating if has_reward else ()  # with their files
    for judge in judges:
        refuse_language_model(judge.path)
    aligned = sft = dtypes = None
    if own_model:
        aligned, sft = open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft")
        check_context(spec, aligned.path, aligned.config)
        if sites is None:  # else each of their machines checks its own devices
            check_ranks(spec.engine.tensor_parallel, aligned.config)
        _check_sources(aligned, sft, say, is_whole=not pair.has_outlines)
    rewards: list[Checkpoint] = []
    for judge in judges:
        check_labels(judge.path, trust_remote_code=spec.trust_remote_code)
        rewards.append(open_checkpoint(judge.path, role="reward model"))
    _refuse_same(judges, rewards)
    if aligned is not None:
        spec = in_context(spec, aligned.path)
    tokenizer = _tokenizer(pair.aligned, spec, spec.pair.chat_template) if own_model else None
    reward_tokenizers = [_tokenizer(judge, spec, None) for judge in judges]
    fits = _room_for_answers(spec, prompts, tokenizer)
    chosen, reach = _search_prompts(spec, prompts, fits, say, do)
    work, memory, recipe = _workload(spec, chosen, tokenizer), None, None
    if sites is not None:
        work = replace(work, n_prompts=-(-work.n_prompts // sites.n_engines))  # an engine's part of a trial
        recipe = SiteRecipe(spec, pair, work, own_scorer=has_reward and rates, reads_whole=sites.reads_whole)
        survey = sites.survey(recipe)
        dtypes, memory = survey.dtypes, survey.memory
    elif aligned is not None:
        dtypes = dtypes_of(spec.engine, spec.reward, aligned)
    each = [
        reward_settings(alone, judge, reward, dtypes, of_reward.chat_template)
        for alone, judge, reward, of_reward in zip(spec.each_reward, judges, rewards, reward_tokenizers, strict=False)
    ]
    settings = study_settings(
        spec,
        pair,
        aligned,
        sft,
        each,
        chosen,
        dtypes,
        template=None if tokenizer is None else tokenizer.chat_template,
        scorer=None if scorer is None else scorer.identity,
    )
    if kept is not None:
        if pair.has_outlines:  # whose bytes are not known
            settings = settings.model_copy(update={"files": kept.files})
        compare_settings(kept, settings, name=spec.name, do=do or advice_on_changes(kept, settings))
    if scorer is not None and rates:
        scorer.try_out()  # which may load what it rates with, and then has its memory before ours is planned
    plan = None
    if sites is None and aligned is not None and sft is not None and dtypes is not None:
        loaded = rewards if rates else []
        memory, plan = plans(search_needs(aligned, sft, loaded, dtypes, spec), spec, loaded, work)
    if memory is not None:
        say(memory.sentence())
    members = _members(spec, judges, each) if spec.rewards else None
    checked = Checked(
        spec,
        storage,
        pair,
        prompts,
        chosen,
        reach,
        fits,
        settings,
        memory,
        plan,
        dtypes,
        sites,
        recipe,
        scorer,
        work,
        members,
        rates,
    )
    if to_confirm is not None:
        checked.confirm_prompts(*to_confirm)  # those that fit the context
    return checked


def _check_to_confirm(spec: StudySpec, prompts: Sequence[Prompt], to_confirm: tuple[int, str] | None) -> None:
    """Refuse more fresh prompts than there are beside the search's; which of them fit the context is not known yet."""
    if to_confirm is not None:
        n, option = to_confirm
        confirm_part(prompts, _n_of_search(spec, prompts), n, where=f"prompts {spec.prompts.source}", option=option)


def _kept_settings(spec: StudySpec, storage: str, *, adds: bool, do: str | None) -> Settings | None:
    """The settings of a study that is in the database, compared with those that the spec alone tells.

    Raises:
        ExpoError: a database that cannot be used; other settings; with `adds`, a study that another process adds to.
    """
    path = sqlite_path(storage)
    if path is not None and not is_made(storage, path):
        if adds:
            check_can_be_made(storage, path)
        return None  # of one that is not there yet it is told without SQLAlchemy
    from expo_search.store.attributes import stored_attributes
    from expo_search.store.database import check_readable, check_storage
    from expo_search.store.lock import refuse_if_held

    if adds:
        check_storage(storage)
    check_readable(storage)  # tables that this Optuna can use? Found out here, not after the engine has started
    if adds:  # before the memory is measured, which the other one has taken
        refuse_if_held(storage, spec.name)
    stored = stored_attributes(storage, spec.name)
    if stored is None or stored.settings is None:
        return None
    asked = spec_settings(spec)
    compare_settings(stored.settings, asked, name=spec.name, do=do or advice_on_changes(stored.settings, asked))
    return stored.settings


def _members(spec: StudySpec, judges: Sequence[Source], each: Sequence[Settings]) -> Members:
    """Several reward models by their names for people: Hub ids, or as many last parts of a path as tell them apart."""
    from expo_search.evaluation.ensemble import Member, Members

    for n_parts in range(1, 1 + max(len(judge.path.parts) for judge in judges)):
        names = [judge.id if judge.on_hub else "/".join(judge.path.parts[-n_parts:]) for judge in judges]
        if len(set(names)) == len(names):
            break
    models = tuple(Member(judge_key(of_one), name) for of_one, name in zip(each, names, strict=True))
    return Members(models, spec.search.combine_rewards)


def _refuse_same(judges: Sequence[Source], rewards: Sequence[Checkpoint]) -> None:
    """Refuse one of several reward models that is another one once more: it would have two voices.

    Raises:
        RewardError: two are the same.
    """
    for i, (judge, reward) in enumerate(zip(judges, rewards, strict=True)):
        for before, other in zip(judges[:i], rewards[:i], strict=True):
            if reward.is_same_as(other):
                raise RewardError(
                    where=f"reward model {judge.id}",
                    found=f"the same weights as {before.id}",
                    expected="reward models that differ",
                    do="leave one of the two out",
                )


def _workload(spec: StudySpec, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase | None) -> Workload:
    """What a trial answers; the prompts' mean length is that of the first ones, whose order is drawn at random."""
    mean: float = PROMPT_TOKENS
    if tokenizer is not None and prompts:
        first = prompts[:_LENGTHS_FROM]
        mean = sum(_n_tokens(tokenizer, prompt) for prompt in first) / len(first)
    return Workload(len(prompts), mean, spec.sampling.max_tokens)


def _check_sources(aligned: Checkpoint, sft: Checkpoint, say: Callable[[str], None], *, is_whole: bool = True) -> None:
    """That two checkpoints make a pair; what of their vocabularies differs is said. `is_whole`: no outlines."""
    differences = check_pair(aligned, sft)
    if aligned.is_same_as(sft):
        raise same_weights(aligned.path, sft.path)
    if is_whole:
        check_computed(aligned, sft)
    for name, (rows_aligned, rows_sft) in differences.longer_vocabulary.items():
        more = "rows that sft lacks stay aligned's" if rows_sft < rows_aligned else "sft's further rows are left out"
        say(f"{name} has {rows_aligned} rows in aligned and {rows_sft} in sft: {more}")
    for name in differences.skipped_in_sft:
        say(f"{name} is only in sft, and left out: aligned's is its input embedding")


def _tokenizer(source: Source, spec: StudySpec, template: str | None) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(source.path), trust_remote_code=spec.trust_remote_code, chat_template=template)


def _n_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """Of a prompt in the chat template."""
    return len(encode_chat(tokenizer, [{"role": "user", "content": prompt.text}], add_generation_prompt=True))


def _room_for_answers(
    spec: StudySpec, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase | None
) -> Callable[[Prompt], bool]:
    """Whether a prompt leaves room for a whole answer in the context; any does where no tokenizer is known.

    Raises:
        StudyError: none does.
    """
    if tokenizer is None:
        return lambda _: True

    def length(prompt: Prompt) -> int:
        return _n_tokens(tokenizer, prompt)

    def fits(prompt: Prompt) -> bool:
        return length(prompt) + spec.sampling.max_tokens <= spec.engine.max_model_len

    if prompts and not any(fits(prompt) for prompt in prompts):
        lengths = [length(prompt) for prompt in prompts]
        if min(lengths) < spec.engine.max_model_len:  # else the prompts are at fault, which `search_part` says
            raise no_room(spec, max(lengths), min(lengths))
    return fits


def _search_prompts(
    spec: StudySpec,
    prompts: Sequence[Prompt],
    fits: Callable[[Prompt], bool],
    say: Callable[[str], None],
    do: str | None,
) -> tuple[Sequence[Prompt], int]:
    """The prompts of the search, and how far into the order they reach."""
    is_given, n = "n" in spec.prompts.model_fields_set, _n_of_search(spec, prompts)
    where = f"prompts {spec.prompts.source}"
    chosen, reach = search_part(prompts, n, where=where, exact=is_given, fits=fits, do=do)
    if n < spec.prompts.n:
        say(f"{len(chosen)} of {len(prompts)} prompts are for the search, the others for `confirm`")
    if len(chosen) < reach:
        say(f"{reach - len(chosen)} prompts left out that leave no room for {spec.sampling.max_tokens} tokens")
    return chosen, reach


def _n_of_search(spec: StudySpec, prompts: Sequence[Prompt]) -> int:
    """How many prompts the search wants, of those that there are."""
    is_given = "n" in spec.prompts.model_fields_set
    return spec.prompts.n if is_given else min(spec.prompts.n, round(len(prompts) * SEARCH_SHARE))


def check_stored(
    storage: str,
    name: str,
    say: Callable[[str], None],
    *,
    trust_remote_code: bool,
    adds: bool = True,
    own_model: bool = True,
    own_scorer: bool = True,
    rates: bool = True,
    sites: Sites | None = None,
    doing: Callable[[str], None] = lambda _: None,
    fetch: bool = True,
    to_confirm: tuple[int, str] | None = None,
) -> Checked:
    """As `check`, for the spec that a study's database keeps; consent to run code is asked for anew.

    A file that is not found from here is taken from where the search ran. It computes as its trials did, also where
    this machine would be better at something else.
    """
    from expo_search.store.attributes import StudyAttributes, stored_attributes

    stored = stored_attributes(storage, name) or StudyAttributes()
    kept = stored_spec(stored.spec, name=name, trust_remote_code=trust_remote_code)
    kept = found_from_here(kept, stored.folder, own_model=own_model, own_scorer=own_scorer)
    if own_scorer:
        check_consent(kept, f"study {name}")
    spec = computing_as(kept, stored.settings or Settings())
    return check(
        spec,
        storage,
        say,
        adds=adds,
        own_model=own_model,
        own_scorer=own_scorer,
        rates=rates,
        sites=sites,
        doing=doing,
        fetch=fetch,
        to_confirm=to_confirm,
        do=_AS_SEARCHED,
    )


def _prompts_source(source: str) -> str:
    """A shipped file (`demo/prompts.jsonl`) where the name is not one of the user's own files."""
    shipped = studies_folder() / source
    return str(shipped) if not path_of(source).is_file() and shipped.is_file() else source
