"""What a search may spend: as typed, as counted, and what is done with it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from bench_fakes import YesModel
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, make_evaluation, make_prompts
from rich.console import Console
from twins import write_prompts

import expo_search as es
from expo_search.cli import search as command
from expo_search.cli.bench import Wanted
from expo_search.config import amounts
from expo_search.config.spec import SearchSpec
from expo_search.contracts import Prompt
from expo_search.errors import StudyError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import verdict
from expo_search.search.budget import Budget, more
from expo_search.search.confirm import confirm
from expo_search.search.loop import search, why_done
from expo_search.search.standing import read_standing
from expo_search.search.thorough import exploring, is_exhausted, propose_thoroughly
from expo_search.stats.paired import Estimate
from expo_search.store.study_store import Store

N = 128
PROMPTS, FRESH = make_prompts(2 * N)[:N], make_prompts(2 * N)[N:]
SPEC = SearchSpec(seed=3)


@pytest.mark.parametrize(
    ("text", "expected"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45), ("1d 2h", None)]
)
def test_a_time_is_read_with_its_units(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(StudyError, match="a time above 0 with its unit"):
            amounts.seconds(text, where="--time")
    else:
        assert amounts.seconds(text, where="--time") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("3M", 3_000_000), ("250k", 250_000), ("1.5G", 1_500_000_000), ("7", 7)]
)
def test_tokens_are_read_with_their_factor(text: str, expected: int) -> None:
    assert amounts.tokens(text, where="--tokens") == expected


@pytest.mark.parametrize("text", ["", "-3", "3 apples", "1e6", "nan", "0", "h", "9" * 400])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(StudyError, match="3M, 250k or 40000"):
        amounts.tokens(text, where="--tokens")
    with pytest.raises(StudyError, match="2h, 90m or 1h30m"):
        amounts.seconds(text, where="--time")


@pytest.mark.parametrize("typed", ["2h", "1h30m", "45s", "1d2h3m4s", "1.5s", "0.001s"])
def test_a_time_is_written_as_it_is_read(typed: str) -> None:
    assert amounts.as_time(amounts.seconds(typed, where="--time")) == typed


@pytest.mark.parametrize("seconds", [0.1 * 3600, 1.1 * 3600, 59.9999, 1e-9, 3599.9996])
def test_a_time_that_is_written_is_read_to_a_thousandth(seconds: float) -> None:
    assert amounts.seconds(amounts.as_time(seconds), where="--time") == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize("typed", ["3M", "250k", "1500M", "40001"])
def test_tokens_are_written_as_they_are_read(typed: str) -> None:
    assert amounts.as_tokens(amounts.tokens(typed, where="--tokens")) == typed


class TestCounting:
    # 100 prompts of 12.5 tokens each, 1,250 in all; the longer answers of a whole trial are what the next may take
    CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
    LONGER = replace(make_evaluation(1, 0.3, 0.1, 0.1), mean_length=25.0, n_tokens=2500)

    def test_a_trial_is_paid_only_if_the_confirmation_after_it_is(self) -> None:
        spent = [self.CONTROL, self.LONGER]  # 3,750 tokens; 30 prompts at two alphas are 1,500 more
        assert Budget(tokens=3750 + 2500 + 1500, n_confirm=30).fits(spent, 100)
        assert not Budget(tokens=3750 + 2500 + 1499, n_confirm=30).fits(spent, 100)
        assert Budget(tokens=3750 + 625 + 1500, n_confirm=30).fits(spent, 25)
        assert not Budget(tokens=3750 + 2500 + 1500, n_confirm=30, spent_before=1).fits(spent, 100)

    def test_what_alpha_0_has_answered_of_the_confirmation_is_not_kept_back_again(self) -> None:
        spent = [self.CONTROL, self.LONGER]
        assert Budget(tokens=3750 + 2500 + 750, n_confirm=30, n_answered=30).fits(spent, 100)
        assert Budget(tokens=3750 + 2500 + 750, n_confirm=30, n_answered=500).fits(spent, 100)
        assert not Budget(tokens=3750 + 2500 + 750, n_confirm=30, n_answered=29).fits(spent, 100)

    def test_what_is_left_pays_a_confirmation_on_so_many_prompts(self) -> None:
        assert Budget(tokens=3750 + 2500).n_confirmable([self.CONTROL, self.LONGER], 1000) == 50
        begun = Budget(tokens=3750 + 2500, spent_before=1000)  # of 40 answers
        assert begun.n_confirmable([self.CONTROL, self.LONGER], 1000, [20, 20]) == 50
        assert begun.n_confirmable([self.CONTROL, self.LONGER], 30, [20, 20]) == 30
        assert Budget(tokens=10).n_confirmable([self.CONTROL, self.LONGER], 1000) == 0

    def test_answers_that_another_alphas_confirmation_left_pay_for_no_more_than_themselves(self) -> None:
        left_for_20 = Budget(tokens=3750 + 500)
        assert left_for_20.n_confirmable([self.CONTROL, self.LONGER], 1000, [200, 0]) == 20
        assert Budget(tokens=3750 + 6000).n_confirmable([self.CONTROL, self.LONGER], 1000, [200, 0]) == 220

    def test_time_is_counted_in_tokens_by_the_speed_so_far(self) -> None:
        # 1,250 generated in 3.15 s each: 397 tokens a second, or 15.9 prompts of 25
        spent = [self.CONTROL, self.LONGER]
        late = Budget(seconds=100.0, began=0.0, clock=lambda: 95.0)
        assert late.fits(spent, 79)
        assert not late.fits(spent, 80)
        assert not Budget(seconds=100.0, began=0.0, clock=lambda: 101.0).fits(spent, 1)

    def test_the_tighter_limit_counts_and_without_one_everything_fits(self) -> None:
        spent = [self.CONTROL, self.LONGER]
        assert Budget().fits(spent, 10**9)
        assert not Budget(tokens=10**9, seconds=100.0, began=0.0, clock=lambda: 99.9).fits(spent, 100)

    def test_it_says_what_was_spent_and_what_more_would_bring(self) -> None:
        spent = [self.CONTROL, self.LONGER]
        said = Budget(tokens=3_000_000, seconds=7200.0, began=0.0, clock=lambda: 600.0).spent(spent)
        assert said == "3,750 of 3,000,000 tokens and 10.0 of 120.0 minutes"
        assert more(spent, 0.0123) == (
            "going on is expected to add 0.012 to the gain, at 2,500 tokens a trial on all prompts"
        )


def narrow(alpha: float) -> float:
    """Nothing but a peak at 3, between the steps 2 and 4 of the doubling."""
    return 0.4 * math.exp(-0.5 * ((alpha / 3 - 1) / 0.1) ** 2)


def run(url: Path, truth: Any, budget: Budget | None, n_trials: int = 60) -> tuple[Store, list[Evaluation], Objective]:
    store = Store(f"sqlite:///{url / 'budget.db'}", "s")
    objective = Objective(
        FakeModel(collapse=9.0), FakeScorer(truth=truth, noise=0.3), store, PROMPTS, FakeWatcher(), seed=3
    )
    return store, search(store, objective, SPEC, n_trials, budget=budget), objective


@pytest.mark.parametrize("units", [3, 7])
def test_it_stays_within_its_tokens_with_the_confirmation(tmp_path: Path, units: int) -> None:
    whole = sum(1 + int(9 * x) for x in _lengths())
    budget = Budget(tokens=units * whole, n_confirm=N // 2)
    store, found, objective = run(tmp_path, narrow, budget)
    spent = sum(e.n_tokens for e in found)
    best = verdict(found).best
    assert best is not None
    n = budget.n_confirmable(found, 1000)
    assert n >= N // 2, "enough is left"
    confirm(
        store,
        Objective(FakeModel(), FakeScorer(truth=narrow), store, FRESH[: N // 2], FakeWatcher(), part="confirm"),
        best.trial,
        best.alpha,
        FRESH[: N // 2],
    )
    confirming = store.n_tokens(CONTROL, "confirm") + store.n_tokens(best.trial, "confirm")
    assert spent + confirming <= 1.05 * units * whole, "other prompts' answers may be a little longer"
    done = why_done(store.study, SPEC, 60, None, budget, objective.n_prompts)
    assert done is not None
    assert f"of {units * whole:,} tokens" in done
    store.close()


def _lengths() -> list[float]:
    from fakes import unit

    return [unit("length", p.id) for p in PROMPTS]


def test_where_it_pays_for_alpha_0_alone_no_gain_of_going_on_is_told(tmp_path: Path) -> None:
    """The fit has seen no gain then, and what it expected would be its prior, whatever the reward's unit is."""
    store, [control], objective = run(tmp_path, narrow, Budget(tokens=1))
    done = why_done(store.study, SPEC, 60, None, Budget(tokens=1), objective.n_prompts)
    n = f"{control.n_tokens:,}"
    assert done == f"budget: {n} of 1 tokens after 1 trial; going on costs {n} tokens a trial on all prompts"
    store.close()


