"""A checked `StudySpec` -> everything a search needs, in the order in which faults are cheapest to find.

Everything that can be wrong with the input is found before an engine starts and before anything is written: prompts,
the two checkpoints' headers, the reward model's labels, the database, the settings of a study that is resumed, memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.config.spec import StudySpec, computing_as, stored_spec, studies_folder
from expo_search.contracts import Part, Prompt, Watcher
from expo_search.dtypes import Dtypes
from expo_search.engine.context_length import in_context, no_room
from expo_search.engine.machine import ENVIRONMENT, environment
from expo_search.engine.memory_plan import MemoryPlan, Needs, measure_machine, plan_memory
from expo_search.engine.model import VllmModel, same_weights
from expo_search.engine.start import INSTALL, ModelSpec, dtypes_of
from expo_search.errors import EngineDied, EngineError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.reward_model import SequenceRewardModel, check_labels
from expo_search.inputs.chat_template import encode_chat, load_tokenizer
from expo_search.inputs.pair import LOCAL, Pair, Source, pinned, resolve_pair
from expo_search.inputs.prompts import confirm_part, load_prompts, prompts_hash, search_part
from expo_search.store.database import check_storage, stored_attribute
from expo_search.store.lock import refuse_if_held
from expo_search.store.study_store import CONTENTS, SETTINGS, SPEC, Store, compare_settings

CONFIRM_SEED_STEP = 1_000_003
SEARCH_SHARE = 0.75  # of a small source's prompts, where nobody said how many: the rest are for a confirmation


@dataclass(frozen=True)
class Checked:
    """Input that was found good: local checkpoints, prompts, and every setting that changes a reward.

    Attributes:
        prompts: all of them, in order; the search's are among the first `reach`.
        fits: whether a prompt leaves room for a whole answer in the context.
    """

    spec: StudySpec
    storage: str
    pair: Pair
    prompts: Sequence[Prompt]
    search_prompts: Sequence[Prompt]
    reach: int
    fits: Callable[[Prompt], bool]
    settings: dict[str, Any]
    memory: MemoryPlan
    dtypes: Dtypes

    def confirm_prompts(self, n: int | None) -> list[Prompt]:
        """n prompts, or all, that the search has not seen."""
        return confirm_part(self.prompts, self.reach, n, where=f"prompts {self.spec.prompts.source}", fits=self.fits)


def check(spec: StudySpec, storage: str, say: Callable[[str], None], *, adds: bool = True) -> Checked:
    """Check all input. Writes nothing but downloads and built checkpoints in their caches.

    `adds`: trials are to be added, so a database that cannot be written to, or a study that another process adds to,
    is a fault as well.

    Raises:
        ExpoError: the first stage that finds a fault, naming all of that stage's faults.
    """
    if find_spec("vllm") is None:
        raise EngineError(where="vllm", found="not installed", expected="vllm beside expo-search", do=INSTALL)
    if adds:
        check_storage(storage)
    prompts = load_prompts(_prompts_source(spec.prompts.source), spec.prompts.split, spec.search.seed, say)
    pair = resolve_pair(spec.pair, trust_remote_code=spec.trust_remote_code, say=say)
    aligned, sft = open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft")
    spec = in_context(spec, aligned.path)
    found = check_pair(aligned, sft)
    if aligned.is_same_as(sft):
        raise same_weights(aligned.path, sft.path)
    for name, (rows_aligned, rows_sft) in found.longer_vocabulary.items():
        more = "rows that sft lacks stay aligned's" if rows_sft < rows_aligned else "sft's further rows are left out"
        say(f"{name} has {rows_aligned} rows in aligned and {rows_sft} in sft: {more}")
    for name in found.skipped_in_sft:
        say(f"{name} is only in sft, and left out: aligned's is its input embedding")
    check_labels(pair.reward_model.path, trust_remote_code=spec.trust_remote_code)
    reward = open_checkpoint(pair.reward_model.path, role="reward model")
    tokenizer = load_tokenizer(
        str(pair.aligned.path), trust_remote_code=spec.trust_remote_code, chat_template=spec.pair.chat_template
    )
    reward_tokenizer = load_tokenizer(str(pair.reward_model.path), trust_remote_code=spec.trust_remote_code)

    def length(prompt: Prompt) -> int:
        return len(encode_chat(tokenizer, [{"role": "user", "content": prompt.text}], add_generation_prompt=True))

    def fits(prompt: Prompt) -> bool:
        return length(prompt) + spec.sampling.max_tokens <= spec.engine.max_model_len

    if prompts and not any(fits(prompt) for prompt in prompts):
        lengths = [length(prompt) for prompt in prompts]
        if min(lengths) < spec.engine.max_model_len:  # else the prompts are at fault, which `search_part` says
            raise no_room(spec, max(lengths), min(lengths))
    is_given = "n" in spec.prompts.model_fields_set
    n = spec.prompts.n if is_given else min(spec.prompts.n, round(len(prompts) * SEARCH_SHARE))
    where = f"prompts {spec.prompts.source}"
    chosen, reach = search_part(prompts, n, where=where, exact=is_given, fits=fits)
    if n < spec.prompts.n:
        say(f"{len(chosen)} of {len(prompts)} prompts are for the search, the others for `confirm`")
    if len(chosen) < reach:
        say(f"{reach - len(chosen)} prompts left out that leave no room for {spec.sampling.max_tokens} tokens")
    templates = {"pair.chat_template": tokenizer.chat_template, "reward.chat_template": reward_tokenizer.chat_template}
    dtypes = dtypes_of(spec.engine, spec.reward, aligned)
    settings = _settings(spec, pair, aligned, sft, reward, chosen, templates, dtypes)
    stored = stored_attribute(storage, spec.name, SETTINGS)
    if stored is not None:
        compare_settings(stored, settings, name=spec.name, do=_changed_do(stored, settings))
    if adds:  # before the memory is measured, which the other one has taken
        refuse_if_held(storage, spec.name)
    machine = measure_machine()
    memory = plan_memory(Needs.of(aligned, sft, reward, dtypes), spec.engine, machine)
    say(memory.sentence())
    return Checked(spec, storage, pair, prompts, chosen, reach, fits, settings, memory, dtypes)


def check_stored(
    storage: str, name: str, say: Callable[[str], None], *, trust_remote_code: bool, adds: bool = True
) -> Checked:
    """As `check`, for the spec that a study's database keeps; consent to run remote code is asked for anew.

    It computes as its trials did, also where this machine would be better at something else.
    """
    spec = stored_spec(stored_attribute(storage, name, SPEC), name=name, trust_remote_code=trust_remote_code)
    spec = computing_as(spec, stored_attribute(storage, name, SETTINGS) or {})
    return check(spec, storage, say, adds=adds)


@dataclass(frozen=True)
class Running:
    """A started engine, a loaded reward model and an open store."""

    checked: Checked
    model: VllmModel
    scorer: SequenceRewardModel
    store: Store

    def objective(self, watcher: Watcher, prompts: Sequence[Prompt], part: Part = "search") -> Objective:
        """An objective on some prompts; a confirmation draws its answers with other seeds than the search."""
        spec = self.checked.spec
        self.store.put_prompts(part, prompts)
        self.model.reseed(spec.search.seed + (CONFIRM_SEED_STEP if part == "confirm" else 0))
        return Objective(
            self.model,
            self.scorer,
            self.store,
            prompts,
            watcher,
            part=part,
            kind=spec.search.objective,
            guardrails=spec.guardrails,
        )


def start(checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None) -> Running:
    """Start the engine with its canary, load the reward model, then open (or create) the study.

    `give_up`: see `VllmModel`.

    Raises:
        ExpoError: an engine that does not start, weights that cannot be switched, weights that changed since.
    """
    model, scorer = start_models(checked, say, give_up)
    spec = checked.spec
    store = Store(checked.storage, spec.name)
    if store.note:
        say(store.note)
    pin(store, checked, _weights(model))
    store.study.set_user_attr(ENVIRONMENT, environment())
    note_contents(store, checked.pair)
    return Running(checked, model, scorer, store)


def pin(store: Store, checked: Checked, weights: Mapping[str, str] | None = None) -> None:
    """Keep what the study is made under, and where its checkpoints lie now: they may have been moved since.

    Raises:
        SettingsChanged: it was made under others.
    """
    # with the number of prompts there were, so that a confirmation takes the same ones as the search's
    found = checked.spec.prompts.model_copy(update={"n": len(checked.search_prompts)})
    used = pinned(checked.spec, checked.pair).model_copy(update={"prompts": found})
    store.pin_settings((store.settings or {}) | checked.settings | dict(weights or {}), used.model_dump(mode="json"))


def note_contents(store: Store, pair: Pair) -> None:
    """Keep what the files of the weights that the engine has just loaded are, for an export long after."""
    stored = store.study.user_attrs.get(CONTENTS) or {}
    now = dict(stored)
    for role, source in (("aligned", pair.aligned), ("sft", pair.sft)):
        checkpoint = open_checkpoint(source.path, role=role)
        stamps = checkpoint.stamps
        if stored.get(role, {}).get("stamps") != stamps:
            now[role] = {"stamps": stamps, "sha256": checkpoint.content_hash()}
    if now != stored:
        store.study.set_user_attr(CONTENTS, now)


def start_models(
    checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None
) -> tuple[VllmModel, SequenceRewardModel]:
    """The engine, after its canary, and the reward model: what is enough to compare answers. Raises as `start`."""
    model, spec = start_model(checked, say, give_up), checked.spec
    path = checked.pair.reward_model.path
    return model, SequenceRewardModel(path, spec.reward, trust_remote_code=spec.trust_remote_code)


def start_model(
    checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None
) -> VllmModel:
    """The engine alone, after its canary: what is enough to talk to a model. Raises as `start`."""
    spec = checked.spec
    say(f"starting vLLM: {checked.dtypes.sentence()}")
    model = VllmModel(
        ModelSpec(
            aligned=checked.pair.aligned.path,
            sft=checked.pair.sft.path,
            sampling=spec.sampling,
            engine=spec.engine,
            seed=spec.search.seed,
            stop_token_ids=spec.pair.stop_token_ids,
            stop_strings=spec.pair.stop_strings,
            chat_template=spec.pair.chat_template,
            trust_remote_code=spec.trust_remote_code,
            gpu_memory_utilization=checked.memory.gpu_memory_utilization,
            sources_on_host=checked.memory.sources == "host",
        ),
        give_up,
    )
    if (stored := stored_attribute(checked.storage, spec.name, SETTINGS)) is not None:
        compare_settings(stored, _weights(model), name=spec.name)
    sources = model.sources
    say(
        f"canary passed in {model.canary_s:.1f} s: a switch takes effect, alpha = 0 comes back to the bit; "
        f"||delta|| / ||aligned|| = {sources.relative_delta:.2e}, {sources.changed_share:.1%} of the entries differ"
    )
    return model


def _weights(model: VllmModel) -> dict[str, str]:
    return {"weights.aligned": model.sources.aligned, "weights.sft": model.sources.sft}


def sources_settings(pair: Pair, aligned: Checkpoint, sft: Checkpoint) -> dict[str, Any]:
    """What identifies the two checkpoints of a search."""
    return {
        "pair.aligned": _identity(pair.aligned, aligned),
        "pair.sft": _identity(pair.sft, sft),
        "files.aligned": aligned.sample_hash,
        "files.sft": sft.sample_hash,
    }


def _changed_do(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Advice to who has other settings than a study; where only the machine is another, an option that goes on."""
    arithmetic = stored.get("engine.arithmetic")
    differing = {key for key in stored.keys() & settings.keys() if stored[key] != settings[key]}
    if arithmetic and differing <= {"engine.arithmetic", "reward.arithmetic"}:
        return f"--arithmetic {arithmetic} goes on as there, or give another --study-name"
    return "drop the differing options, or give another --study-name"


