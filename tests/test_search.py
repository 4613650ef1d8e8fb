"""The loop, with fakes of model and scorer: it finds a known optimum, and a killed search ends as an unbroken one."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import rows
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, end_process, make_prompts
from sqlalchemy.orm import Session

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Switch
from expo_search.errors import MaterializeError, RewardError, SettingsChanged, StoreError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.search.alpha_range import N_START
from expo_search.search.loop import evaluations, search
from expo_search.store.study_store import Store
from expo_search.store.tables import LockRow

PROMPTS = make_prompts(4)
RANDOM = SearchSpec(sampler="random", seed=5)


class DyingObjective(Objective):
    """Dies in one trial, before or after it is evaluated."""

    dies_in, place, die = 0, "never", staticmethod(end_process)

    def evaluate(self, trial: int, alpha: float, **options: Any) -> Evaluation:
        if (trial, self.place) == (self.dies_in, "before evaluating"):
            self.die()
        found = super().evaluate(trial, alpha, **options)
        if (trial, self.place) == (self.dies_in, "before telling"):
            self.die()
        return found


PLACES = ("before evaluating", "generating", "scoring", "before telling", "after telling")


def run(
    url: str,
    n_trials: int,
    spec: SearchSpec = RANDOM,
    *,
    place: str = "never",
    dies_in: int = 2,
    die: Callable[[], None] = end_process,
    weights: str = "w",
    published: float | None = None,
) -> tuple[list[Evaluation], FakeModel]:
    """A search as a new process makes it: everything but the database is made anew."""
    store, model, scorer = Store(url, "s"), FakeModel(weights, die=die), FakeScorer(die=die)
    if place == "generating":
        model.dies_after = dies_in * len(PROMPTS) + 2
    if place == "scoring":
        scorer.dies_after = dies_in * len(PROMPTS) + 3
    objective = DyingObjective(model, scorer, store, PROMPTS, FakeWatcher())
    objective.dies_in, objective.place, objective.die = dies_in, place, die

    def on_trial(e: Evaluation) -> None:
        if (e.trial, place) == (dies_in, "after telling"):
            die()

    return search(store, objective, spec, n_trials, published_alpha=published, on_trial=on_trial), model


def raise_killed() -> None:
    raise Killed


def outcome(found: list[Evaluation]) -> list[Evaluation]:
    """Everything but times, and counts of one run."""
    return [replace(e, switch_s=0, generate_s=0, score_s=0, other_s=0, n_generated=0) for e in found]


def states(url: str) -> list[str]:
    return [str(state) for (state,) in rows(url, "SELECT state FROM trials ORDER BY number")]


def stored_answers(url: str) -> set[tuple[float, str]]:
    """(alpha, prompt id) of each stored answer, which its text says."""
    answers = [json.loads(str(text)) for (text,) in rows(url, "SELECT text FROM expo_completions")]
    assert len({(a, p) for a, p in answers}) == len(answers)
    return {(a, p) for a, p in answers}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[Evaluation]:
    """The outcome of a random search of 4 trials that nothing interrupts."""
    return outcome(run(f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}", 4)[0])


@pytest.mark.parametrize("sampler", ["expo", "gp", "tpe", "grid", "random"])
def test_alpha_zero_is_trial_zero_and_the_published_alpha_comes_second(url: str, sampler: str) -> None:
    found, model = run(url, 2, SearchSpec(sampler=sampler), published=0.123)
    assert [e.trial for e in found] == [0, 1]
    assert [e.alpha for e in found] == model.alphas == [0.0, 0.123]


@pytest.mark.parametrize("sampler", ["expo", "gp"])
def test_a_range_without_zero_is_searched_with_alpha_zero_as_control_and_no_warning(url: str, sampler: str) -> None:
    spec = SearchSpec(alpha_min=0.3, alpha_max=0.5, sampler=sampler, tolerance=0, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = run(url, 7, spec, published=0.9)
    assert found[0].alpha == 0.0
    assert all(0.3 <= e.alpha <= 0.5 for e in found[1:])
    assert len({e.alpha for e in found}) == 7


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_search_that_is_run_again_ends_as_an_unbroken_one(
    url: str, unbroken: list[Evaluation], place: str
) -> None:
    with pytest.raises(Killed):
        run(url, 4, place=place, die=raise_killed)
    before = stored_answers(url)
    found, model = run(url, 4)
    assert outcome(found) == unbroken
    assert len(before) >= 2 * len(PROMPTS)
    assert before.isdisjoint(model.asked)
    assert len(before) + len(model.asked) == 4 * len(PROMPTS)
    assert states(url) == ["COMPLETE"] * 4


@pytest.mark.parametrize("place", ["generating", "before telling"])
def test_a_search_whose_process_ends_at_once_loses_nothing_that_was_stored(
    url: str, unbroken: list[Evaluation], place: str
) -> None:
    code = f"import test_search; test_search.run({url!r}, 4, place={place!r})"
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False)
    assert killed.returncode == 9
    assert "RUNNING" in states(url) or not url.startswith("sqlite"), "on a server the trial may not be written yet"
    before = stored_answers(url)
    found, model = run(url, 4)
    assert outcome(found) == unbroken
    assert before.isdisjoint(model.asked)
    assert states(url) == ["COMPLETE"] * 4


def test_a_search_killed_again_and_again_ends_as_an_unbroken_one(url: str, unbroken: list[Evaluation]) -> None:
    for n_answers in (2, 5, 1):
        store = Store(url, "s")
        model = FakeModel(dies_after=n_answers, die=raise_killed)
        with pytest.raises(Killed):
            search(
                store,
                Objective(model, FakeScorer(), store, PROMPTS, FakeWatcher()),
                RANDOM,
                4,
                on_trial=print,
            )
    assert outcome(run(url, 4)[0]) == unbroken


def test_a_study_goes_on_to_a_larger_number_of_trials_as_if_asked_for_it_at_once(
    url: str, unbroken: list[Evaluation]
) -> None:
    for n_trials in (1, 2, 4):
        found, _ = run(url, n_trials)
        assert len(found) == n_trials
    assert outcome(found) == unbroken


@pytest.mark.parametrize("sampler", ["gp", "expo"])
def test_a_model_of_the_curve_that_is_killed_and_then_asked_for_more_goes_on_as_an_unbroken_one(
    tmp_path: Path, sampler: str
) -> None:
    broken, whole = (f"sqlite:///{tmp_path / name}.db" for name in ("broken", "whole"))
    spec = SearchSpec(sampler=sampler, tolerance=0, seed=3)
    with pytest.raises(Killed):
        run(broken, 7, spec, place="generating", dies_in=N_START, die=raise_killed)
    run(broken, 7, spec)
    assert outcome(run(broken, 8, spec)[0]) == outcome(run(whole, 8, spec)[0])


def test_a_grid_that_is_made_twice_as_fine_keeps_its_points(url: str) -> None:
    grid = SearchSpec(sampler="grid")
    coarse, _ = run(url, 4, grid)
    fine, _ = run(url, 7, grid)
    assert fine[:4] == coarse
    assert sorted(e.alpha for e in fine) == pytest.approx([i / 6 for i in range(7)], abs=1e-12)


def test_a_study_that_has_its_trials_runs_none(url: str) -> None:
    expected, _ = run(url, 3)
    found, model = run(url, 3)
    assert found == expected
    assert run(url, 2)[0] == expected
    assert (model.asked, model.alphas) == ([], [])


def test_changed_weights_of_a_killed_study_are_refused_and_it_can_still_go_on(
    url: str, unbroken: list[Evaluation]
) -> None:
    with pytest.raises(Killed):
        run(url, 4, place="generating", die=raise_killed)
    with pytest.raises(SettingsChanged, match="trial 2"):
        run(url, 4, weights="changed")
    assert outcome(run(url, 4)[0]) == unbroken


def test_weights_of_alpha_0_that_could_not_be_made_are_made_by_the_next_run(
    url: str, unbroken: list[Evaluation]
) -> None:
    class Unlike(FakeModel):
        def materialize(self, alpha: float) -> Switch:
            raise MaterializeError(where=f"alpha {alpha}", found="two weights", expected="one", do="look")

    store = Store(url, "s")
    with pytest.raises(MaterializeError):
        search(store, Objective(Unlike(), FakeScorer(), store, PROMPTS, FakeWatcher()), RANDOM, 4)
    store.close()
    assert outcome(run(url, 4)[0]) == unbroken


def test_a_reward_that_is_no_number_is_not_kept(url: str, unbroken: list[Evaluation]) -> None:
    class Broken(FakeScorer):
        def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
            rewards, n_cut = super().score(completions, on_scored)
            return [*rewards[:-1], float("nan")], n_cut

    store = Store(url, "s")
    with pytest.raises(RewardError, match=r"reward of prompt .*: nan; expected a finite number"):
        search(store, Objective(FakeModel(), Broken(), store, PROMPTS, FakeWatcher()), RANDOM, 4)
    store.close()
    assert outcome(run(url, 4)[0]) == unbroken


def test_two_searches_of_one_study_at_a_time_are_refused(url: str) -> None:
    code = f"import test_search\nwith test_search.Store({url!r}, 's').owned(): print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(StoreError, match=f"process {other.pid} on .* at work on it since"):
            run(url, 2)
        other.kill()
    assert len(run(url, 2)[0]) == 2


def test_a_search_whose_study_was_taken_over_begins_no_other_trial(url: str) -> None:
    store = Store(url, "s")

    def take_over(_: Evaluation) -> None:
        store.flush()  # on a server the trial itself may not be written yet
        with Session(store._engine) as session, session.begin():
            session.execute(sa.update(LockRow).values(pid=7, host="elsewhere"))

    objective = Objective(FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    with pytest.raises(StoreError, match="taken over by process 7 on elsewhere"):
        search(store, objective, RANDOM, 3, on_trial=take_over)
    assert len(store.study.trials) == 1


def test_finished_trials_are_told_in_order_with_their_attributes_in_the_database(url: str) -> None:
    told: list[Evaluation] = []
    store = Store(url, "s")
    objective = Objective(FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    found = search(store, objective, RANDOM, 3, on_trial=told.append)
    assert told == found == evaluations(Store(url, "s").study)
    assert [t.value for t in store.study.trials] == [e.gain.mean for e in found]
    assert store.study.best_trial.user_attrs["fingerprint"] == max(found, key=lambda e: e.reward.mean).fingerprint


def test_a_trial_that_is_evaluated_can_be_given_more_before_it_is_told(url: str) -> None:
    """Optuna takes artifacts and attributes of a trial only until it is told."""
    seen: list[tuple[int, str]] = []

    def before_tell(trial: Any, e: Evaluation) -> None:
        trial.set_user_attr("picture", f"of {e.alpha}")
        store.flush()
        seen.append((e.trial, states(url)[e.trial]))

    store = Store(url, "s")
    objective = Objective(FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    found = search(store, objective, RANDOM, 3, before_tell=before_tell)
    assert seen == [(0, "RUNNING"), (1, "RUNNING"), (2, "RUNNING")]
    assert [t.user_attrs["picture"] for t in store.study.trials] == [f"of {e.alpha}" for e in found]


def test_the_first_step_is_kept_although_the_delta_is_measured_anew(url: str) -> None:
    def go(n_trials: int, relative_delta: float) -> list[float]:
        store = Store(url, "s")
        objective = Objective(FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
        return [e.alpha for e in search(store, objective, SearchSpec(), n_trials, relative_delta=relative_delta)]

    assert go(1, 0.01) == [0.0]
    assert go(2, 0.004) == [0.0, 0.1], "0.004 would give a first step of 0.25"