def test_more_of_it_finds_a_peak_between_the_steps_of_the_doubling(tmp_path: Path) -> None:
    """Where a search without one is settled; what it finds is evaluated on all prompts, and so can be recommended."""
    (tmp_path / "without").mkdir()
    store, without, _ = run(tmp_path / "without", narrow, None)
    assert verdict(without).alpha == 0
    store.close()
    store, found, _ = run(tmp_path, narrow, Budget(tokens=10**9), 16)
    judged = verdict(found)
    assert abs(judged.alpha - 3) < 0.35
    assert judged.best is not None
    assert not judged.best.stopped_early
    store.close()


class TestThorough:
    @staticmethod
    def trial(number: int, alpha: float, gain: float, outcome: Any = "enough", se: float = 0.05) -> Evaluation:
        return replace(make_evaluation(number, alpha, gain, se), outcome=outcome)

    def settled_without_a_gain(self) -> list[Evaluation]:
        steps = [self.trial(i, a, -0.02) for i, a in enumerate((0.25, 0.5, 1.0, 2.0), 1)]
        low = [self.trial(5, 4.0, -0.15), self.trial(6, 8.0, -0.15, "hopeless"), self.trial(7, 0.0625, -0.02)]
        return [make_evaluation(0, 0.0, 0.0, 0.0), *steps, *low]

    @pytest.mark.slow
    def test_once_settled_it_halves_the_widest_gap_until_none_is_wide(self) -> None:
        trials = self.settled_without_a_gain()
        ends = (0.0, 64.0, 0.25)
        assert exploring(trials, *ends, None) is None
        found = []
        while (alpha := exploring(trials, *ends, 0.5)) is not None and len(trials) < 60:
            assert propose_thoroughly(trials, *ends, 0.5) == alpha
            found.append(alpha)
            trials.append(self.trial(len(trials) + 1, alpha, -0.02))
        assert found[0] == pytest.approx(0.125), "the widest: 0.0625 to 0.25"
        places = sorted(e.alpha for e in trials if e.alpha > 0)
        assert all(b <= 1.25 * a * (1 + 1e-9) for a, b in pairwise(places))
        assert is_exhausted(trials, *ends, 0.5)

    def test_what_stands_out_on_a_part_of_the_prompts_is_tried_on_all_of_them_beside_it(self) -> None:
        trials = [*self.settled_without_a_gain(), self.trial(8, math.sqrt(8), 0.4)]
        assert propose_thoroughly(trials, 0.0, 64.0, 0.25, 0.5) == pytest.approx(1.01 * math.sqrt(8))
        assert exploring(trials, 0.0, 64.0, 0.25, 0.5) is None
        tried = [*trials, replace(self.trial(9, 1.01 * math.sqrt(8), 0.1, "complete"), gain=Estimate(0.1, 0.025, 400))]
        assert propose_thoroughly(tried, 0.0, 64.0, 0.25, 0.5) != pytest.approx(1.01 * math.sqrt(8))

    def test_what_stood_out_and_was_stopped_on_all_prompts_is_not_tried_there_again(self) -> None:
        """The same answers would stop it again, and again, until the budget is gone."""
        trials = [*self.settled_without_a_gain(), self.trial(8, math.sqrt(8), 0.4)]
        beside = propose_thoroughly(trials, 0.0, 64.0, 0.25, 0.5)
        stopped = [*trials, self.trial(9, beside, -0.1, "hopeless")]
        assert propose_thoroughly(stopped, 0.0, 64.0, 0.25, 0.5) != pytest.approx(beside)

    def test_in_a_range_that_was_narrowed_no_step_lies_beyond_it(self) -> None:
        """The sampler would clamp it, to an alpha that was evaluated, again and again."""
        trials = [*self.settled_without_a_gain(), self.trial(8, math.sqrt(8), 0.4)]
        assert is_exhausted(trials, 0.0, 1.0, 0.25, 0.5) or propose_thoroughly(trials, 0.0, 1.0, 0.25, 0.5) < 1.0
        places = []
        while not is_exhausted(trials, 0.0, 1.0, 0.25, 0.5) and len(trials) < 60:
            places.append(propose_thoroughly(trials, 0.0, 1.0, 0.25, 0.5))
            trials.append(self.trial(len(trials) + 1, places[-1], -0.02))
        assert all(0 < alpha < 1 for alpha in places)
        assert len(set(places)) == len(places)

    def test_a_search_that_could_but_repeat_an_alpha_is_exhausted(self) -> None:
        """Though it is not settled: so little lies between 0 and a collapse that all of it was tried."""
        low = [self.trial(i, 0.02 * i, 0.01 * (-1) ** i, "complete", 0.2) for i in range(1, 4)]
        fallen = [self.trial(5, 0.07, -3.0, "degenerate"), self.trial(6, 0.14, -3.0, "degenerate")]
        trials = [make_evaluation(0, 0.0, 0.0, 0.0), *low, *fallen]
        places = []
        while not is_exhausted(trials, 0.0, 64.0, 0.02, 1e-9) and len(trials) < 200:
            places.append(propose_thoroughly(trials, 0.0, 64.0, 0.02, 1e-9))
            trials.append(self.trial(len(trials) + 1, places[-1], 0.0, "complete", 0.2))
        assert len(trials) < 200
        assert len(set(places)) == len(places)