def _identity(source: Source, checkpoint: Checkpoint) -> str:
    """A folder is what is in it, wherever it lies and however its path is spelled."""
    name = LOCAL if source.revision == LOCAL else f"{source.id}@{source.revision}"
    return f"{name}#{checkpoint.header_hash}"


def _prompts_source(source: str) -> str:
    """A shipped file (`demo/prompts.jsonl`) where the name is not one of the user's own files."""
    shipped = studies_folder() / source
    return str(shipped) if not Path(source).expanduser().is_file() and shipped.is_file() else source


def _settings(
    spec: StudySpec,
    pair: Pair,
    aligned: Checkpoint,
    sft: Checkpoint,
    reward: Checkpoint,
    prompts: Sequence[Prompt],
    templates: Mapping[str, object],
    dtypes: Dtypes,
) -> dict[str, Any]:
    """Everything that changes a reward or the sampler's view of the study, flat."""
    flat: dict[str, Any] = {
        "pair.reward_model": _identity(pair.reward_model, reward),
        "files.reward_model": reward.sample_hash,
        "pair.stop_token_ids": list(spec.pair.stop_token_ids),
        "pair.stop_strings": list(spec.pair.stop_strings),
        "prompts.n": len(prompts),
        "prompts.hash": prompts_hash(prompts),
        "reward.max_tokens": spec.reward.max_tokens,
        "reward.arithmetic": dtypes.reward,
        "engine.dtype": spec.engine.dtype,
        "engine.arithmetic": dtypes.engine,
        "engine.max_model_len": spec.engine.max_model_len,
        "engine.tensor_parallel": spec.engine.tensor_parallel,  # fingerprints are by rank
    }
    # when to end changes no trial, and `expo` takes trials from any range: its range may be widened in mid-study
    free = {"tolerance"} | ({"alpha_min", "alpha_max"} if spec.search.sampler == "expo" else set())
    search = {f"search.{key}": value for key, value in spec.search.model_dump().items() if key not in free}
    tables = _flat("sampling", spec.sampling) | _flat("guardrails", spec.guardrails) | search
    texts = {key: hashlib.sha256(str(text).encode()).hexdigest()[:16] for key, text in templates.items()}
    return sources_settings(pair, aligned, sft) | flat | texts | tables


def _flat(table: str, values: Any) -> dict[str, Any]:
    return {f"{table}.{key}": value for key, value in values.model_dump().items()}
