"""A confirmation, with fakes of model and scorer: paired on its own prompts, kept with the study, taken up again."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, expected_reward, make_prompts

from expo_search.contracts import Prompt
from expo_search.errors import EngineDied
from expo_search.evaluation.objective import Objective, Stopped
from expo_search.search.confirm import confirm, confirmations
from expo_search.stats.paired import Kind, estimate, gain, mean_gain
from expo_search.store.study_store import Store

PROMPTS = make_prompts(8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'c.db'}", "s")


def objective(store: Store, model: FakeModel, prompts: list[Prompt]) -> Objective:
    return Objective(model, FakeScorer(), store, prompts, FakeWatcher(), part="confirm")


def test_the_winner_is_paired_with_alpha_zero_on_the_fresh_prompts_and_the_result_is_kept(store: Store) -> None:
    assert confirmations(store) == {}
    found = confirm(store, objective(store, FakeModel(), PROMPTS), 4, 0.3, PROMPTS)
    winner, control = ([expected_reward(alpha, p) for p in PROMPTS] for alpha in (0.3, 0.0))
    assert (found.trial, found.alpha, found.n) == (4, 0.3, 8)
    assert found.estimate == mean_gain(dict(enumerate(w - c for w, c in zip(winner, control, strict=True))))
    assert (found.reward, found.control_reward) == (estimate(winner).mean, estimate(control).mean)
    assert confirmations(store) == confirmations(Store(store.url, "s")) == {4: found}


@pytest.mark.parametrize("kind", ["reward", "win-rate", "length-controlled"])
def test_the_gain_is_by_the_studys_objective(store: Store, kind: Kind) -> None:
    model, scorer = FakeModel(stretch=lambda a: 1 + a), FakeScorer(noise=0.5)
    found = confirm(
        store,
        Objective(model, scorer, store, PROMPTS, FakeWatcher(), part="confirm", kind=kind),
        4,
        0.3,
        PROMPTS,
    )
    winner, control = store.rated(4, "confirm"), store.rated(0, "confirm")
    assert found.estimate == gain(winner, control, kind)
    others = {k for k in ("reward", "win-rate", "length-controlled") if k != kind}
    assert all(found.difference != gain(winner, control, k).mean for k in others)  # type: ignore[arg-type]


def test_a_confirmation_is_no_race(store: Store) -> None:
    """A winner that falls behind on the fresh prompts is measured on all of them all the same."""
    many = make_prompts(40)
    scorer = FakeScorer(truth=lambda a: -9.0 * (a > 0), noise=0.1)
    fresh = Objective(FakeModel(collapse=0.3), scorer, store, many, FakeWatcher(), part="confirm")
    found = confirm(store, fresh, 4, 0.3, many)
    assert (found.n, found.estimate.high < 0) == (40, True)


def test_a_killed_confirmation_goes_on_and_a_finished_one_costs_nothing(store: Store) -> None:
    dying, model, idle = FakeModel(dies_after=11), FakeModel(), FakeModel()
    with pytest.raises(Killed):
        confirm(store, objective(store, dying, PROMPTS), 4, 0.3, PROMPTS)
    assert confirmations(store) == {}
    found = confirm(store, objective(store, model, PROMPTS), 4, 0.3, PROMPTS)
    assert sorted(dying.asked + model.asked) == sorted((a, p.id) for a in (0.0, 0.3) for p in PROMPTS)
    assert confirm(store, objective(store, idle, PROMPTS), 4, 0.3, PROMPTS) == found
    assert idle.asked == []


def test_another_trial_on_the_same_prompts_shares_the_control(store: Store) -> None:
    first = confirm(store, objective(store, FakeModel(), PROMPTS), 4, 0.3, PROMPTS)
    model = FakeModel()
    second = confirm(store, objective(store, model, PROMPTS), 7, 0.5, PROMPTS)
    assert {alpha for alpha, _ in model.asked} == {0.5}
    assert confirmations(store) == {4: first, 7: second}


def test_answers_to_other_prompts_are_forgotten(store: Store) -> None:
    confirm(store, objective(store, FakeModel(), PROMPTS), 4, 0.3, PROMPTS)
    fewer = PROMPTS[5:]
    found = confirm(store, objective(store, FakeModel(), fewer), 4, 0.3, fewer)
    assert found.n == 3
    assert store.prompts("confirm") == fewer
    assert len(store.completions(4, "confirm", fewer)) == 3


@pytest.mark.parametrize("n_first", [3, 8])
def test_other_prompts_keep_the_answers_to_those_that_both_share(store: Store, tmp_path: Path, n_first: int) -> None:
    """3 then 8 prompts, or 8 then 3: what is measured is what a study of its own would have found."""
    first, then, model = PROMPTS[:n_first], PROMPTS[: 11 - n_first], FakeModel()
    confirm(store, objective(store, FakeModel(), first), 4, 0.3, first)
    other = Store(f"sqlite:///{tmp_path / 'd.db'}", "s")
    expected = confirm(other, objective(other, FakeModel(), then), 4, 0.3, then)
    assert confirm(store, objective(store, model, then), 4, 0.3, then) == expected
    assert sorted(model.asked) == sorted((a, p.id) for a in (0.0, 0.3) for p in then[n_first:])
    assert confirmations(store) == {4: expected}
    assert store.prompts("confirm") == PROMPTS


def test_of_more_answers_than_prompts_only_the_prompts_count(store: Store) -> None:
    """The scorer was killed: answers beyond the fewer prompts have no reward, and need none."""
    watcher, few, scorer = FakeWatcher(), PROMPTS[:3], FakeScorer()
    dying = Objective(FakeModel(), FakeScorer(dies_after=5), store, PROMPTS, FakeWatcher(), part="confirm")
    with pytest.raises(Killed):
        confirm(store, dying, 4, 0.3, PROMPTS)
    found = confirm(store, Objective(FakeModel(), scorer, store, few, watcher, part="confirm"), 4, 0.3, few)
    assert (found.n, len(scorer.scored)) == (3, 6)
    assert watcher.starts == [(0, 0.0, 3, 3), (4, 0.3, 3, 0)]


def test_an_old_confirmation_stays_until_the_new_one_is_measured(store: Store) -> None:
    old = confirm(store, objective(store, FakeModel(), PROMPTS[:5]), 4, 0.3, PROMPTS[:5])
    for prompts in (PROMPTS, PROMPTS[::-1]):
        with pytest.raises(Killed):
            confirm(store, objective(store, FakeModel(dies_after=2), prompts), 7, 0.5, prompts)
        assert confirmations(store) == {4: old}
    new = confirm(store, objective(store, FakeModel(), PROMPTS), 7, 0.5, PROMPTS)
    assert confirmations(store) == {7: new}, "the old one's answers were forgotten"


def test_confirmations_on_other_numbers_of_the_same_prompts_stand_beside_each_other(store: Store) -> None:
    whole = confirm(store, objective(store, FakeModel(), PROMPTS), 4, 0.3, PROMPTS)
    few = confirm(store, objective(store, FakeModel(), PROMPTS[:3]), 7, 0.5, PROMPTS[:3])
    assert confirmations(store) == {4: whole, 7: few}
    assert (whole.n, few.n) == (len(PROMPTS), 3)
    other = confirm(store, objective(store, FakeModel(), PROMPTS[::-1]), 7, 0.5, PROMPTS[::-1])
    assert confirmations(store) == {7: other}


def test_prompts_that_were_put_before_they_were_looked_at_do_no_harm(store: Store) -> None:
    """As `Running.objective` does: the new prompts beyond the old ones' number are there already."""
    confirm(store, objective(store, FakeModel(), PROMPTS[:3]), 4, 0.3, PROMPTS[:3])
    other, model = PROMPTS[::-1], FakeModel()
    store.put_prompts("confirm", other)
    assert confirm(store, objective(store, model, other), 4, 0.3, other).n == 8
    assert len(model.asked) == 16
    assert store.prompts("confirm") == other


