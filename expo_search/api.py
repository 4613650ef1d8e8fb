"""Searching from Python: sessions, in which an engine runs, and studies, which are read.

The command line calls the same.

spec = load_study(preset="zephyr")
with open_session(spec, storage="sqlite:///z.db") as session:
    result = session.search(n_trials=20)
print(result.verdict.sentence())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from expo_search.config.options import (
    DEFAULT_SHAPES,
    DEFAULT_STORAGE,
    DEFAULT_TRIALS,
    OF_BENCH,
    OF_SEARCH,
    TaskOptions,
)
from expo_search.contracts import Model, PairwiseScorer, Part, Prompt, Scorer
from expo_search.errors import EngineDied, PromptsError, StudyError
from expo_search.folders import user_path
from expo_search.text import storable

if TYPE_CHECKING:
    from rich.console import Console

    from expo_search.bench.result import BenchResult
    from expo_search.config.spec import StudySpec
    from expo_search.evaluation.compare import Comparison
    from expo_search.evaluation.result import Evaluation
    from expo_search.evaluation.second_judge import Check
    from expo_search.results.dashboard_updates import DashboardUpdates
    from expo_search.results.study_results import StudyResult
    from expo_search.search.budget import Budget
    from expo_search.search.confirm import Confirmation
    from expo_search.search.shapes import Shapes
    from expo_search.session.benchmarks import Benchmarks
    from expo_search.session.preflight import Checked
    from expo_search.session.progress import Progress
    from expo_search.session.second_judge import SecondJudge
    from expo_search.session.working import Working
    from expo_search.store.study_store import Store


def open_session(
    study: StudySpec | str,
    storage: str = DEFAULT_STORAGE,
    *,
    model: Model | None = None,
    scorer: Scorer | PairwiseScorer | None = None,
    engines: int | Literal["auto"] | None = None,
    ray_address: str | None = None,
    start: bool = True,
    adds: bool = True,
    rates: bool = True,
    fetch: bool = True,
    artifacts: str | None = None,
    to_confirm: tuple[int, str] | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
    console: Console | None = None,
    give_up: Callable[[EngineDied], None] | None = None,
) -> Session:
    """Check all input of a study, then start its engine and reward model.

    Args:
        study: a spec, or the name of a study in the database, which then goes on with the spec that is kept there.
        storage: URL of the database; the study is made on first use.
        model: answers in the place of our engine: any object with the methods of `contracts.Model`. The names of the
            spec's checkpoints then only tell one study from another.
        scorer: rates in the place of a reward model: any object with the method of `contracts.Scorer`, or of
            `contracts.PairwiseScorer`, which compares answers with those at alpha = 0.
        engines: how many engines answer, which Ray runs where it is more than one; "auto": as many as there is room
            for. None is one, or with a `ray_address` as "auto".
        ray_address: of a cluster that runs, "auto" or HOST:PORT; without it many engines run on this machine.
        start: False starts engine and reward model when they are first needed.
        adds: False: nothing will be added to the study, so another process may search it at the same time.
        rates: False: no answer will be rated, as for `Session.bench` alone. What rates the study's is checked, but not
            loaded, and has no room in the memory plan; many engines, each of which has it, then start without.
        fetch: False: of weights that are on the Hub and not in its cache only headers are fetched. That is
            enough for a forecast (`session.forecast`); such a session cannot be started.
        artifacts: folder, or `s3://bucket/prefix`, for the trials' files; kept with the study. By default beside an
            SQLite database, or in the working directory.
        to_confirm: how many prompts a confirmation will want, and what messages call that number: too few are told at
            once.
        trust_remote_code: for a study that is named: run the repositories' own Python (a spec has its own setting).
        quiet: show nothing. console: where progress is shown; standard error, or the notebook, by default.
        give_up: called, from another thread, when the engine hangs where nothing can interrupt it.

    Raises:
        ExpoError: whatever is wrong with the input, before anything is started; or an engine that does not start.
    """
    session = Session(
        study,
        storage,
        model=model,
        scorer=scorer,
        engines=engines,
        ray_address=ray_address,
        adds=adds,
        rates=rates,
        fetch=fetch,
        artifacts=artifacts,
        to_confirm=to_confirm,
        trust_remote_code=trust_remote_code,
        quiet=quiet,
        console=console,
        give_up=give_up,
    )
    if start:
        try:
            session.start()
        except BaseException:
            session.close()
            raise
    return session


class Session:
    """A checked study and, once it is started, the engine that answers for it. See `open_session`."""

    def __init__(
        self,
        study: StudySpec | str,
        storage: str,
        *,
        model: Model | None,
        scorer: Scorer | PairwiseScorer | None,
        engines: int | Literal["auto"] | None,
        ray_address: str | None,
        adds: bool,
        rates: bool,
        fetch: bool,
        artifacts: str | None,
        to_confirm: tuple[int, str] | None,
        trust_remote_code: bool,
        quiet: bool,
        console: Console | None,
        give_up: Callable[[EngineDied], None] | None,
    ) -> None:
        # first: what is imported from here on changes the process as well
        from expo_search.session.process_state import process_left_as_it_was

        self._at_end = ExitStack()
        self._at_end.enter_context(process_left_as_it_was())
        from rich.console import Console

        from expo_search.session.preflight import check, check_stored
        from expo_search.session.sites import sites_for
        from expo_search.session.working import say_on

        self._console, self._quiet = console or Console(stderr=True), quiet
        self.say = say_on(self._console, quiet)  # shows a line where progress is shown
        self._own_model, self._fetch = model is None, fetch
        self._judge: SecondJudge | None = None
        try:
            self._artifacts = self._checked_place(artifacts)
            sites = sites_for(engines, ray_address)
            if sites is not None:
                if model is not None:
                    raise StudyError(
                        where="engines", found="a model beside them", expected="one of the two", do="drop one of them"
                    )
                self._at_end.callback(sites.close)
            with self.working("checking prompts, checkpoints and settings") as doing:
                how: dict[str, Any] = {
                    "adds": adds,
                    "own_model": self._own_model,
                    "own_scorer": scorer is None,
                    "rates": rates,
                    "sites": sites,
                    "doing": doing,
                    "fetch": fetch,
                    "to_confirm": to_confirm,
                }
                if isinstance(study, str):
                    checked = check_stored(storage, study, self.say, trust_remote_code=trust_remote_code, **how)
                else:  # a judge that the database names is found when it is asked for
                    checked = check(study, storage, self.say, with_judge=scorer is None, **how)
        except BaseException:
            self._at_end.close()
            raise
        from expo_search.session.running import Running  # which talks to databases: see `preflight`

        self.checked: Checked = checked
        self.running = Running(self.checked, self.say, give_up, model=model, scorer=scorer)
        self._at_end.callback(self.running.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine, free its memory, leave the process as it was. A study that was searched can be read on."""
        self._at_end.close()

    @property
    def name(self) -> str:
        """The study's name in the database."""
        return self.checked.spec.name

    @property
    def spec(self) -> StudySpec:
        """What is searched, with the context that the checkpoint allows."""
        return self.checked.spec

    @property
    def to_fetch(self) -> int:
        """Bytes of checkpoints that are still on the Hub alone; see `fetch` of `open_session`."""
        from expo_search.inputs.source import Source

        judge = None if self._judge is None else self._judge.source
        return self.checked.pair.to_fetch + (judge.to_fetch if isinstance(judge, Source) else 0)

    def start(self) -> None:
        """Start what is not running yet: the engine with its canary, the reward model, the study in the database.

        No reward model in a session that does not rate.

        Raises:
            ExpoError: an engine that does not start, weights that cannot be switched, other settings than the study's.
        """
        self._start_model()
        _ = self.running.store

    def _start_model(self) -> None:
        """What is enough to compare: the engine, the reward model."""
        running = self.running
        with self.working("starting vLLM and its canary") as doing:
            _ = running.model
            if self.checked.rates:
                doing("loading the reward model")
                _ = running.scorer

    def working(self, step: str) -> AbstractContextManager[Callable[[str], None]]:
        """A line in a terminal on what takes long; see `session.working`."""
        from expo_search.session.working import working

        return working(self._console, self._quiet, step)

    def why_done(self, n_trials: int = DEFAULT_TRIALS, budget: Budget | None = None) -> str | None:
        """Why a search for n_trials has nothing left to do, for people; None where it has. Starts nothing."""
        from expo_search.search.loop import why_done
        from expo_search.store.database import study_names
        from expo_search.store.study_store import Store

        self._flush()
        if self.name not in study_names(self.checked.storage):
            return None
        store = Store(self.checked.storage, self.name, read_only=True)
        try:
            published, n_prompts = self.spec.pair.published_alpha, len(self.checked.search_prompts)
            left = self._with_spent(budget, store)
            return why_done(store.study, self.spec.search, n_trials, published, left, n_prompts)
        finally:
            store.close()

    def result(self) -> StudyResult:
        """The study as it stands in the database."""
        self._flush()
        return open_study(self.checked.storage, self.name)

    def search(
        self,
        n_trials: int = DEFAULT_TRIALS,
        *,
        on_trial: Callable[[Evaluation], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        budget: Budget | None = None,
    ) -> StudyResult:
        """Search until the study has n_trials finished trials or is settled; it goes on where it stopped.

        Starts nothing where there is nothing left to do.

        Args:
            budget: what the study may spend; the search then goes on beyond settled, looks between its alphas, and ends
                where the next trial and a confirmation cannot be paid.
            on_trial: gets each trial once it is finished and stored.
            stop: asked after each look at a trial; true ends the search there, with all that is finished kept.

        Raises:
            EngineDied: the second time in one trial. What was stored is kept.
        """
        done = self.why_done(n_trials, budget)
        if done is not None:
            self._pin_again(n_trials if budget is None else None)
            self.say(f"study {self.name}: {done}")
            return self.result()
        from expo_search.search.loop import evaluations, search, why_done
        from expo_search.search.standing import read_standing
        from expo_search.stats.selection import few_prompts
        from expo_search.store.attributes import StudyAttributes

        few = few_prompts(len(self.checked.search_prompts))
        if few is not None:
            self.say(few)
        self.running.check_rates()
        self.start()
        running, published = self.running, self.spec.pair.published_alpha
        budget = self._with_spent(budget, running.store)
        if budget is None:
            running.store.keep(StudyAttributes(wanted=n_trials, budget={}))
        else:  # which pays for a number of trials that nobody knows before
            running.store.keep(StudyAttributes(budget=budget.kept(n_trials)))
        there = read_standing(running.store, None).there()
        if there:
            self.say(f"study {self.name}: {there}")
        with self._progress(n_trials, len(evaluations(running.store.study))) as progress:
            dashboard = self._dashboard()

            def finished(evaluation: Evaluation) -> None:
                progress.finished(evaluation)
                dashboard.on_trial(evaluation)
                if on_trial is not None:
                    self._flush()
                    on_trial(evaluation)

            search(
                running.store,
                running.objective(progress, self.checked.search_prompts),
                self.spec.search,
                n_trials,
                published_alpha=published,
                relative_delta=running.relative_delta,
                before_tell=dashboard.before_tell,
                on_trial=finished,
                on_failure=self._engine_failed,
                stop=stop,
                budget=budget,
            )
        stopped, n_prompts = stop(), len(self.checked.search_prompts)
        done = why_done(running.store.study, self.spec.search, n_trials, published, budget, n_prompts)
        if done is not None and budget is not None:  # so many as it paid
            running.store.keep(StudyAttributes(wanted=len(evaluations(running.store.study)), budget={}))
        if stopped or budget is not None:  # the last trial's note could not tell yet
            dashboard.refresh(stopped=stopped)
        if not stopped:
            self.say(done or "")
        return self.result()

    def n_fresh(self) -> int:
        """How many prompts there are that the search does not use; a confirmation can have them."""
        try:
            return len(self.checked.confirm_prompts(None))
        except PromptsError:
            return 0

    def n_confirmable(self, budget: Budget) -> int:
        """On how many fresh prompts what is left of a budget pays a confirmation, with what an unfinished one has."""
        from expo_search.evaluation.result import CONTROL
        from expo_search.store.study_store import Store

        spent, result, n_fresh = self.with_spent(budget), self.result(), self.n_fresh()
        best, is_done = result.verdict.best, result.verdict.confirmed is not None
        if spent is None:
            return 0
        if is_done or best is None:
            return spent.n_confirmable(result.evaluations, n_fresh)
        store = Store(self.checked.storage, self.name, read_only=True)
        try:
            answered = [store.n_completions(trial, "confirm", n_fresh) for trial in (CONTROL, best.trial)]
        finally:
            store.close()
        return spent.n_confirmable(result.evaluations, n_fresh, answered)

    def with_spent(self, budget: Budget | None) -> Budget | None:
        """The budget, with what the study's confirmations have taken of it. Starts nothing."""
        from expo_search.store.database import study_names
        from expo_search.store.study_store import Store

        if budget is None or self.name not in study_names(self.checked.storage):
            return budget
        store = Store(self.checked.storage, self.name, read_only=True)
        try:
            return self._with_spent(budget, store)
        finally:
            store.close()

    @staticmethod
    def _with_spent(budget: Budget | None, store: Store) -> Budget | None:
        """The budget, with what confirmations have taken of it."""
        if budget is None:
            return None
        from expo_search.evaluation.result import CONTROL

        trials = {CONTROL, *(t.number for t in store.study.get_trials(deepcopy=False))}
        return replace(
            budget,
            spent_before=sum(store.n_tokens(trial, "confirm") for trial in trials),
            n_answered=store.n_completions(CONTROL, "confirm", len(store.prompts("confirm"))),
        )

    def confirm(
        self,
        trial: Evaluation | None = None,
        n_prompts: int | None = None,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> Confirmation | None:
        """Measure a trial's alpha against alpha = 0 on prompts and seeds that the search never used.

        Args:
            trial: the recommended one by default.
            n_prompts: fresh prompts; all that the search left, by default.
            stop: as in `search`.

        Returns:
            What was measured, which is kept with the study; None: it was asked to stop before the end. On prompts on
            which that trial is confirmed already, what is kept; nothing is started then.

        Raises:
            StudyError: no trial to confirm.
            PromptsError: fewer fresh prompts than n_prompts.
        """
        from expo_search.evaluation.objective import Stopped
        from expo_search.search.confirm import confirm

        fresh = self.checked.confirm_prompts(n_prompts)
        if trial is None:
            trial = self.result().trial_at(None)
        there = self.confirmed(trial, n_prompts)
        if there is not None:
            self.say(f"study {self.name}: alpha = {trial.alpha:.4g} was measured on these {there.n} fresh prompts")
            return there
        self.running.check_rates()
        self.start()
        store = self.running.store
        self.say(f"confirming alpha = {trial.alpha:.4g} on {len(fresh)} fresh prompts")
        with self._progress(2, 0) as progress, store.owned():
            objective = self.running.objective(progress, fresh, "confirm")
            try:
                measured = confirm(store, objective, trial.trial, trial.alpha, fresh, stop, self._engine_failed)
            except Stopped:
                return None
            self._dashboard().refresh()
        return measured

    def confirmed(self, trial: Evaluation, n_prompts: int | None = None) -> Confirmation | None:
        """A trial's confirmation on these fresh prompts; None: there is none on just these. Starts nothing."""
        from expo_search.inputs.prompts import prompts_hash

        there = self.result().confirmations.get(trial.trial)
        fresh = prompts_hash(self.checked.confirm_prompts(n_prompts))
        return there if there is not None and there.prompts == fresh else None

    def unconfirmed(self, n_prompts: int) -> Evaluation | None:
        """The recommended trial, unless it is confirmed on these n_prompts fresh prompts already."""
        best = self.result().verdict.best
        return None if best is None or self.confirmed(best, n_prompts) is not None else best

    def find_judge(self, model: str | None = None, *, scorer: Scorer | None = None) -> str | None:
        """Find a second judge for `check`, and see that it can be one; its name, or None where none is asked for.

        Call it before anything is started: the memory is then planned so that it has room.

        Args:
            model: a reward model, a folder or Hub id; the one that the spec names, by default.
            scorer: rates in its place, as that of `open_session`; `model` is then a name for it.

        Raises:
            ExpoError: it is not there, is no whole reward model, or is the one that the search uses; no room for it.
        """
        from expo_search.session.second_judge import find_judge

        named = model is not None or scorer is not None or self.spec.pair.check_reward_model is not None
        with self.working("checking the second judge" if named else "checking") as doing:
            self._judge, checked = find_judge(self.checked, model, scorer, self.say, doing=doing, fetch=self._fetch)
        self.checked = self.running.checked = checked
        return None if self._judge is None else self._judge.name

    def check(self, trial: Evaluation | None = None, *, stop: Callable[[], bool] = lambda: False) -> Check | None:
        """Have the second judge (`find_judge`) rate a trial's stored answers and those at alpha = 0, and compare.

        They are those of the trial's confirmation where it has one, else those of the search. No engine is started and
        no token generated, and what is rated already is not rated again.

        Args:
            trial: the recommended one by default.
            stop: asked after each block of answers; what is rated by then is kept.

        Returns:
            What is then kept with the study; None: no judge was found, no alpha is recommended, it was stopped, or the
            judge was trained on the prompts (a line says so).

        Raises:
            RewardError: the judge cannot be loaded, or gives a reward that is not finite.
            StoreError: another process holds the study, and something is to be rated.
        """
        from expo_search.evaluation.second_judge import is_rated, read_check
        from expo_search.session.running import pin
        from expo_search.session.second_judge import judge_answers

        result, judge = self.result(), self._judge
        trial = trial or result.verdict.recommended
        if judge is None:
            return None
        if trial is None:
            self.say(f"study {self.name}: no alpha that is better than 0, so nothing to check with {judge.name}")
            return None
        fresh = result.confirmations.get(trial.trial)
        part: Part = "search" if fresh is None else "confirm"
        n = trial.gain.n if fresh is None else fresh.n
        with self._store() as store:
            if not is_rated(store, judge.key, trial.trial, part, n):
                with store.owned(), self.working(f"{judge.name} rates stored answers") as doing:
                    pin(store, self.checked)  # which names the judge
                    if not judge_answers(self.running, store, judge, trial.trial, part, n, doing, stop):
                        return None
                self._dashboard(store).refresh()
            found = read_check(store, judge.key, trial.trial, trial.alpha, part, n, self.spec.search.objective)
            if found is None:
                self.say(f"study {self.name}: {judge.name} was trained on these {n} prompts, so it checks nothing")
            return found

    @contextmanager
    def _store(self) -> Iterator[Store]:
        """The study, to write to: where an engine was started as it holds it, for a process has one lock of a study."""
        from expo_search.store.study_store import Store

        opened = vars(self.running).get("store")
        store = opened or Store(self.checked.storage, self.name, say=self.say)
        try:
            yield store
        finally:
            if opened is None:
                store.close()

    def shape(
        self,
        kind: str,
        n_trials: int = DEFAULT_SHAPES,
        n_confirm: int | None = None,
        *,
        on_trial: Callable[[Evaluation], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Shapes:
        """Search for a shape of the recommended alpha, an alpha for each weight; it goes on where it stopped.

        Starts nothing where there is nothing left to do.

        Args:
            kind: "depth", "attn-mlp" or "blocks:K" (`weights.shape`).
            n_trials: shapes to evaluate, beside the alpha that every weight has.
            n_confirm: fresh prompts on which the best shape is measured against that alpha, where one looks better;
                without them no shape is recommended.
            on_trial: gets each shape's trial once it is finished and stored.
            stop: as in `search`.

        Returns:
            The search for the shape as it stands; `results.shapes.shape_sentence` has its verdict.

        Raises:
            StudyError: no such kind, no recommended alpha, or a model without layers that it can be laid over.
            PromptsError: fewer fresh prompts than n_confirm.
            EngineDied: the second time in one trial. What was stored is kept.
        """
        from expo_search.evaluation.objective import Stopped
        from expo_search.search.shape_search import confirm_shape, search_shapes
        from expo_search.search.shapes import Beginning, read_shapes
        from expo_search.session.shapes import n_layers, shape_store, stored_shapes

        running, spec, result = self.running, self.spec, self.result()
        n = n_layers(self.checked.pair.aligned.path, kind, None if self._own_model else running.model)
        uniform = result.verdict.recommended
        if uniform is None:
            raise StudyError(
                where=f"--shape {kind} of study {self.name}",
                found=result.verdict.sentence(),
                expected="an alpha that is better than 0, to spread over the weights",
                do="search first, or on more prompts",
            )
        beginning = Beginning(self.name, uniform.trial, uniform.alpha, kind, n)
        fresh = None if n_confirm is None else self.checked.confirm_prompts(n_confirm, "--confirm")
        objective_kind = spec.search.objective
        known = stored_shapes(self.checked.storage, beginning, objective_kind)
        wants_more = known.n_shapes < n_trials
        if not wants_more and (fresh is None or known.best is None or known.is_confirmed_on(len(fresh))):
            return known
        self.running.check_rates()
        self.start()
        with (
            running.store.owned(),  # the first study is written to as well, and nobody else may begin the same
            shape_store(running, beginning, list(result.evaluations), self.say) as store,
            self._progress(n_trials, known.n_shapes) as progress,
        ):

            def finished(evaluation: Evaluation) -> None:
                progress.finished(evaluation)
                if on_trial is not None:
                    on_trial(evaluation)

            search_shapes(
                store,
                running.objective(progress, self.checked.search_prompts, store=store),
                spec.search,
                n_trials,
                on_trial=finished,
                on_failure=self._engine_failed,
                stop=stop,
            )
            found = read_shapes(store, objective_kind)
            self._dashboard().refresh()
            if stop() or fresh is None or found.best is None or found.is_confirmed_on(len(fresh)):
                return found
            self.say(f"confirming the best shape on {len(fresh)} fresh prompts")
            confirming = running.objective(progress, fresh, "confirm", store)
            try:
                confirm_shape(store, running.store, confirming, found.best, fresh, stop, self._engine_failed)
            except Stopped:
                return found
            self._dashboard().refresh()
            return read_shapes(store, objective_kind)

    def compare(self, alphas: Sequence[float], prompts: Sequence[str | Prompt]) -> Comparison:
        """Answers at several alphas side by side, with rewards. Nothing is added to the study.

        Raises:
            StudyError: an alpha that is not finite in float32.
            PromptsError: a prompt that is empty, no text, or leaves no room for an answer.
        """
        from expo_search.evaluation.compare import compare
        from expo_search.weights.formula import is_alpha

        for alpha in alphas:
            if not is_alpha(alpha):
                raise StudyError(
                    where=f"alpha {alpha}",
                    found="a number that is not finite in float32",
                    expected="one that is",
                    do="give another alpha",
                )
        given = [p if isinstance(p, Prompt) else Prompt(f"given-{i}", p) for i, p in enumerate(dict.fromkeys(prompts))]
        for prompt in given:
            self._check_prompt(prompt)
        running = self.running
        running.check_rates()
        running.check_calibrated()
        self._start_model()
        return compare(running.model, running.single_scorer, alphas, given, self.spec.search.seed, self.say)

    def bench(
        self,
        tasks: Sequence[str],
        alphas: Sequence[float] | None = None,
        *,
        data: Mapping[str, str | Path] | None = None,
        limit: int | None = None,
        again: bool = False,
        out: str | Path | None = None,
        judge: str | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> BenchResult | None:
        """Answer tasks that no reward model sees at alpha = 0 and at others, and compare them item by item.

        Starts the engine, and no reward model, where an item is not answered yet. Many engines have theirs beside them,
        unless the session was opened with `rates=False`.

        Args:
            tasks: names (`expo-search bench --help` has them).
            alphas: beside 0; by default the recommended one, or where the verdict is to keep 0, which is said, the best
                other. One that a trial has but for the digits that tables show is that trial's.
            data: files in the place of the Hub's data sets, by the task's name.
            limit: the first items of each task.
            again: forget what is stored of these tasks.
            judge: one of `alpaca_eval`, by name or folder, that compares the answers to its instructions with those at
                alpha = 0.
            out: a folder for the answers of those tasks that another program judges, in its format.
            stop: asked after each answer; true ends it there, with all that is finished kept.

        Returns:
            What is stored of these items at these alphas now; None: it was asked to stop before the end.

        Raises:
            StudyError: no trial to recommend; a task that is unknown or wants what is not installed.
            PromptsError: data that are missing, or of another form; items that are too long.
            SettingsChanged: stored answers of a task were made under other settings.
        """
        from expo_search.evaluation.objective import Stopped
        from expo_search.results.answer_files import check_folder, write_files
        from expo_search.session.bench_progress import BenchProgress
        from expo_search.store.study_store import Store

        storage, name = self.checked.storage, self.name
        alphas = [self._best_to_bench()] if alphas is None else [self._evaluated(alpha) for alpha in alphas]
        benchmarks = self._benchmarks(tasks, alphas, data, limit)
        if judge is not None:
            judge = benchmarks.checked_judge(judge)
        if out is not None:
            benchmarks.check_written()
            out = user_path(out)
            check_folder(out, "--out")
        if benchmarks.is_done(storage, name, again=again):
            self.say(f"study {name}: every item is answered at {len(benchmarks.alphas)} alphas")
        else:
            try:
                with self.working("starting vLLM and its canary"):
                    _ = self.running.model
                with BenchProgress(self._console, quiet=self._quiet) as progress:
                    benchmarks.run(self.running, progress, again=again, stop=stop, on_failure=self._engine_failed)
            except Stopped:
                return None
            self._dashboard().refresh()
        if judge is not None:
            with self._store() as store:
                benchmarks.judge(judge, store, self.say)
        stored = Store(storage, name, read_only=True)
        try:
            if out is not None:
                write_files(benchmarks.files(stored), user_path(out), "--out")
            return benchmarks.read(stored)
        finally:
            stored.close()

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the study for this process over several calls; starts what is not running yet.

        Raises:
            StoreError: another live process holds it.
        """
        self.start()
        with self.running.store.owned():
            yield

    def check_bench(
        self, tasks: Sequence[str], *, data: Mapping[str, str | Path] | None = None, limit: int | None = None
    ) -> None:
        """Find out whether tasks can be benchmarked after a search, before anything is started. Raises as `bench`."""
        from expo_search.store.database import study_names
        from expo_search.store.study_store import Store

        benchmarks = self._benchmarks(tasks, [], data, limit, OF_SEARCH)
        if self.name in study_names(self.checked.storage):
            store = Store(self.checked.storage, self.name, read_only=True)
            try:
                benchmarks.check_stored(store)
            finally:
                store.close()

    def bench_winner(
        self,
        tasks: Sequence[str],
        *,
        data: Mapping[str, str | Path] | None = None,
        limit: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> BenchResult | None:
        """Benchmark the recommended alpha; where it loses more than `[guardrails.bench]` allows, the next best one.

        Ends with an alpha that holds, or with none that is better than 0; `result` has the verdict. Arguments, return
        value and errors as in `bench`; None also where there is no winner to look at.
        """
        measured: BenchResult | None = None
        seen: set[float] = set()
        while (verdict := self.result().verdict).best is not None and verdict.word == "better":
            if verdict.best.alpha in seen:
                return measured
            seen.add(verdict.best.alpha)
            measured = self.bench(tasks, [verdict.best.alpha], data=data, limit=limit, stop=stop)
            if measured is None:
                return None
        self.say(f"study {self.name}: no alpha that is better than 0, so nothing to benchmark")
        return measured

    def _benchmarks(
        self,
        tasks: Sequence[str],
        alphas: Sequence[float],
        data: Mapping[str, str | Path] | None,
        limit: int | None,
        options: TaskOptions = OF_BENCH,
    ) -> Benchmarks:
        from expo_search.session.benchmarks import prepare

        files = {task: user_path(file) for task, file in (data or {}).items()}
        own, say = self._own_model, self.say
        return prepare(self.checked, tasks, alphas, data=files, limit=limit, own_model=own, say=say, options=options)

    def _evaluated(self, alpha: float) -> float:
        """The alpha of the trial that is nearest, where that is the same but for digits that no table shows."""
        near = min((e.alpha for e in self.result().evaluations), key=lambda a: abs(a - alpha), default=alpha)
        return near if abs(near - alpha) < 1e-3 * abs(alpha) else alpha

    def _best_to_bench(self) -> float:
        """The alpha of the trial that the verdict is about; where the verdict is to keep 0, that is said."""
        result = self.result()
        best = result.trial_at(None)
        if result.verdict.recommended is None:
            self.say(
                f"study {self.name}: the verdict is to keep alpha = 0; what the best other alpha, {best.alpha:.4g}, "
                "does is measured all the same (--alphas takes others)"
            )
        return best.alpha

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.text.strip():
            fault = "an empty text"
        elif (
            storable(prompt.text) != prompt.text
        ):  # how Python hands on bytes that are no text; no tokenizer takes them
            fault = "bytes that are not UTF-8"
        elif not self.checked.fits(prompt):
            fault = f"{len(prompt.text)} characters"
        else:
            return
        raise PromptsError(
            where="--prompt",
            found=fault,
            expected="a text that leaves room for an answer in the context",
            do="give another text",
        )

    def _flush(self) -> None:
        """Let the database have all that the search has kept: it may be written behind the search."""
        store = vars(self.running).get("store")
        if store is not None:
            store.flush()

    def _pin_again(self, n_trials: int | None) -> None:
        """Keep where the checkpoints of a finished study lie now, and how many trials are wanted; None: those there."""
        from expo_search.search.loop import evaluations
        from expo_search.session.running import pin
        from expo_search.store.attributes import StudyAttributes
        from expo_search.store.study_store import Store

        store = Store(self.checked.storage, self.name)
        try:
            pin(store, self.checked)
            n = len(evaluations(store.study)) if n_trials is None else n_trials
            store.keep(StudyAttributes(wanted=n, budget={}))
        finally:
            store.close()

    def _progress(self, n_trials: int, n_finished: int) -> Progress:
        from expo_search.session.progress import Progress

        pool = self.running.pool
        engines = None if pool is None else pool.engines
        return Progress(self._console, n_trials, n_finished, quiet=self._quiet, engines=engines)

    @staticmethod
    def _checked_place(artifacts: str | None) -> str | None:
        """Where the artifacts go, where that is said."""
        if artifacts is None:
            return None
        from expo_search.results.artifacts import check_place, given_place

        place = given_place(artifacts)
        check_place(place)
        return place

    def _dashboard(self, store: Store | None = None) -> DashboardUpdates:
        from expo_search.results.artifacts import default_place
        from expo_search.results.dashboard_updates import DashboardUpdates
        from expo_search.store.attributes import StudyAttributes

        store = store or self.running.store
        store.keep(StudyAttributes(artifacts=self._artifacts))
        return DashboardUpdates(store, store.attributes.artifacts or default_place(store.url), self.say)

    def _engine_failed(self, fault: EngineDied) -> None:
        self.say(f"{fault}; starting the engine anew")


def open_study(storage: str, name: str) -> StudyResult:
    """A study of a database: trials, confirmations, verdict. Starts no engine and writes nothing.

    Raises:
        StoreError: no such database or study.
    """
    from expo_search.results.study_results import read_result
    from expo_search.store.study_store import Store

    store = Store(storage, name, read_only=True)
    try:
        return read_result(store)
    finally:
        store.close()


def export(
    study: StudyResult,
    out: str | Path,
    *,
    alpha: float | None = None,
    shape: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    force: bool = False,
    as_adapter: bool = False,
    verify: bool = False,
    push_to: str | None = None,
    private: bool = False,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
    on_bytes: Callable[[int, int], None] = lambda _done, _total: None,
    working: Working | None = None,
    give_up: Callable[[EngineDied], None] | None = None,
) -> float:
    """Write the model at a study's best alpha as an ordinary checkpoint, with its card; the alpha.

    Args:
        alpha: one that was evaluated; the verdict's by default.
        shape: the kind of a shape that was searched (`Session.shape`); its best one is written, where that is shown to
            be better than one alpha for all weights, or with `force`.
        dtype: bfloat16, float16 or float32; aligned's by default.
        force: replace an exported folder; export an alpha that was not evaluated.
        as_adapter: write the pair's LoRA adapter, rescaled, in the place of a checkpoint.
        verify: load what was written in a fresh engine and compare with the trial, or leave nothing.
        push_to: a repository of the Hub to upload it to; `private`: make it private.
        say: gets a line for each stage. on_bytes: gets bytes written, and bytes in all.
        working: is entered, with what is being done, for what takes long and writes no bytes; what it yields gets the
            step within, or "" when that is over. None: nobody is told.
        give_up: as of `open_session`, for the engine of `verify`.

    Raises:
        StudyError: the verdict is to keep alpha = 0 and no alpha is given; what else cannot be exported.
        SettingsChanged: the checkpoints are not those that were searched.
        CheckpointError: weights that are not finite, or `verify` found other ones than the trial's.
    """
    from expo_search.exporting.study import export_study
    from expo_search.exporting.wanted import Wanted
    from expo_search.session.process_state import process_left_as_it_was
    from expo_search.session.working import unseen

    wanted = Wanted(
        out=user_path(out),
        alpha=alpha,
        shape=shape,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        force=force,
        as_adapter=as_adapter,
        verify=verify,
        push_to=push_to,
        private=private,
        trust_remote_code=trust_remote_code,
    )
    with process_left_as_it_was():
        return export_study(study.url, study.name, wanted, say, on_bytes, working or unseen, give_up)
