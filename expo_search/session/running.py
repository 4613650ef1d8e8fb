"""`Checked` -> a running engine, a loaded reward model and an open study, each when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.contracts import EnsembleScorer, Model, PairwiseScorer, Part, Prompt, Scorer, Watcher
from expo_search.engine.machine import environment
from expo_search.engine.start import SourcesReport
from expo_search.engine.watchdog import GRACE_S
from expo_search.errors import EngineDied, EngineError, StudyError
from expo_search.evaluation.answering import AnyScorer
from expo_search.evaluation.ensemble import Calibration, CombinedScorer, Ensemble, RewardModels, read_calibration
from expo_search.evaluation.judge import Judge
from expo_search.evaluation.objective import Objective
from expo_search.inputs.pair import pinned
from expo_search.inputs.source import Pair
from expo_search.session.preflight import Checked
from expo_search.session.starting import model_spec, start_rating
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.settings import Settings, WeightsSettings, compare_settings
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from expo_search.engine.canary import Noise
    from expo_search.engine.model import VllmModel
    from expo_search.evaluation.conversation_scorer import ConversationScorer
    from expo_search.pool.pool import Pool

CONFIRM_SEED_STEP = 1_000_003  # a confirmation draws its answers with other seeds than the search


class Running:
    """What a checked study runs on. A model or a scorer that is given is used in the place of our own.

    With many engines a scorer that is given, or that the study names, rates in this process.

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
        scorer: Scorer | PairwiseScorer | None = None,
    ) -> None:
        """`give_up`: see `VllmModel`."""
        self.checked = checked
        self._say, self._give_up = say, give_up
        self._given_model = model
        self._given_scorer: Scorer | PairwiseScorer | None = checked.scorer if scorer is None else scorer

    @property
    def has_own_model(self) -> bool:
        """Whether a vLLM engine of this process answers, started or not: no model that was given, and no pool."""
        return self._given_model is None and self.checked.sites is None

    @cached_property
    def own_model(self) -> VllmModel | None:
        """The vLLM engine of this process, started; None where a model was given, or many engines answer."""
        return start_model(self.checked, self._say, self._give_up) if self.has_own_model else None

    @cached_property
    def pool(self) -> Pool | None:
        """Many engines, started; None where one answers."""
        return None if self.checked.sites is None else start_pool(self.checked, self._say)

    @property
    def model(self) -> Model:
        """What answers."""
        model = self.pool or self.own_model or self._given_model
        assert model is not None
        return model

    @property
    def sources(self) -> SourcesReport | None:
        """The two sources as our engine, or the first of many, has loaded them; None where a model was given."""
        if self.pool is not None:
            report: SourcesReport = self.pool.facts.sources
            return report
        return None if self.own_model is None else self.own_model.sources

    @cached_property
    def scorer(self) -> AnyScorer:
        """What rates the answers. Raises as `check_rates`."""
        self.check_rates()
        if self._given_scorer is not None:
            return self._given_scorer
        if self.pool is None:
            return self._own_scorer
        if self.checked.members is None:
            return self.pool
        from expo_search.pool.pool import PooledRewardModels

        return PooledRewardModels(self.pool)

    @cached_property
    def _own_scorer(self) -> ConversationScorer | RewardModels:
        checked = self.checked
        return start_rating(checked.spec, checked.pair, checked.memory, self._give_up)

    def check_rates(self) -> None:
        """Check that the session was opened to rate answers.

        Raises:
            StudyError: it was not.
        """
        if not self.checked.rates:
            raise StudyError(
                where=f"study {self.checked.spec.name}",
                found="a session that rates no answers",
                expected="one that does, to search, to confirm or to compare",
                do="open it without rates=False",
            )

    def check_calibrated(self) -> None:
        """Check that answers can be rated outside of a search.

        Raises:
            StudyError: several reward models rate, and the study has no rewards at alpha = 0 to standardise theirs by.
        """
        if self.checked.members is not None and self._calibration() is None:
            raise StudyError(
                where=f"study {self.checked.spec.name}",
                found="no finished trial at alpha = 0",
                expected="one, by whose rewards those of several reward models are standardised",
                do="search first; the first trial is enough",
            )

    @property
    def single_scorer(self) -> Scorer | PairwiseScorer:
        """What rates answers outside of a search, by one reward an answer. Raises as `check_calibrated`."""
        self.check_calibrated()
        scorer, calibration = self.scorer, self._calibration()
        if isinstance(scorer, EnsembleScorer):
            assert calibration is not None, "just checked"
            return CombinedScorer(scorer, calibration)
        return scorer

    def _calibration(self) -> Calibration | None:
        members = self.checked.members
        stored = stored_attributes(self.checked.storage, self.checked.spec.name)
        return None if members is None or stored is None else read_calibration(stored.calibration, members.combine)

    @cached_property
    def store(self) -> Store:
        """The study, opened or created, with what it is made under; the engine is started before."""
        sources = self.sources
        store = Store(self.checked.storage, self.checked.spec.name, say=self._say)
        if store.note:
            self._say(store.note)
        pin(store, self.checked, None if sources is None else _weights(sources))
        of_engines = None if self.pool is None else dict(self.pool.facts.environment)
        store.keep(StudyAttributes(environment=of_engines or environment()))
        if sources is not None:
            note_contents(store, self.checked.pair)
        return store

    @property
    def relative_delta(self) -> float | None:
        """||aligned - sft|| / ||aligned||; None where our engine does not hold the weights."""
        return None if self.sources is None else self.sources.relative_delta

    def objective(
        self, watcher: Watcher, prompts: Sequence[Prompt], part: Part = "search", store: Store | None = None
    ) -> Objective:
        """An objective on some prompts, which are kept with the study, or with one beside it that is given."""
        spec, plan, sites = self.checked.spec, self.checked.memory, self.checked.sites
        store, members = store or self.store, self.checked.members
        store.put_prompts(part, prompts)
        return Objective(
            self.model,
            self.scorer,
            store,
            prompts,
            watcher,
            seed=spec.search.seed + (CONFIRM_SEED_STEP if part == "confirm" else 0),
            part=part,
            kind=spec.search.objective,
            guardrails=spec.guardrails,
            # a GPU's engine is a process of its own, which goes on while this one scores; a CPU's wants the same cores
            scores_beside=plan is not None and plan.gpu_memory_utilization is not None,
            n_parallel=1 if sites is None else sites.n_parallel,
            ensemble=None if members is None else Ensemble(store, members),
        )

    def let_scorer_go(self) -> None:
        """Free the reward model, and many engines, each of which has one; they start again where next asked for."""
        started = vars(self)
        started.pop("scorer", None)
        for name in ("_own_scorer", "pool"):
            part = started.pop(name, None)
            if part is not None:
                part.close()

    def close(self) -> None:
        """Stop our engine, let go of reward model and database."""
        started = vars(self)
        store, own, pool = (started.pop(name, None) for name in ("store", "own_model", "pool"))
        started.pop("scorer", None)
        scorer = started.pop("_own_scorer", None)
        if isinstance(self.checked.scorer, Judge):
            self.checked.scorer.close()
        if store is not None:
            store.close()
        if scorer is not None:
            scorer.close()
        if own is not None:
            with suppress(EngineDied):  # it went down before
                own.close()
        if pool is not None:
            pool.close()


