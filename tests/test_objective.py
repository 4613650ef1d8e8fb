"""One evaluation, with fakes of model and scorer: its numbers, what is kept at once, and going on from what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, expected_reward, make_evaluation, make_prompts, unit

from expo_search.contracts import Completion, Part, Prompt, Rated
from expo_search.errors import SettingsChanged, StoreError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.stats.paired import Estimate, estimate, mean_gain
from expo_search.store.study_store import Store

PROMPTS = make_prompts(12)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('objective') / 'o.db'}", "s")


@pytest.fixture
def store(database: Store) -> Store:
    """A study without answers."""
    database.drop("search")
    database.drop("confirm")
    return database


def objective(
    store: Store, model: FakeModel | None = None, scorer: FakeScorer | None = None, watcher: FakeWatcher | None = None
) -> Objective:
    return Objective(model or FakeModel(), scorer or FakeScorer(), store, PROMPTS, watcher or FakeWatcher())


def numbers(e: Evaluation) -> Evaluation:
    """Without the times, and without counts that are of one run."""
    return replace(e, switch_s=0, generate_s=0, score_s=0, other_s=0, n_generated=0)


def test_an_evaluation_holds_the_numbers_that_follow_from_its_answers(store: Store) -> None:
    evaluate = objective(store).evaluate
    control, found = evaluate(0, 0.0), evaluate(1, 0.3)
    rewards = [expected_reward(0.3, p) for p in PROMPTS]
    differences = [r - expected_reward(0.0, p) for r, p in zip(rewards, PROMPTS, strict=True)]
    lengths = [1 + int(9 * unit("length", p.id)) for p in PROMPTS]
    assert (found.trial, found.alpha) == (1, 0.3)
    assert found.reward == estimate(rewards)
    assert found.difference == found.gain == mean_gain(dict(enumerate(differences)))
    assert found.win_rate.mean == sum(d > 0 for d in differences) / 12
    assert found.length_controlled.mean == pytest.approx(found.difference.mean, rel=1e-12), (
        "lengths are as at alpha = 0"
    )
    assert (found.outcome, found.broken, found.length_ratio, found.share_repeating) == ("complete", (), 1.0, 0.0)
    assert found.n_tokens == found.n_generated
    assert found.mean_length == sum(lengths) / 12
    assert found.share_cut == sum(n > 8 for n in lengths) / 12
    assert found.n_generated == sum(lengths)
    assert found.fingerprint != control.fingerprint
    assert control.difference == estimate([0.0] * 12)
    assert min(found.switch_s, found.generate_s, found.score_s) >= 0


def test_the_prompts_own_level_is_not_in_the_error_of_the_difference(store: Store) -> None:
    evaluate = objective(store).evaluate
    evaluate(0, 0.0)
    found = evaluate(1, 0.3)
    assert found.reward.se > 0.1
    # the fakes' reward is a prompt's level plus a term of alpha alone: every prompt gains the same
    assert found.difference.se == pytest.approx(2 * found.difference.mean / 12)


def test_answers_and_rewards_are_in_the_database_at_their_prompts_positions(store: Store) -> None:
    objective(store).evaluate(0, 0.25)
    stored = store.completions(0, "search", PROMPTS)
    assert [s.position for s in stored] == list(range(12))
    assert [s.reward for s in stored] == [expected_reward(0.25, p) for p in PROMPTS]
    assert all(f'"{s.completion.prompt.id}"' in s.completion.text for s in stored)


def test_the_weights_are_switched_before_the_first_answer_is_asked_for(store: Store) -> None:
    model = FakeModel()
    evaluate = objective(store, model).evaluate
    for trial, alpha in enumerate((0.0, 0.7, 0.2)):
        evaluate(trial, alpha)
    assert model.alphas == [0.0, 0.7, 0.2]
    assert {alpha for alpha, _ in model.asked} == {0.0, 0.7, 0.2}
    assert len(model.asked) == 36


def test_the_watcher_is_told_everything_once(store: Store) -> None:
    watcher = FakeWatcher()
    found = objective(store, watcher=watcher).evaluate(0, 0.0)
    assert watcher.starts == [(0, 0.0, 12, 0)]
    assert (watcher.n_tokens, watcher.n_completions, watcher.n_scored) == (found.n_generated, 12, 12)


@pytest.mark.parametrize("dies_after", [0, 1, 11])
def test_generation_goes_on_at_the_first_prompt_without_an_answer(store: Store, dies_after: int) -> None:
    first, second, watcher = FakeModel(dies_after=dies_after), FakeModel(), FakeWatcher()
    with pytest.raises(Killed):
        objective(store, first).evaluate(0, 0.0)
    assert len(store.completions(0, "search", PROMPTS)) == dies_after
    found = objective(store, second, watcher=watcher).evaluate(0, 0.0)
    assert watcher.starts == [(0, 0.0, 12, dies_after)]
    assert sorted(first.asked + second.asked) == sorted((0.0, p.id) for p in PROMPTS)
    assert found.n_tokens == sum(1 + int(9 * unit("length", p.id)) for p in PROMPTS)
    assert found.n_generated == watcher.n_tokens <= found.n_tokens
    assert found.reward == estimate([expected_reward(0.0, p) for p in PROMPTS])


def test_nothing_is_generated_or_scored_again_when_all_of_it_is_stored(store: Store) -> None:
    done = objective(store).evaluate(0, 0.0)
    model, scorer = FakeModel(), FakeScorer()
    again = objective(store, model, scorer).evaluate(0, 0.0)
    assert (model.asked, scorer.scored) == ([], [])
    assert numbers(again) == numbers(done)


def test_answers_that_a_killed_scorer_left_are_scored_without_being_generated_again(store: Store) -> None:
    with pytest.raises(Killed):
        objective(store, scorer=FakeScorer(dies_after=5)).evaluate(0, 0.0)
    model, scorer = FakeModel(), FakeScorer()
    objective(store, model, scorer).evaluate(0, 0.0)
    assert model.asked == []
    assert len(scorer.scored) == 12


def test_stored_answers_of_other_weights_are_refused_before_anything_is_generated(store: Store) -> None:
    with pytest.raises(Killed):
        objective(store, FakeModel(dies_after=3)).evaluate(0, 0.5)
    for model, alpha in ((FakeModel(weights="changed"), 0.5), (FakeModel(), 0.6)):
        with pytest.raises(SettingsChanged, match="which made the stored answers"):
            objective(store, model).evaluate(0, alpha)
        assert model.asked == []
    assert len(store.completions(0, "search", PROMPTS)) == 3


def test_a_confirmation_is_paired_with_its_own_control_and_leaves_the_search_alone(store: Store) -> None:
    searched = objective(store).evaluate(0, 0.0)
    other = make_prompts(20)[12:]
    confirm = Objective(FakeModel(), FakeScorer(), store, other, FakeWatcher(), part="confirm")
    confirm.evaluate(0, 0.0)
    found = confirm.evaluate(4, 0.3)
    gains = {i: expected_reward(0.3, p) - expected_reward(0.0, p) for i, p in enumerate(other)}
    assert found.difference == mean_gain(gains)
    assert numbers(objective(store).evaluate(0, 0.0)) == numbers(searched)


def test_an_evaluation_comes_back_whole_from_a_trials_attributes() -> None:
    e = replace(
        make_evaluation(3, 0.25, 0.1, 0.02),
        gain=Estimate(0.05, 0.01, 100),
        outcome="enough",
        broken=("cut off", "length"),
        excess={"cut off": 0.1, "repeating": -0.1, "length": 0.5},
        covariances={"1": 2e-4, "2": -1e-5},
    )
    stored = json.loads(json.dumps(e.attributes(), allow_nan=False))  # as the database keeps them
    assert Evaluation.from_attributes(3, 0.25, stored) == e


def test_a_scorer_that_returns_too_few_rewards_is_a_mistake_of_ours(store: Store) -> None:
    class Short(FakeScorer):
        def score(self, completions: Sequence[Completion], on_scored: object) -> tuple[list[float], int]:  # noqa: ARG002
            return [0.0], 0

    with pytest.raises(ValueError, match="shorter"):
        objective(store, scorer=Short()).evaluate(0, 0.0)


def test_an_error_of_the_model_keeps_the_answers_before_it(store: Store) -> None:
    class Failing(FakeModel):
        def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
            for n, item in enumerate(super().generate(prompts, seed)):
                if n == 6:
                    raise RuntimeError("engine died")
                yield item

    with pytest.raises(RuntimeError, match="engine died"):
        objective(store, Failing()).evaluate(0, 0.0)
    assert len(store.completions(0, "search", PROMPTS)) == 3  # every second item is a completion


def test_a_database_that_takes_no_answers_is_tried_once(tmp_path: Path) -> None:
    class Locked(Store):
        n_tries = 0

        def add_completions(self, *_: Any, **__: Any) -> None:
            self.n_tries += 1
            raise StoreError(where="storage", found="database is locked", expected="one that takes it", do="wait")

    store = Locked(f"sqlite:///{tmp_path / 'locked.db'}", "s")
    with pytest.raises(StoreError, match="locked"):
        objective(store).evaluate(0, 0.0)
    assert store.n_tries == 1


def test_rewards_of_trials_that_are_finished_are_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, rated, reads = objective(store).evaluate, store.rated, list[int]()
    n_trials = 70

    def note(trial: int, part: Part) -> dict[int, Rated]:
        reads.append(trial)
        return rated(trial, part)

    monkeypatch.setattr(store, "rated", note)
    for trial in range(n_trials):
        reads.clear()
        evaluate(trial, trial / 100, others=dict.fromkeys(range(trial), len(PROMPTS)))
    assert sorted(reads) == [0, n_trials - 2, n_trials - 1]
