"""A checked `StudySpec` -> everything a search needs, in the order in which faults are cheapest to find.

Everything that can be wrong with the input is found before an engine starts and before anything is written: prompts,
the two checkpoints' headers, the reward model's labels, the database, the settings of a study that is resumed, memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.contracts import Part, Prompt, Watcher
from expo_search.engine.machine import environment
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineDied
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.reward_model import SequenceRewardModel
from expo_search.inputs.pair import pinned
from expo_search.inputs.source import Pair
from expo_search.session.preflight import Checked
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.settings import Settings, WeightsSettings, compare_settings
from expo_search.store.study_store import Store

CONFIRM_SEED_STEP = 1_000_003


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
        return Objective(
            self.model,
            self.scorer,
            self.store,
            prompts,
            watcher,
            seed=spec.search.seed + (CONFIRM_SEED_STEP if part == "confirm" else 0),
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
    store.keep(StudyAttributes(environment=environment()))
    note_contents(store, checked.pair)
    return Running(checked, model, scorer, store)


def pin(store: Store, checked: Checked, weights: Settings | None = None) -> None:
    """Keep what the study is made under, and where its checkpoints lie now: they may have been moved since.

    Raises:
        SettingsChanged: it was made under others.
    """
    # with the number of prompts there were, so that a confirmation takes the same ones as the search's
    found = checked.spec.prompts.model_copy(update={"n": len(checked.search_prompts)})
    used = pinned(checked.spec, checked.pair).model_copy(update={"prompts": found})
    settings = (store.attributes.settings or Settings()).updated(checked.settings).updated(weights or Settings())
    store.pin_settings(settings, used.model_dump(mode="json"))


def note_contents(store: Store, pair: Pair) -> None:
    """Keep what the files of the weights that the engine has just loaded are, for an export long after."""
    stored = store.attributes.contents or {}
    now = dict(stored)
    for role, source in (("aligned", pair.aligned), ("sft", pair.sft)):
        checkpoint = open_checkpoint(source.path, role=role)
        stamps = checkpoint.stamps
        if stored.get(role, {}).get("stamps") != stamps:
            now[role] = {"stamps": stamps, "sha256": checkpoint.content_hash()}
    store.keep(StudyAttributes(contents=now))


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
    stored = stored_attributes(checked.storage, spec.name)
    if stored is not None and stored.settings is not None:
        compare_settings(stored.settings, _weights(model), name=spec.name)
    sources = model.sources
    say(
        f"canary passed in {model.canary_s:.1f} s: a switch takes effect, alpha = 0 comes back to the bit; "
        f"||delta|| / ||aligned|| = {sources.relative_delta:.2e}, {sources.changed_share:.1%} of the entries differ"
    )
    return model


def _weights(model: VllmModel) -> Settings:
    return Settings(weights=WeightsSettings(aligned=model.sources.aligned, sft=model.sources.sft))