class TestCommand:
    """What the command line does with `--tokens` alone."""

    URL, TOKENS = "sqlite:///mine.db", 2300
    SEARCH: ClassVar[dict[str, Any]] = {
        "seed": 1,
        "sampler": "grid",
        "racing": False,
        "alpha_max": 1.0,
    }  # trials cost next to nothing

    @pytest.fixture
    def spec(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> es.StudySpec:
        monkeypatch.chdir(tmp_path)
        write_prompts(tmp_path / "prompts.jsonl", 128)
        pair = {"sft": "my/sft", "aligned": "my/aligned", "reward_model": "my/judge"}
        prompts = {"n": 64, "source": "prompts.jsonl"}
        return es.load_study(name="mine", overrides={"pair": pair, "prompts": prompts, "search": self.SEARCH})

    def run(self, spec: es.StudySpec, model: FakeModel, dies_after: int | None = None) -> int | None:
        """The number of prompts of its confirmation, None where it has none to make."""
        with es.open_session(spec, self.URL, model=model, scorer=FakeScorer(noise=0.3), quiet=True) as session:
            budget = Budget(tokens=self.TOKENS, n_confirm=32)
            session.search(200, budget=budget)
            wanted = command._to_confirm(session, None, budget)
            if dies_after is not None:
                model.dies_after = len(model.asked) + dies_after
            if wanted is not None:
                session.confirm(*wanted)
            return None if wanted is None else wanted[1]

    @pytest.mark.parametrize("answered", [5, pytest.param(45, marks=pytest.mark.slow), 70])
    def test_a_confirmation_that_was_killed_is_ended_by_the_same_command(
        self, spec: es.StudySpec, answered: int
    ) -> None:
        with pytest.raises(Killed):
            self.run(spec, FakeModel(), answered)
        model = FakeModel()
        n = self.run(spec, model)
        assert n is not None
        assert n >= 32
        confirmed = es.open_study(self.URL, "mine").verdict.confirmed
        assert confirmed is not None
        assert confirmed.n == n
        assert len(model.asked) < 2 * n, "what was answered is not asked again"
        assert self.run(spec, FakeModel()) is None

    def test_the_time_of_a_benchmark_is_not_taken_from_the_confirmation(
        self, spec: es.StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its clock stands still but for a benchmark, which takes longer than all the time there is."""
        now = [0.0]

        class Slow(YesModel):
            def says(self, alpha: float, prompt: Prompt) -> str:
                now[0] += 100
                return super().says(alpha, prompt)

        @contextmanager
        def shown(_: Path) -> Iterator[tuple[Console, Console]]:
            yield Console(file=io.StringIO()), Console(file=io.StringIO())

        fakes = {"model": Slow(), "scorer": FakeScorer(noise=0.1)}
        monkeypatch.setattr(command, "open_session", lambda *given, **named: es.open_session(*given, **named | fakes))
        monkeypatch.setattr(command, "terminal", shown)
        monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now[0]))
        how: dict[str, Any] = {
            "budget": Budget(seconds=60, clock=lambda: now[0], began=0.0),
            "bench": Wanted(["basics"], {}, 2),
            "where": {"engines": None, "ray_address": None},
        }
        shows: dict[str, Any] = {"track": (), "quiet": True, "as_json": True, "no_menu": True}
        command._search(spec, 5, None, storage=self.URL, artifacts=None, log=tmp_path / "log", **how, **shows)
        assert now[0] > 60
        assert es.open_study(self.URL, "mine").verdict.confirmed is not None

    @pytest.mark.parametrize(
        ("answered", "where"), [(5, "at 1 trial; trial 1 at alpha"), (64, "at 2 trials; to go on: `expo-search ")]
    )
    def test_a_stopped_one_says_so_and_names_the_command_with_its_budget(
        self, spec: es.StudySpec, answered: int, where: str
    ) -> None:
        """In a trial, and in the last look at one, after which no trial is in the middle."""
        model = FakeModel()

        def stop() -> bool:
            return len(model.asked) >= 64 + answered  # alpha = 0 and so many of the next

        with es.open_session(spec, self.URL, model=model, scorer=FakeScorer(noise=0.3), quiet=True) as session:
            result = session.search(200, budget=Budget(tokens=self.TOKENS, seconds=5400, n_confirm=32), stop=stop)
        assert not result.standing.is_done
        assert f"--tokens {self.TOKENS} --time 1h30m --study-name mine" in result.goes_on
        assert "--trials" not in result.goes_on
        assert any(remark.startswith(f"Stopped {where}") for remark in result.remarks)
        self.run(spec, FakeModel())
        result = es.open_study(self.URL, "mine")
        assert (result.standing.is_done, result.goes_on) == (True, "")

    def test_one_that_a_search_without_a_budget_goes_on_with_has_none_any_more(self, spec: es.StudySpec) -> None:
        with es.open_session(spec, self.URL, model=FakeModel(), scorer=FakeScorer(), quiet=True) as session:
            session.search(9, budget=Budget(tokens=10**9), stop=iter([False] * 3 + [True] * 9).__next__)
            assert "--tokens 1000M --trials 9" in session.result().goes_on
            session.search(12, stop=lambda: True)
            assert "--trials 12" in session.result().goes_on
            assert "--tokens" not in session.result().goes_on

    def test_a_finished_one_is_finished_also_when_it_is_run_again(self, spec: es.StudySpec) -> None:
        self.run(spec, FakeModel())
        n = len(es.open_study(self.URL, "mine").evaluations)
        for _ in range(2):
            store = Store(self.URL, "mine", read_only=True)
            standing = read_standing(store, store.attributes.spec)
            store.close()
            assert (standing.n_wanted, standing.is_done) == (n, True)
            self.run(spec, FakeModel())
