"""Trials that stop early, guardrails, and searches that end early, with fakes whose truth and noise are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, make_prompts

from expo_search.config.spec import GuardrailSpec, SearchSpec
from expo_search.contracts import Completion, Part, Prompt, Rated
from expo_search.evaluation.answering import handing_order
from expo_search.evaluation.objective import FIRST_LOOK, LEAST_LOOK, WRONG_DROP, Objective, Stopped, looks
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import verdict
from expo_search.search.loop import evaluations, n_explore, search, why_done
from expo_search.stats.paired import Kind, estimate, hopeless, mean_covariance, prompt_gains
from expo_search.stats.repetition import repetition
from expo_search.store.answer_rows import Stored
from expo_search.store.study_store import Store

PROMPTS = make_prompts(64)
LOOKS = [16, 32, 64]
PLACE = 0.4


def hill(alpha: float) -> float:
    """Highest, 0.3, at 0.4; 0 at 0 and at 1.2; a steep fall below 0."""
    x = max(alpha, 0.0) / PLACE
    return 0.3 * (1 - (math.log1p(x) / math.log(2) - 1) ** 2) + min(alpha, 0.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('racing') / 'r.db'}"


@pytest.fixture
def store(url: str, request: pytest.FixtureRequest) -> Store:
    """A study of the test's own."""
    return Store(url, request.node.name)


def objective(
    store: Store, model: FakeModel | None = None, scorer: FakeScorer | None = None, **options: Any
) -> Objective:
    """On 64 prompts, with a noise of a third of the hill's height unless a scorer is given."""
    scorer = scorer or FakeScorer(truth=hill, noise=0.1)
    return Objective(model or FakeModel(), scorer, store, PROMPTS, FakeWatcher(), **options)


def bare(e: Evaluation) -> Evaluation:
    """Without times, and without counts of one run."""
    return replace(e, switch_s=0, generate_s=0, score_s=0, other_s=0, n_generated=0)


class TestLooks:
    @pytest.mark.parametrize(
        ("n", "expected"),
        [
            (4, [4]),
            (16, [16]),
            (64, [16, 32, 64]),
            (500, [63, 126, 252, 500]),
            (1000, [125, 250, 500, 1000]),
            (1024, [128, 256, 512, 1024]),
        ],
    )
    def test_the_first_is_at_an_eighth_and_each_next_at_twice_as_many(self, n: int, expected: list[int]) -> None:
        assert looks(n) == expected

    @pytest.mark.parametrize("n", [2, 15, 17, 48, 100, 129, 5000])
    def test_they_end_with_all_prompts_and_none_is_at_a_handful(self, n: int) -> None:
        found = looks(n)
        assert found[-1] == n
        assert found == sorted(set(found))
        assert len(found) <= 1 + math.ceil(math.log2(1 / FIRST_LOOK))
        assert min(found) >= min(n, LEAST_LOOK)

    @pytest.mark.parametrize("n", [2, 31, 131, 180, 260, 500, 512, 900, 1003])
    def test_bracketing_takes_a_quarter_and_no_more_than_the_look_at_it(self, n: int) -> None:
        assert n_explore(n) in looks(n)
        assert min(n, max(32, n / 4)) <= n_explore(n) <= max(32, n / 4 + 2)

    @pytest.mark.parametrize("kind", ["reward", "win-rate", "length-controlled"])
    def test_an_alpha_as_good_as_the_best_is_dropped_in_at_most_one_race_of_a_hundred(self, kind: Kind) -> None:
        """Both give longer answers than alpha = 0, and longer ones are rewarded."""
        rng, races, dropped = np.random.default_rng(1), 400, 0
        for _ in range(races):
            control = rng.normal(size=128)
            longer = rng.normal(30, 10, size=(2, 128)).round()
            rewards = control + 0.01 * longer + 0.7 * rng.normal(size=(2, 128))
            at_0, rival, candidate = (
                {i: Rated(float(r), 100 + int(x)) for i, (r, x) in enumerate(zip(*pair, strict=True))}
                for pair in ((control, np.zeros(128)), (rewards[0], longer[0]), (rewards[1], longer[1]))
            )
            best, ends = prompt_gains(rival, at_0, kind), looks(128)
            seen = ({i: candidate[i] for i in range(n)} for n in ends[:-1])
            dropped += any(hopeless(prompt_gains(c, at_0, kind), best, WRONG_DROP / len(ends)) for c in seen)
        # three standard errors of a rate of 0.01 over 400 races
        assert dropped / races <= WRONG_DROP + 0.015


