"""`Checked` -> a running engine, a loaded reward model and an open study, each when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.contracts import Model, Part, Prompt, Scorer, Watcher
from expo_search.engine.machine import environment
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineDied
from expo_search.evaluation.objective import Objective
from expo_search.inputs.pair import pinned
from expo_search.inputs.source import Pair
from expo_search.session.preflight import Checked
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.settings import Settings, WeightsSettings, compare_settings
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from expo_search.engine.model import VllmModel
    from expo_search.evaluation.conversation_scorer import ConversationScorer

CONFIRM_SEED_STEP = 1_000_003  # a confirmation draws its answers with other seeds than the search


class Running:
    """What a checked study runs on. A model or a scorer that is given is used in the place of our own.

    Raises (where a part is first asked for):
        ExpoError: an engine that does not start, weights that cannot be switched, weights that changed since.
    """

    def __init__(
        self,
        checked: Checked,
        say: Callable[[str], None],
        give_up: Callable[[EngineDied], None] | None = None,
        *,
        model: Model | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """`give_up`: see `VllmModel`."""
        self.checked = checked
        self._say, self._give_up = say, give_up
        self._given_model, self._given_scorer = model, scorer

    @cached_property
    def own_model(self) -> VllmModel | None:
        """The vLLM engine, started; None where a model was given."""
        return start_model(self.checked, self._say, self._give_up) if self._given_model is None else None

    @property
    def model(self) -> Model:
        """What answers."""
        model = self.own_model or self._given_model
        assert model is not None
        return model

    @cached_property
    def scorer(self) -> Scorer:
        """What rates the answers."""
        if self._given_scorer is not None:
            return self._given_scorer
        return self._own_scorer

    @cached_property
    def _own_scorer(self) -> ConversationScorer:
        checked = self.checked
        if checked.spec.reward.backend == "vllm":
            from expo_search.session.reward_engine import start_reward_engine

            return start_reward_engine(checked.spec, checked.pair.reward_model.path, checked.memory, self._give_up)
        from expo_search.evaluation.reward_model import SequenceRewardModel

        spec, path = checked.spec, checked.pair.reward_model.path
        return SequenceRewardModel(path, spec.reward, trust_remote_code=spec.trust_remote_code)

    @cached_property
    def store(self) -> Store:
        """The study, opened or created, with what it is made under; the engine is started before."""
        own = self.own_model
        store = Store(self.checked.storage, self.checked.spec.name, say=self._say)
        if store.note:
            self._say(store.note)
        pin(store, self.checked, None if own is None else _weights(own))
        store.keep(StudyAttributes(environment=environment()))
        if own is not None:
            note_contents(store, self.checked.pair)
        return store

    @property
    def relative_delta(self) -> float | None:
        """||aligned - sft|| / ||aligned||; None where our engine does not hold the weights."""
        return None if self.own_model is None else self.own_model.sources.relative_delta

    def objective(self, watcher: Watcher, prompts: Sequence[Prompt], part: Part = "search") -> Objective:
        """An objective on some prompts, which are kept with the study."""
        spec, plan = self.checked.spec, self.checked.memory
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
            # a GPU's engine is a process of its own, which goes on while this one scores; a CPU's wants the same cores
            scores_beside=plan is not None and plan.gpu_memory_utilization is not None,
        )

    def close(self) -> None:
        """Stop our engine, let go of reward model and database."""
        started = vars(self)
        store, own = started.pop("store", None), started.pop("own_model", None)
        started.pop("scorer", None)
        scorer = started.pop("_own_scorer", None)
        if store is not None:
            store.close()
        if scorer is not None:
            scorer.close()
        if own is not None:
            with suppress(EngineDied):  # it went down before
                own.close()


def start(checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None) -> Running:
    """Start all of it: the engine with its canary, the reward model, then the study. Raises as `Running`."""
    running = Running(checked, say, give_up)
    _ = running.model, running.scorer, running.store
    return running


def pin(store: Store, checked: Checked, weights: Settings | None = None) -> None:
    """Keep what the study is made under, and where its checkpoints lie now: they may have been moved since.

    Raises:
        SettingsChanged: it was made under others.
    """
    # with the number of prompts there were, so that a confirmation takes the same ones as the search's
    prompts = checked.spec.prompts.model_copy(update={"n": len(checked.search_prompts)})
    used = pinned(checked.spec, checked.pair).model_copy(update={"prompts": prompts})
    settings = (store.attributes.settings or Settings()).updated(checked.settings).updated(weights or Settings())
    store.pin_settings(settings, used.model_dump(mode="json"))


def note_contents(store: Store, pair: Pair) -> None:
    """Keep what the files of the weights that the engine has just loaded are, for an export long after."""
    stored = store.attributes.contents or {}
    now: dict[str, Any] = dict(stored)
    for role, source in (("aligned", pair.aligned), ("sft", pair.sft)):
        checkpoint = open_checkpoint(source.path, role=role)
        stamps = checkpoint.stamps
        if stored.get(role, {}).get("stamps") != stamps:
            now[role] = {"stamps": stamps, "sha256": checkpoint.content_hash()}
    store.keep(StudyAttributes(contents=now))


def start_model(
    checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None
) -> VllmModel:
    """The engine alone, after its canary: what is enough to talk to a model. Raises as `Running`."""
    from expo_search.engine.model import VllmModel

    spec, plan, dtypes = checked.spec, checked.memory, checked.dtypes
    assert plan is not None, "checked for an engine of ours"
    assert dtypes is not None, "checked for an engine of ours"
    say(f"starting vLLM: {dtypes.sentence()}")
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
            plan_again=checked.plan_again,
        ).planned(plan),
        give_up,
    )
    stored = stored_attributes(checked.storage, spec.name)
    if stored is not None and stored.settings is not None:
        compare_settings(stored.settings, _weights(model), name=spec.name)
    sources = model.sources
    say(
        f"canary passed in {model.canary_s:.1f} s: a switch takes effect, {model.noise.sentence()}; "
        f"||delta|| / ||aligned|| = {sources.relative_delta:.2e}, {sources.changed_share:.1%} of the entries differ"
    )
    return model


def _weights(model: VllmModel) -> Settings:
    return Settings(weights=WeightsSettings(aligned=model.sources.aligned, sft=model.sources.sft))