class TestEngineThatDies:
    @pytest.mark.parametrize("n_answers", [0, 3, 8, 12])
    def test_it_is_started_anew_and_nothing_is_generated_twice(
        self, store: Store, tmp_path: Path, n_answers: int
    ) -> None:
        unbroken = confirm(store, objective(store, FakeModel(), PROMPTS), 4, 0.3, PROMPTS)
        other, model, said = Store(f"sqlite:///{tmp_path / 'd.db'}", "s"), crashing(n_answers), list[EngineDied]()
        found = confirm(other, objective(other, model, PROMPTS), 4, 0.3, PROMPTS, on_failure=said.append)
        assert found == unbroken
        assert (model.restarts, len(said)) == (1, 1)
        assert len(model.asked) == len(set(model.asked)) == 16

    def test_a_second_failure_is_the_end_and_the_same_call_goes_on_later(self, store: Store) -> None:
        model, again = crashing(3, dies_again=1), FakeModel()
        with pytest.raises(EngineDied, match="it crashed"):
            confirm(store, objective(store, model, PROMPTS), 4, 0.3, PROMPTS)
        assert (model.restarts, confirmations(store)) == (1, {})
        confirm(store, objective(store, again, PROMPTS), 4, 0.3, PROMPTS)
        assert set(model.asked).isdisjoint(again.asked)

    def test_one_that_goes_down_with_a_stop_is_no_failure(self, store: Store) -> None:
        model = crashing(3)
        with pytest.raises(Stopped):
            confirm(store, objective(store, model, PROMPTS), 4, 0.3, PROMPTS, stop=lambda: True)
        assert model.restarts == 0


def crashing(n_answers: int, **more: int) -> FakeModel:
    def die() -> None:
        raise EngineDied(where="vLLM engine", found="it crashed", expected="an engine", do="look")

    return FakeModel(dies_after=n_answers, die=die, **more)  # type: ignore[arg-type]