def start(checked: Checked, say: Callable[[str], None], give_up: Callable[[EngineDied], None] | None = None) -> Running:
    """Start all of it: the engine with its canary, the reward model, then the study. Raises as `Running`."""
    running = Running(checked, say, give_up)
    try:
        _ = running.model, running.scorer, running.store
    except BaseException:
        running.close()
        raise
    return running


def pin(store: Store, checked: Checked, weights: Settings | None = None) -> None:
    """Keep what the study is made under, and where its files lie now: they may have been moved since.

    Raises:
        SettingsChanged: it was made under others.
    """
    # with the number of prompts there were, so that a confirmation takes the same ones as the search's
    prompts = checked.spec.prompts.model_copy(update={"n": len(checked.search_prompts)})
    used = pinned(checked.spec, checked.pair).model_copy(update={"prompts": prompts})
    settings = (store.attributes.settings or Settings()).updated(checked.settings).updated(weights or Settings())
    store.pin_settings(settings, used.model_dump(mode="json"))
    store.keep(StudyAttributes(folder=str(Path.cwd())))


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
    checked.pair.refuse_outlines()
    say(f"starting vLLM: {dtypes.sentence(rated=checked.rates and checked.scorer is None)}")
    model = VllmModel(model_spec(spec, checked.pair, plan, checked.plan_again), give_up)
    try:
        _accept(checked, model.sources, model.noise, model.canary_s, say)
    except BaseException:
        model.close()
        raise
    return model


def start_pool(checked: Checked, say: Callable[[str], None]) -> Pool:
    """Many engines with their reward models, each after its canary. Raises as `Running`."""
    from expo_search.pool.pool import Pool

    sites, recipe, dtypes = checked.sites, checked.recipe, checked.dtypes
    assert sites is not None, "checked for many engines"
    assert recipe is not None, "checked for many engines"
    assert dtypes is not None, "checked for many engines"
    say(f"starting {sites.n_engines} vLLM engines: {dtypes.sentence(rated=checked.rates and checked.scorer is None)}")
    limit_s = checked.spec.engine.timeout_s + 2 * GRACE_S  # the engine's own watchdog is first, and says more
    pool = Pool(sites.cluster, recipe, sites.place, sites.n_engines, limit_s=limit_s, say=say)
    facts = pool.facts
    try:
        if facts is None:
            raise EngineError(
                where="engines", found="none started", expected="one at least", do="see the lines above, and Ray's logs"
            )
        _accept(checked, facts.sources, facts.noise, facts.canary_s, say)
    except BaseException:
        pool.close()
        raise
    return pool


def _accept(
    checked: Checked, sources: SourcesReport, noise: Noise, canary_s: float, say: Callable[[str], None]
) -> None:
    """Say what an engine is that has started.

    Raises:
        SettingsChanged: it has other weights than the study's.
    """
    stored = stored_attributes(checked.storage, checked.spec.name)
    if stored is not None and stored.settings is not None:
        do = "give the checkpoints it was made with, or search again under another --study-name"
        compare_settings(stored.settings, _weights(sources), name=checked.spec.name, do=do)
    say(
        f"canary passed in {canary_s:.1f} s: a switch takes effect, {noise.sentence()}; "
        f"||delta|| / ||aligned|| = {sources.relative_delta:.2e}, {sources.changed_share:.1%} of the entries differ"
    )


def _weights(sources: SourcesReport) -> Settings:
    return Settings(weights=WeightsSettings(aligned=sources.aligned, sft=sources.sft))
