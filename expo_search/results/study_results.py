"""a stored study -> what every view of it shows: its finished trials, their verdict, the fit through them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from expo_search.bench.result import Asked, BenchResult, read_bench
from expo_search.config.spec import SearchSpec, asks_consent
from expo_search.evaluation.ensemble import Calibration
from expo_search.evaluation.judge import JUDGE
from expo_search.evaluation.result import Evaluation
from expo_search.evaluation.second_judge import Check
from expo_search.results.bench_guardrails import losses, not_measured, sentences, unmeasured
from expo_search.results.curve.layout import Band
from expo_search.results.next_commands import bench_on, go_on, next_steps, search_again
from expo_search.results.reward_models import ModelGain, ensemble_sentence, read_model_gains, study_calibration
from expo_search.results.second_judge import check_sentence, read_checks
from expo_search.results.shapes import shape_remark
from expo_search.results.terminal import cells
from expo_search.results.trials_csv import trial_row
from expo_search.results.verdict import Verdict, confirmed_word, trial_at, verdict
from expo_search.search.confirm import Confirmation, confirmations
from expo_search.search.loop import evaluations
from expo_search.search.proposal import posterior
from expo_search.search.shapes import Shapes, shapes_from
from expo_search.search.standing import Standing, read_standing
from expo_search.stats.gain_curve import collapsed
from expo_search.store.bench_store import BenchStore
from expo_search.store.study_store import Store
from expo_search.text import clean

if TYPE_CHECKING:
    import pandas as pd

_LEAST = 3  # alphas through which a fit says more than its own assumptions
_TWO_SIDED = 1.96  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class StudyResult:
    """A study as it was when it was read: its finished trials in order, its confirmations by trial, its verdict.

    Attributes:
        name, url: of the study, and of its database.
        bench: what its alphas do on tasks that no reward model sees.
        limits: how much of a task's mean an alpha may lose (`[guardrails.bench]`); one that is shown to lose more is in
            no verdict.
        checks: what second judges make of its trials.
        shapes: the searches for an alpha for each weight that start from its trials.
        standing: how far its search is. goes_on: the command that goes on with it, where it is known.
        bench_goes_on: the commands that go on with benchmarks that were not finished, unless a live process is at them.
        scorer: what rates its answers in the place of a reward model, with its files' hashes; empty: a reward model.
        asks_consent: whether that runs again with consent alone.
        calibration: of a study that several reward models rate; model_gains: what each of them makes of its best alpha.
    """

    name: str
    url: str
    evaluations: Sequence[Evaluation]
    confirmations: Mapping[int, Confirmation]
    verdict: Verdict
    bench: BenchResult = field(default_factory=BenchResult)
    limits: Mapping[str, float] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    goes_on: str = ""
    scorer: str = ""
    checks: Sequence[Check] = ()
    shapes: Sequence[Shapes] = ()
    asks_consent: bool = False
    calibration: Calibration | None = None
    model_gains: Sequence[ModelGain] = ()
    bench_goes_on: Sequence[str] = ()

    @property
    def remarks(self) -> list[str]:
        """For people, beside the verdict.

        What second judges make of its alpha, whether a shape of it beats it, how far an unfinished search is, what
        rates, what a benchmark rules out, which guardrails it was not held to, which other alphas fresh prompts show to
        be better than 0.
        """
        best = None if self.best is None else self.best.trial
        checked = [check_sentence(c) for c in self.checks if c.trial == best]
        shaped = [shape_remark(s) for s in self.shapes if s.beginning.trial == best]
        unfinished = self.standing.sentence(self.goes_on)
        kind = "" if self.scorer.startswith(JUDGE) else "scorer "
        rated = f"Rated by the {kind}{self.scorer}." if self.scorer else ""
        if self.calibration is not None:
            rated = ensemble_sentence(self.calibration, self.model_gains)
        ruled_out = sentences(losses(self.bench, self.limits), self.limits)
        told = [*checked, *shaped, *filter(None, [unfinished, rated]), *ruled_out, *self._unmeasured()]
        return [*told, *self._others_confirmed()]

    def _unmeasured(self) -> list[str]:
        """For people: the `[guardrails.bench]` that the recommended alpha was not held to, with what measures them."""
        if self.verdict.recommended is None:
            return []
        alpha = self.verdict.alpha
        by_command: dict[str, list[str]] = {}
        missing = unmeasured(self.bench, self.limits, alpha)
        fresh = Asked([task for task, begun in missing.items() if begun is None])
        for task, begun in missing.items():
            asked = fresh if begun is None else replace(begun, alphas=())  # at the recommended alpha, by itself
            command = bench_on(self.name, self.url, asked, alpha, asks_consent=self.asks_consent)
            by_command.setdefault(command, []).append(task)
        ends = {task: "" if begun is None else " to the end" for task, begun in missing.items()}
        return [
            f"The {not_measured(tasks)}{ends[tasks[0]]} at alpha = {alpha:.4g}: `{command}`."
            for command, tasks in by_command.items()
        ]

    def _others_confirmed(self) -> list[str]:
        """For people: alphas that fresh prompts show to be better than 0 where the verdict is to keep 0."""
        if self.verdict.recommended is not None or self.best is None:
            return []
        about = f"the verdict is about alpha = {self.best.alpha:.4g}, which the search picked"
        return [
            f"Fresh prompts show alpha = {c.alpha:.4g} to be better than 0, by itself; {about}."
            for c in self.confirmations.values()
            if c.trial != self.best.trial and confirmed_word(c) == "better"
        ]

    @property
    def better_shapes(self) -> list[str]:
        """Kinds of shapes that are shown to be better than the recommended alpha, which all weights have."""
        trial = None if self.verdict.recommended is None else self.verdict.recommended.trial
        return [s.beginning.kind for s in self.shapes if s.beginning.trial == trial and s.is_better]

    @property
    def next_steps(self) -> list[tuple[str, str]]:
        """(command, purpose) of what can be done with it now."""
        has = {"has_bench": bool(self.bench.tasks), "asks_consent": self.asks_consent}
        steps = next_steps(self.name, self.url, self.verdict, **has, shapes=self.better_shapes)
        begun = [(command, "the benchmark, from where it stopped") for command in self.bench_goes_on]
        if self.goes_on and not self.standing.is_running:
            begun = [(self.goes_on, "the search, from where it stopped"), *begun]
        return [*begun, *steps]

    @property
    def other_checks(self) -> list[str]:
        """For people, what second judges make of other trials than the verdict's."""
        others = [c for c in self.checks if self.best is None or c.trial != self.best.trial]
        return [f"alpha = {c.alpha:.4g}: {check_sentence(c)}" for c in others]

    @property
    def best(self) -> Evaluation | None:
        """The trial to recommend among those at other alphas than 0, whatever the verdict on it; None: none may win."""
        return self.verdict.best

    def trial_at(self, alpha: float | None) -> Evaluation:
        """The finished trial at an alpha other than 0; with None the best one.

        Raises:
            StudyError: there is none; names the nearest that there are.
        """
        return trial_at(self.evaluations, alpha, self.name, self.best)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a trial, as `expo-search show --csv` prints it: numbers in full precision."""
        import pandas as pd

        return pd.DataFrame([trial_row(e) for e in self.evaluations])

    def _repr_html_(self) -> str:
        """As a notebook shows it: the verdict, the curve, the trials. Every text is escaped."""
        import pandas as pd

        from expo_search.results.curve.static import curve_svg

        table = pd.DataFrame([cells(e, self.verdict) for e in self.evaluations])
        picture = curve_svg(self.evaluations, self.verdict, band=self.band) if len(self.evaluations) > 1 else ""
        verdict = html.escape(clean(self.verdict.sentence()))
        return f"<p><b>{verdict}</b></p>\n{picture}\n{table.to_html(index=False, escape=True)}"

    @cached_property
    def band(self) -> Band | None:
        """The fit of the gain with its 95 % interval, between 0 and the trials' ends; None with too few trials."""
        trials = [e for e in self.evaluations if e.alpha != 0]
        alphas = [0.0, *(e.alpha for e in trials)]
        if len({e.alpha for e in trials if not collapsed(e, trials)}) < _LEAST:
            return None
        fit = posterior(trials, min(alphas), max(alphas))
        half = _TWO_SIDED * fit.sd
        ends = (fit.alphas, fit.mean, fit.mean - half, fit.mean + half)
        return Band(*([float(x) for x in end] for end in ends))