class TestRace:
    def test_a_trial_that_cannot_win_stops_at_a_look_and_keeps_what_it_has(self, store: Store) -> None:
        model = FakeModel()
        evaluate = objective(store, model).evaluate
        evaluate(CONTROL, 0.0)
        found = evaluate(1, 3.0, best=CONTROL)
        assert hill(3.0) < -0.5
        assert (found.outcome, found.gain.n, found.stopped_early) == ("hopeless", 16, True)
        assert found.gain.mean == pytest.approx(hill(3.0), abs=0.15)
        asked = {i for alpha, i in model.asked if alpha == 3.0}
        assert {p.id for p in PROMPTS[:16]} <= asked
        assert len(asked) <= 16 + model.in_flight
        assert model.aborted == 64 - len(asked), "what was under way is aborted"
        stored = {PROMPTS[s.position].id for s in store.completions(1, "search", PROMPTS)}
        assert stored == asked, "what was finished is kept"

    def test_one_that_may_win_is_evaluated_on_all_prompts(self, store: Store) -> None:
        evaluate = objective(store).evaluate
        evaluate(CONTROL, 0.0)
        found = evaluate(1, PLACE, best=CONTROL)
        assert (found.outcome, found.gain.n, found.stopped_early) == ("complete", 64, False)

    def test_it_races_against_the_best_and_not_only_against_alpha_0(self, store: Store) -> None:
        evaluate = objective(store, scorer=FakeScorer(truth=lambda a: a, noise=0.1)).evaluate
        evaluate(CONTROL, 0.0)
        evaluate(1, 1.0, best=CONTROL)
        assert evaluate(2, 0.3, best=CONTROL).outcome == "complete"
        assert evaluate(3, 0.3, best=1).outcome == "hopeless"

    def test_the_best_alpha_hardly_ever_loses_its_race(self, store: Store) -> None:
        """Twenty alphas as good as the rival, twenty that are better: with a chance of 0.2 one of the first falls."""
        evaluate = objective(store, scorer=FakeScorer(truth=lambda a: 0.02 * (a > 1.5), noise=0.1)).evaluate
        evaluate(CONTROL, 0.0)
        evaluate(1, 1.0)
        found = [evaluate(1 + i, 1 + i / 40, best=1) for i in range(1, 41)]
        assert sum(e.outcome == "hopeless" for e in found) <= 1
        assert all(e.outcome == "complete" for e in found if e.alpha > 1.5)

    def test_answers_that_are_cut_off_or_loop_stop_it_at_the_first_look(self, store: Store) -> None:
        model = FakeModel(collapse=1.0)
        # the reward model likes loops: rewards alone would let this trial win
        evaluate = objective(store, model, FakeScorer(truth=lambda a: a, noise=0.1)).evaluate
        control = evaluate(CONTROL, 0.0)
        found = evaluate(1, 1.0, best=CONTROL)
        assert (found.outcome, found.gain.n) == ("degenerate", 16)
        assert (found.share_cut, found.share_repeating) == (1.0, 1.0)
        assert {"cut off", "repeating"} <= set(found.broken)
        assert control.share_repeating == 0.0

    def test_a_trial_of_which_little_is_asked_stops_at_the_next_look_with_enough(self, store: Store) -> None:
        evaluate = objective(store).evaluate
        evaluate(CONTROL, 0.0)
        assert (evaluate(1, 0.3, best=CONTROL, n_most=17).outcome, evaluate(2, 0.2, best=CONTROL).outcome) == (
            "enough",
            "complete",
        )
        assert store.n_completions(1, "search", 64) == 32

    def test_without_a_race_there_is_one_look_at_everything(self, store: Store) -> None:
        evaluate, seen = objective(store).evaluate, list[Evaluation]()
        evaluate(CONTROL, 0.0)
        found = evaluate(1, 3.0, on_look=seen.append)
        assert [e.gain.n for e in seen] == [64]
        assert found.outcome == "complete"

    def test_enough_is_enough_without_a_race_too(self, store: Store) -> None:
        """As when an export is evaluated again: to the look at which it ended then, however bad it is."""
        evaluate = objective(store).evaluate
        evaluate(CONTROL, 0.0)
        found = evaluate(1, 3.0, n_most=32)
        assert (found.outcome, found.gain.n) == ("enough", 32)
        assert evaluate(2, 3.0, n_most=64).outcome == "complete"

    def test_alpha_0_does_not_race(self, store: Store) -> None:
        seen = list[Evaluation]()
        found = objective(store).evaluate(CONTROL, 0.0, best=CONTROL, n_most=16, on_look=seen.append)
        assert [e.gain.n for e in seen] == [64]
        assert (found.outcome, found.gain, found.broken) == ("complete", estimate([0.0] * 64), ())

    def test_each_look_sees_the_gain_on_the_prompts_so_far(self, store: Store) -> None:
        evaluate, seen = objective(store).evaluate, list[Evaluation]()
        evaluate(CONTROL, 0.0)
        found = evaluate(1, PLACE, best=CONTROL, on_look=seen.append)
        rewards = [store.rated(trial, "search") for trial in (0, 1)]
        gains = [rewards[1][i].reward - rewards[0][i].reward for i in range(64)]
        assert [e.gain for e in seen] == [estimate(gains[:n]) for n in LOOKS]
        assert seen[-1].gain == found.gain

    @pytest.mark.parametrize("dies_after", [1, 16, 40])
    @pytest.mark.parametrize("part", ["model", "scorer"])
    def test_one_that_was_killed_asks_for_no_answer_twice_and_ends_as_an_unbroken_one(
        self, store: Store, part: str, dies_after: int
    ) -> None:
        unbroken = objective(store)
        unbroken.evaluate(CONTROL, 0.0)
        whole = unbroken.evaluate(1, 0.3, best=CONTROL)
        store.drop("search")
        first, second = FakeModel(), FakeModel()
        dying = FakeScorer(truth=hill, noise=0.1)
        objective(store, first, dying).evaluate(CONTROL, 0.0)
        first.dies_after, dying.dies_after = (64 + dies_after, None) if part == "model" else (None, 64 + dies_after)
        with pytest.raises(Killed):
            objective(store, first, dying).evaluate(1, 0.3, best=CONTROL)
        assert bare(objective(store, second).evaluate(1, 0.3, best=CONTROL)) == bare(whole)
        asked = first.asked + second.asked
        assert len(asked) == len(set(asked)) == 128

    def test_answers_at_alpha_0_are_read_and_looked_through_for_loops_once_and_not_in_each_trial(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads, looked_at = list[int](), list[str]()
        completions = store.completions

        def counted(trial: int, part: Part, prompts: Sequence[Prompt]) -> list[Stored]:
            reads.append(trial)
            return completions(trial, part, prompts)

        def repeating(text: str) -> float:
            looked_at.append(text)
            return repetition(text)

        monkeypatch.setattr(store, "completions", counted)
        monkeypatch.setattr("expo_search.evaluation.objective.repetition", repeating)
        evaluate = objective(store).evaluate
        evaluate(CONTROL, 0.0)
        of_control = [s.completion.text for s in completions(CONTROL, "search", PROMPTS)]
        for trial in (1, 2, 3):
            assert evaluate(trial, PLACE + trial / 100, best=CONTROL).outcome == "complete"
            if trial == 1:
                reads.clear()
        assert reads == [2, 3], "each trial's own, to go on from"
        assert sorted(t for t in looked_at if t in of_control) == sorted(of_control)

    def test_alpha_0_that_is_evaluated_anew_is_compared_with_anew(self, store: Store) -> None:
        model = FakeModel()
        found = objective(store, model)
        found.evaluate(CONTROL, 0.0)
        before = found.evaluate(1, PLACE, best=CONTROL)
        store.drop("search")
        model.stretch = lambda _: 3.0
        found.evaluate(CONTROL, 0.0)
        model.stretch = lambda _: 1.0
        again = found.evaluate(1, PLACE, best=CONTROL)
        assert before.length_ratio == 1.0
        assert again.length_ratio == pytest.approx(1 / 3, abs=0.01)  # lengths are whole tokens

    def test_covariances_are_those_of_the_stored_rewards(self, store: Store) -> None:
        evaluate = objective(store).evaluate
        for trial, alpha in enumerate((0.0, 0.3, 0.5)):
            evaluate(trial, alpha)
        found = evaluate(3, 0.4, best=1, n_most=16, others=dict.fromkeys(range(3), 128))
        rated = [store.rated(trial, "search") for trial in range(4)]
        gains = [{i: r.reward - rated[0][i].reward for i, r in of.items()} for of in rated]
        assert len(gains[3]) == 16
        assert found.covariances == {t: mean_covariance(gains[3], gains[int(t)]) for t in ("1", "2")}
        assert min(found.covariances.values()) > 0, "the noise of alpha = 0 is in all gains"


class TestNoBarriers:
    """The model has all prompts from the start; what is decided depends on the prompts' order, not on the answers'."""

    def test_all_prompts_are_handed_over_at_once_in_their_order_but_the_longest_soon(self, store: Store) -> None:
        model = FakeModel()
        evaluate = objective(store, model).evaluate
        evaluate(CONTROL, 0.0)
        evaluate(1, PLACE, best=CONTROL)
        ids = [p.id for p in PROMPTS]
        lengths = {i: r.length for i, r in store.rated(CONTROL, "search").items()}
        assert model.handed == [ids, [ids[i] for i in handing_order(range(64), 16, lengths)]]
        assert model.aborted == 0

    def test_the_longest_twentieth_begins_after_the_prompts_of_the_first_look(self) -> None:
        lengths = {i: i % 50 for i in range(100)}
        order = handing_order(range(100), 20, lengths)
        assert order[:24] == [*range(20), 49, 99, 48, 98]
        assert order[24:] == [i for i in range(20, 100) if i not in (48, 49, 98, 99)]
        assert handing_order(range(100), 20, {}) == list(range(100))

    def test_a_trial_of_which_little_is_asked_gets_the_prompts_of_its_last_look_alone(self, store: Store) -> None:
        model = FakeModel()
        evaluate = objective(store, model).evaluate
        evaluate(CONTROL, 0.0)
        evaluate(1, PLACE, best=CONTROL, n_most=17)
        assert model.handed[1] == [p.id for p in PROMPTS[:32]]

    @pytest.mark.parametrize("in_flight", [1, 30, 1000])
    def test_neither_the_answers_order_nor_when_they_are_scored_changes_a_result(
        self, url: str, in_flight: int
    ) -> None:
        found = []
        for beside, model in ((False, FakeModel()), (True, FakeModel(in_flight=in_flight))):
            store = Store(url, f"{beside}-{in_flight}")
            evaluate = objective(store, model, scores_beside=beside).evaluate
            evaluate(CONTROL, 0.0)
            done = [evaluate(1, PLACE, best=CONTROL)]
            done.append(evaluate(2, 3.0, best=1, others={1: 64}))
            done.append(evaluate(3, 1.01 * PLACE, best=1, n_most=20, others={1: 64, 2: done[1].gain.n}))
            found.append([replace(bare(e), n_tokens=0) for e in done])
        assert found[0] == found[1]
        assert [e.outcome for e in found[0]] == ["complete", "hopeless", "enough"]

    @pytest.mark.parametrize("dies_after", [1, 20, 63])
    @pytest.mark.parametrize("in_flight", [8, 1000])
    def test_one_that_is_killed_decides_as_an_unbroken_one(self, url: str, dies_after: int, in_flight: int) -> None:
        found = []
        for name, first in (("whole", FakeModel()), ("killed", FakeModel(in_flight=in_flight, dies_after=dies_after))):
            store = Store(url, f"{name}-{in_flight}-{dies_after}")
            objective(store).evaluate(CONTROL, 0.0)
            with suppress(Killed):
                objective(store, first).evaluate(1, 3.0, best=CONTROL)
            found.append(bare(objective(store).evaluate(1, 3.0, best=CONTROL)))
        assert replace(found[0], n_tokens=0) == replace(found[1], n_tokens=0)

    def test_answers_beyond_a_look_are_kept_and_counted_and_change_nothing(self, store: Store) -> None:
        evaluate = objective(store, FakeModel(in_flight=1000)).evaluate
        evaluate(CONTROL, 0.0)
        stopped = evaluate(1, 3.0, best=CONTROL)
        assert stopped.gain.n == 16
        assert store.n_completions(1, "search", 64) > 16
        assert stopped.n_tokens > 16 * stopped.mean_length
        rated = [store.rated(trial, "search") for trial in (0, 1)]
        assert stopped.gain == estimate([rated[1][i].reward - rated[0][i].reward for i in range(16)])
        whole = evaluate(2, PLACE, others={1: 16})
        first = {i: rated[1][i].reward - rated[0][i].reward for i in range(16)}
        gains = {i: r.reward - rated[0][i].reward for i, r in store.rated(2, "search").items()}
        assert whole.covariances == {"1": mean_covariance(gains, first)}

    def test_answers_are_scored_as_they_come_where_the_model_goes_on_meanwhile(self, store: Store) -> None:
        many = make_prompts(400)
        scored_at: list[int] = []
        model = FakeModel()

        class Noted(FakeScorer):
            def score(
                self, completions: Sequence[Completion], on_scored: Callable[[int], None]
            ) -> tuple[list[float], int]:
                scored_at.append(len(model.asked))
                return super().score(completions, on_scored)

        beside = Objective(model, Noted(), store, many, FakeWatcher(), scores_beside=True)
        beside.evaluate(CONTROL, 0.0)
        assert len(scored_at) == sum(-(-n // 64) for n in (50, 50, 100, 200))
        assert scored_at[0] < 80
        assert max(b - a for a, b in pairwise(scored_at)) <= 64 + 2 * model.in_flight

    @pytest.mark.parametrize("trial", [CONTROL, 1])
    def test_one_that_does_not_race_stops_at_a_look_and_goes_on_to_the_same_numbers(
        self, store: Store, trial: int
    ) -> None:
        alpha, model, again = trial * PLACE, FakeModel(), FakeModel()
        unbroken = objective(store)
        whole = [unbroken.evaluate(t, a) for t, a in ((CONTROL, 0.0), (1, PLACE))][trial]
        store.drop("search")
        if trial != CONTROL:
            objective(store).evaluate(CONTROL, 0.0)
        with pytest.raises(Stopped):
            objective(store, model).evaluate(trial, alpha, stop=lambda: True)
        stored = store.n_completions(trial, "search", 64)
        assert 16 <= len(model.asked) == stored <= 16 + model.in_flight
        assert bare(objective(store, again).evaluate(trial, alpha)) == bare(whole)
        assert len(again.asked) == 64 - stored


class TestGuardrails:
    def test_an_alpha_is_held_to_its_limits_against_alpha_0(self, store: Store) -> None:
        evaluate = objective(store, FakeModel(stretch=lambda a: 1 + a)).evaluate
        control = evaluate(CONTROL, 0.0)
        within, beyond = evaluate(1, 1.9), evaluate(2, 2.1)
        assert control.broken == within.broken == ()
        assert beyond.broken == ("length",)
        assert within.length_ratio == pytest.approx(2.9, rel=0.02)  # lengths are whole tokens
        assert within.excess["length"] == within.length_ratio - 3.0 < 0 < beyond.excess["length"]

    def test_the_limits_are_the_studys(self, store: Store) -> None:
        limits = GuardrailSpec(length_ratio=1.5)
        evaluate = objective(store, FakeModel(stretch=lambda a: 1 + a), guardrails=limits).evaluate
        evaluate(CONTROL, 0.0)
        assert evaluate(1, 1.9).broken == ("length",)

    def test_what_alpha_0_does_itself_breaks_nothing(self, store: Store) -> None:
        evaluate = objective(store, FakeModel(collapse=0.0)).evaluate
        assert evaluate(CONTROL, 0.0).share_cut == 1.0
        found = evaluate(1, 0.3, best=CONTROL)
        assert (found.broken, found.outcome, found.share_repeating) == ((), "complete", 1.0)

    def test_one_that_breaks_a_limit_is_infeasible_for_optuna_and_cannot_win(self, store: Store) -> None:
        model = FakeModel(stretch=lambda a: 4.0 if a == 0.5 else 1.0)
        scorer = FakeScorer(truth=lambda a: a, noise=0.1)
        spec = SearchSpec(sampler="grid", alpha_min=0.0, alpha_max=0.5)
        found = search(store, objective(store, model, scorer), spec, 4)
        best_by_gain = max(found, key=lambda e: e.gain.mean)
        assert (best_by_gain.alpha, best_by_gain.broken) == (0.5, ("length",))
        chosen = verdict(found).best
        assert chosen is not None
        assert chosen.alpha == pytest.approx(1 / 3)
        trials = store.study.get_trials()
        assert [max(t.constraints.values()) > 0 for t in trials] == [bool(e.broken) for e in found]
        assert [t.constraints for t in trials] == [dict(e.excess) for e in found]
        assert store.study.best_trial.params["alpha"] == pytest.approx(1 / 3), "Optuna's own best is feasible"


class TestObjectives:
    @pytest.mark.parametrize("kind", ["reward", "win-rate", "length-controlled"])
    def test_what_is_told_is_the_gain_by_the_studys_objective(self, store: Store, kind: Kind) -> None:
        model = FakeModel(stretch=lambda a: 1 + a)
        spec = SearchSpec(sampler="random", alpha_min=0.1, alpha_max=1.0, objective=kind, seed=1)
        found = search(store, objective(store, model, kind=kind), spec, 3)
        gains = {
            "reward": [e.difference.mean for e in found],
            "win-rate": [e.win_rate.mean - 0.5 for e in found],
            "length-controlled": [e.length_controlled.mean for e in found],
        }
        assert [t.value for t in store.study.trials] == pytest.approx(gains[kind], abs=1e-12)
        assert len({tuple(round(g, 9) for g in of) for of in gains.values()}) == 3
        assert found[0].gain.mean == 0.0

    def test_the_gain_so_far_is_an_intermediate_value_at_its_number_of_prompts(self, store: Store) -> None:
        spec = SearchSpec(sampler="grid", alpha_min=0.0, alpha_max=3.0)
        found = search(store, objective(store), spec, 3)
        assert [e.outcome for e in found] == ["complete", "hopeless", "hopeless"]
        for e, t in zip(found, store.study.trials, strict=True):
            assert list(t.intermediate_values) == ([64] if e.trial == CONTROL else [n for n in LOOKS if n <= e.gain.n])
            assert t.intermediate_values[e.gain.n] == t.value == e.gain.mean


class TestSearch:
    """Whole searches by `expo`."""

    @staticmethod
    def go(store: Store, n_trials: int, spec: SearchSpec, truth: Callable[[float], float] = hill) -> FakeModel:
        model = FakeModel(collapse=2.0)
        search(store, objective(store, model, FakeScorer(truth=truth, noise=0.1)), spec, n_trials)
        return model

    def test_it_finds_the_optimum_and_ends_when_it_has(self, store: Store) -> None:
        spec = SearchSpec(seed=4)
        model = self.go(store, 20, spec)
        found = evaluations(store.study)
        best = verdict(found, search=spec).best
        assert best is not None
        assert hill(best.alpha) > 0.9 * 0.3
        assert len(found) < 20
        assert len(model.asked) < 0.75 * 64 * len(found), "racing and bracketing spare prompts"
        assert {e.outcome for e in found} >= {"complete", "enough"}
        done = why_done(store.study, spec, 20, None)
        assert done is not None
        assert done.startswith(f"settled after {len(found)} trials")
        # the same command again has nothing to do, nor has one for fewer trials
        for n_trials in (20, len(found) - 1):
            again = self.go(store, n_trials, spec)
            assert (again.asked, again.alphas) == ([], [])
        # with a tolerance of 0 it goes on
        self.go(store, len(found) + 1, spec.model_copy(update={"tolerance": 0.0}))
        assert evaluations(store.study)[:-1] == found

    def test_trials_come_back_whole_from_the_database(self, store: Store) -> None:
        told: list[Evaluation] = []
        scorer = FakeScorer(truth=hill, noise=0.1)
        search(store, objective(store, FakeModel(collapse=1.0), scorer), SearchSpec(), 6, on_trial=told.append)
        assert evaluations(Store(store.url, store.name).study) == told
        assert {e.outcome for e in told} == {"complete", "enough", "degenerate"}
        # each knows the covariances with those before it, but for the control
        assert [sorted(e.covariances) for e in told] == [[], *([str(i) for i in range(1, n)] for n in range(1, 6))]
        assert all(json.dumps(e.attributes(), allow_nan=False) for e in told)

    def test_trials_that_bracket_are_given_few_prompts_and_refining_ones_all(self, store: Store) -> None:
        self.go(store, 9, SearchSpec(seed=4, tolerance=0.0))
        found = evaluations(store.study)
        assert [e.alpha for e in found[1:3]] == [0.25, 0.5]
        assert found[1].outcome == "enough"
        assert found[1].gain.n == n_explore(64) == 32
        assert any(e.gain.n == 64 for e in found[3:])

    @pytest.mark.parametrize("breaks_a_guardrail", [False, True])
    def test_trials_race_against_the_best_so_far_that_may_win(self, store: Store, breaks_a_guardrail: bool) -> None:
        def truth(alpha: float) -> float:
            return 0.5 if 0 < alpha < 0.5 else 0.1 * (alpha > 0)

        model = FakeModel(stretch=lambda a: 4.0 if breaks_a_guardrail and 0 < a < 0.5 else 1.0)
        spec = SearchSpec(sampler="grid", alpha_min=0.0, alpha_max=0.9)
        found = search(store, objective(store, model, FakeScorer(truth=truth, noise=0.1)), spec, 4)
        assert [e.alpha for e in found] == pytest.approx([0.0, 0.3, 0.6, 0.9])
        assert bool(found[1].broken) == breaks_a_guardrail
        third = "complete" if breaks_a_guardrail else "hopeless"  # a gain of 0.1 is one, but not against 0.5
        assert [e.outcome for e in found] == ["complete", "complete", third, third]

    def test_without_racing_every_trial_is_whole(self, store: Store) -> None:
        model = self.go(store, 5, SearchSpec(racing=False, tolerance=0.0))
        assert len(model.asked) == 5 * 64
        assert all(e.outcome == "complete" for e in evaluations(store.study))

    @pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
    def test_other_samplers_never_end_early(self, store: Store, sampler: str) -> None:
        spec = SearchSpec(sampler=sampler, tolerance=0.9)
        self.go(store, 6, spec, truth=lambda _: 0.0)
        assert len(evaluations(store.study)) == 6
        assert why_done(store.study, spec, 6, None) == "6 finished trials"
        assert why_done(store.study, spec, 7, None) is None

    def test_where_no_alpha_gains_it_ends_and_says_so(self, store: Store) -> None:
        spec = SearchSpec(seed=1)
        self.go(store, 20, spec, truth=lambda a: -abs(a))
        found = evaluations(store.study)
        assert len(found) < 20
        assert verdict(found, search=spec).word in ("no evidence of a gain", "worse")

    @pytest.mark.parametrize("dies_after", [70, 200])
    def test_one_that_was_killed_ends_as_an_unbroken_one(self, url: str, store: Store, dies_after: int) -> None:
        spec, dying, whole = SearchSpec(seed=4), FakeModel(dies_after=dies_after, collapse=2.0), Store(url, "whole")
        self.go(whole, 7, spec)
        with pytest.raises(Killed):
            search(store, objective(store, dying), spec, 7)
        asked = dying.asked + self.go(store, 7, spec).asked
        assert len(asked) == len(set(asked))
        assert [bare(e) for e in evaluations(store.study)] == [bare(e) for e in evaluations(whole.study)]

    def test_the_first_step_stands_in_the_study(self, store: Store) -> None:
        search(store, objective(store), SearchSpec(), 1, relative_delta=0.002)
        assert store.attributes.first_step == 0.5