def read_result(store: Store, *, untold: Evaluation | None = None, stopped: bool = False) -> StudyResult:
    """Read a study from the database.

    `untold` is a trial that is evaluated but not told yet; `stopped`: this process holds the study, but searches no
    more.
    """
    known = [*evaluations(store.study), *([] if untold is None else [untold])]
    kept = store.attributes
    spec = kept.spec
    search = None if spec is None else SearchSpec.model_validate(spec["search"])
    confirmed = confirmations(store)
    bench, limits = read_bench(BenchStore(store)), bench_limits(spec)
    published = None if spec is None else spec.get("pair", {}).get("published_alpha")
    lost = losses(bench, limits)
    judged = verdict(known, confirmed, search=search, published_alpha=published, lost=lost)
    again = search_again(spec, store.name, store.url, judged.edge, len(known))
    standing = read_standing(store, spec, stopped=stopped)
    on = "" if standing.is_done else go_on(spec, store.name, store.url, standing.n_wanted, kept.budget)
    judged = replace(judged, again=again)
    scorer = "" if kept.settings is None else kept.settings.reward.scorer
    checks = read_checks(store, known, confirmed, judged.objective)
    shapes = shapes_from(store, judged.objective)
    reward: Mapping[str, Any] = (spec or {}).get("reward", {})
    given = bool((spec or {}).get("trust_remote_code"))
    asks = given or asks_consent(reward.get("scorer"), reward.get("judge_url"))
    calibration = study_calibration(kept)
    gains = read_model_gains(store, calibration, judged.best, judged.confirmed)
    begun = [task.asked for task in bench.tasks if task.asked is not None]
    if begun and not stopped and store.is_owned():
        begun = []
    best = None if judged.best is None else judged.best.alpha
    bench_on_by = [bench_on(store.name, store.url, asked, best, asks_consent=asks) for asked in begun]
    return StudyResult(
        store.name,
        store.url,
        known,
        confirmed,
        judged,
        bench,
        limits,
        standing,
        on,
        scorer,
        checks,
        shapes,
        asks,
        calibration,
        gains,
        tuple(dict.fromkeys(bench_on_by)),  # a run of several tasks has one
    )


def bench_limits(spec: Mapping[str, Any] | None) -> Mapping[str, float]:
    """The `[guardrails.bench]` of a stored spec."""
    kept: Mapping[str, Any] = (spec or {}).get("guardrails", {}).get("bench", {})
    return {task: float(limit) for task, limit in kept.items()}
