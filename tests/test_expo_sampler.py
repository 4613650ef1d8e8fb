"""The sampler `expo`: by Optuna's contract, how it brackets, how it refines, what it recommends, when it is content.

A history is made of trials whose gains follow from alpha alone, with a standard error as if they had been measured.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import optuna
import pytest
from fakes import make_evaluation, normal
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from expo_search.config.spec import SearchSpec
from expo_search.evaluation.result import Evaluation, Outcome
from expo_search.search.alpha_range import WIDEST, bounds, first_step
from expo_search.search.expo_sampler import ExpoSampler, record_gain
from expo_search.search.proposal import bracketing, expected_regret, propose, settled, winner
from expo_search.stats.paired import Estimate
from expo_search.store.attributes import StudyAttributes

SE = 0.02
CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
Truth = Callable[[float], float]


def hill(place: float, top: float = 0.3) -> Truth:
    """`top` at a place of either sign, 0 at 0 and at three times the place, falling beyond and on the other side."""

    def truth(alpha: float) -> float:
        x = alpha / place
        return 2 * top * x if x < 0 else top * (1 - (math.log1p(x) / math.log(2) - 1) ** 2)

    return truth


def explored(
    truth: Truth,
    n: int = 14,
    *,
    low: float = WIDEST[0],
    high: float = WIDEST[1],
    start: float = 0.25,
    cliff: float = math.inf,
    noise: float = 0.0,
    until_settled: bool = False,
) -> list[Evaluation]:
    """The trials that the sampler makes, each with a standard error of SE; from a cliff on they degenerate."""
    trials: list[Evaluation] = []
    while len(trials) < n and not (until_settled and trials and settled(trials, low, high, start, 0.05)):
        alpha = propose(trials, low, high, start)
        if alpha == 0:
            trials.append(replace(CONTROL, trial=len(trials)))
        elif alpha >= cliff:
            trials.append(trial(len(trials), alpha, -3.0, "degenerate"))
        else:
            trials.append(trial(len(trials), alpha, truth(alpha) + noise * normal(alpha)))
    return trials


def trial(number: int, alpha: float, gain: float, outcome: Outcome = "complete", se: float = SE) -> Evaluation:
    return replace(make_evaluation(number, alpha, gain, se), outcome=outcome)


def alphas(trials: list[Evaluation]) -> list[float]:
    return [e.alpha for e in trials]


def best(trials: list[Evaluation]) -> Evaluation:
    found = winner(trials)
    assert found is not None
    return found


class TestInOptuna:
    """Values that another program tells, without our attributes: the sampler must do with the values."""

    @staticmethod
    def study(direction: Literal["minimize", "maximize"] = "maximize", **options: Any) -> optuna.Study:
        return optuna.create_study(direction=direction, sampler=ExpoSampler(seed=1, **options))

    @staticmethod
    def told(study: optuna.Study) -> list[float]:
        return [t.params["alpha"] for t in study.get_trials(states=(TrialState.COMPLETE,))]

    def test_it_is_a_sampler(self) -> None:
        assert issubclass(ExpoSampler, BaseSampler)

    # the hill's width goes with its place; where it is less than 2 % below its top, nothing is gained any more
    @pytest.mark.parametrize(
        ("low", "high", "place"), [(0, 1, 0.37), (0, 64, 7.0), (1, 2, 1.4), (-2, -1, -1.4), (-1, 1, -0.4)]
    )
    def test_optimize_finds_the_optimum_of_a_plain_function(self, low: float, high: float, place: float) -> None:
        study, truth = self.study(), hill(place)
        study.optimize(lambda t: 5.0 + truth(t.suggest_float("alpha", low, high)), n_trials=14)
        assert truth(study.best_params["alpha"]) > 0.98 * 0.3
        assert all(low <= a <= high for a in self.told(study))

    def test_the_first_alpha_is_0_or_the_nearest_there_is(self) -> None:
        for low, high, first in ((0.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (0.5, 1.0, 0.5), (-2.0, -1.0, -1.0)):
            assert self.study().ask().suggest_float("alpha", low, high) == first

    def test_minimising_the_negative_is_maximising(self) -> None:
        up, down = self.study(), self.study("minimize")
        up.optimize(lambda t: 2 + hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=10)
        down.optimize(lambda t: -2 - hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=10)
        assert self.told(down) == pytest.approx(self.told(up), rel=1e-9)

    def test_ask_and_tell_gives_what_optimize_gives(self) -> None:
        optimized, told = self.study(), self.study()
        optimized.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=9)
        for _ in range(9):
            t = told.ask()
            told.tell(t, hill(0.4)(t.suggest_float("alpha", 0, 1)))
        assert self.told(told) == self.told(optimized)

    def test_the_same_history_gives_the_same_proposal_to_a_new_sampler(self) -> None:
        study, other = self.study(), self.study()
        study.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=8)
        for t in study.trials[:7]:
            other.add_trial(t)
        assert other.ask().suggest_float("alpha", 0, 1) == study.trials[7].params["alpha"]

    def test_other_parameters_are_drawn_beside_alpha(self) -> None:
        def value(t: optuna.Trial) -> float:
            t.suggest_float("temperature", 0.5, 1.0)
            alpha = t.suggest_float("alpha", 0, 1)
            return hill(0.4)(alpha) - (t.suggest_categorical("style", ["plain", "bold"]) == "bold")

        study = self.study()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            study.optimize(value, n_trials=14)
        assert {t.params["style"] for t in study.trials} == {"plain", "bold"}
        assert len({t.params["temperature"] for t in study.trials}) == 14
        assert len(set(self.told(study))) == 14

    def test_the_parameter_may_have_another_name(self) -> None:
        study = self.study(parameter="gamma", start=0.3)
        study.optimize(lambda t: hill(0.4)(t.suggest_float("gamma", 0, 1)), n_trials=10)
        assert study.trials[1].params["gamma"] == 0.3
        assert study.best_value > 0.98 * 0.3

    def test_a_trial_that_failed_is_no_observation(self) -> None:
        study = self.study()
        study.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=3)
        failing = study.ask()
        wanted = failing.suggest_float("alpha", 0, 1)
        study.tell(failing, state=TrialState.FAIL)
        assert study.ask().suggest_float("alpha", 0, 1) == wanted

    @pytest.mark.parametrize("ending", ["pruned", "nan", "-inf"])
    def test_alphas_that_give_no_value_are_a_cliff_which_it_closes_in_on(self, ending: str) -> None:
        def value(t: optuna.Trial) -> float:
            alpha = t.suggest_float("alpha", 0, 8)
            if alpha < 1:
                return hill(0.7)(alpha)
            if ending == "pruned":
                raise optuna.TrialPruned
            return float(ending)

        study = self.study(start=0.3)
        study.optimize(value, n_trials=14)
        asked = [t.params["alpha"] for t in study.trials]
        lost = [a for a in asked if a >= 1]
        assert asked[:4] == [0, 0.3, 0.6, 1.2]
        assert max(lost) == 1.2
        assert max(map(lost.count, lost)) == (2 if ending == "nan" else 1), "what failed once may have failed by chance"
        assert hill(0.7)(max(study.best_trials, key=lambda t: t.values[0]).params["alpha"]) > 0.97 * 0.3

    def test_a_range_without_0_of_which_nothing_gave_a_value_yet_is_gone_on_with_elsewhere(self) -> None:
        study = self.study()
        for n in range(1, 5):
            trial = study.ask()
            trial.suggest_float("alpha", 0.5, 1)
            study.tell(trial, state=TrialState.PRUNED)
            assert len({t.params["alpha"] for t in study.trials}) == n

    @pytest.mark.parametrize(
        ("low", "high", "step", "first"),
        [(0, 8, 0.25, 0.0), (-0.3, 2.0, 0.1, 0.0), (0.5, 2.0, 0.5, 0.5), (-0.1, 1.9, 0.25, -0.1)],
    )
    def test_a_distribution_with_steps_gets_alphas_on_them_and_none_twice_while_others_are_left(
        self, low: float, high: float, step: float, first: float
    ) -> None:
        study, other = self.study(start=0.3), optuna.create_study()
        study.optimize(lambda t: hill(1.4)(t.suggest_float("alpha", low, high, step=step)), n_trials=14)
        asked = self.told(study)
        n_there = round((high - low) / step) + 1
        assert asked[0] == first
        assert len(set(asked)) == min(14, n_there)
        other.add_trials(study.trials)  # which refuses what its distribution does not contain
        within = [low + i * step for i in range(n_there)]
        assert hill(1.4)(max(study.best_trials, key=lambda t: t.values[0]).params["alpha"]) > 0.98 * max(
            map(hill(1.4), within)
        )

    def test_in_a_study_of_our_own_what_failed_is_not_asked_for_again(self) -> None:
        """What is worth it the loop repeats by itself, before it asks."""
        study = self.study()
        StudyAttributes(first_step=0.3).keep_in(study)
        study.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=3)
        asked = set()
        for _ in range(3):
            failing = study.ask()
            asked.add(failing.suggest_float("alpha", 0, 1))
            study.tell(failing, state=TrialState.FAIL)
        assert len(asked) == 3

    def test_an_alpha_that_failed_twice_and_was_measured_then_counts_as_measured(self) -> None:
        def asked(*, fails: int) -> float:
            study = self.study()
            study.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=2)
            for _ in range(fails):
                failing = study.ask()
                failing.suggest_float("alpha", 0, 1)
                study.enqueue_trial(failing.params)
                study.tell(failing, state=TrialState.FAIL)
            study.optimize(lambda t: hill(0.4)(t.suggest_float("alpha", 0, 1)), n_trials=1)
            return study.ask().suggest_float("alpha", 0, 1)

        assert asked(fails=2) == asked(fails=0)

    @pytest.mark.parametrize("n_at_a_time", [2, 4])
    def test_several_trials_at_a_time_are_at_different_alphas_and_find_the_optimum(self, n_at_a_time: int) -> None:
        study = self.study()
        for _ in range(16 // n_at_a_time):
            asked = [study.ask() for _ in range(n_at_a_time)]
            places = [t.suggest_float("alpha", 0, 4) for t in asked]
            for t, alpha in zip(asked, places, strict=True):
                study.tell(t, hill(0.4)(alpha))
        assert len({round(alpha, 6) for alpha in self.told(study)}) == 16
        assert study.best_value > 0.97 * 0.3

    def test_what_the_trials_say_of_themselves_counts_more_than_their_values(self) -> None:
        """A value may be another number, a mean reward, say: the gains are in the attributes."""
        by_value, by_attributes = self.study(), self.study()

        def evaluate(t: optuna.Trial, *, attributes: bool) -> float:
            alpha = t.suggest_float("alpha", 0, 1)
            if attributes:
                for key, value in {"gain": hill(0.4)(alpha), "gain_se": SE if alpha else 0.0, "n_prompts": 100}.items():
                    t.set_user_attr(key, value)
            return 0.0 if attributes else hill(0.4)(alpha)

        by_attributes.optimize(lambda t: evaluate(t, attributes=True), n_trials=10)
        by_value.optimize(lambda t: evaluate(t, attributes=False), n_trials=10)
        assert self.told(by_attributes)[:4] == self.told(by_value)[:4]
        assert max(hill(0.4)(a) for a in self.told(by_attributes)) > 0.98 * 0.3

    def test_where_some_trials_say_nothing_of_themselves_the_others_and_alpha_0_count(self) -> None:
        def asked(*, control_too: bool, another: bool) -> float:
            study = self.study()
            for alpha in (0.0, 0.5, 1.0, 2.0, *([1.4] if another else [])):
                study.enqueue_trial({"alpha": alpha})
                trial = study.ask()
                trial.suggest_float("alpha", 0, 4)
                if alpha not in (1.4, *([] if control_too else [0.0])):
                    record_gain(trial, Estimate(hill(0.4)(alpha), SE if alpha else 0.0, 100))
                study.tell(trial, 7.0)
            return study.ask().suggest_float("alpha", 0, 4)

        whole = asked(control_too=True, another=False)
        assert asked(control_too=False, another=False) == whole
        assert asked(control_too=False, another=True) == whole

    def test_equal_rewards_do_not_make_it_forget_how_the_trials_ended(self) -> None:
        """A scorer that gives every answer the same: no gain has an error, and answers of one alpha loop."""
        study = self.study()
        for alpha in (0.0, 1.0):
            study.enqueue_trial({"alpha": alpha})
            trial = study.ask()
            trial.suggest_float("alpha", 0, 4)
            record_gain(trial, Estimate(0.0, 0.0, 100), outcome="degenerate" if alpha else "complete")
            study.tell(trial, 0.0)
        assert study.ask().suggest_float("alpha", 0, 4) < 1


class TestBracketing:
    def test_alpha_0_comes_first_and_then_the_first_step(self) -> None:
        assert propose([], -1.0, 64.0, 0.3) == 0.0
        assert propose([CONTROL], -1.0, 64.0, 0.3) == 0.3
        assert propose([CONTROL], 0.0, 2.0) == 0.5, "a quarter of the range, where no step is given"
        assert propose([CONTROL], 0.0, 0.2, 0.3) == 0.2
        assert propose([CONTROL], 0.5, 1.0, 0.3) == 0.5

    def test_it_doubles_until_the_gain_is_gone(self) -> None:
        found = alphas(explored(hill(3.0), 20))
        doubling = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
        assert found[1:7] == doubling
        assert hill(3.0)(8.0) > 0 > hill(3.0)(16.0)
        assert found[7] == 16.0
        assert max(found) == 16.0

    def test_it_goes_past_a_dip_to_a_higher_hill_beyond(self) -> None:
        def two_hills(alpha: float) -> float:
            return max(0.6 * hill(0.5)(alpha), hill(8.0)(alpha))

        assert two_hills(0.5) > two_hills(1.5) < two_hills(8.0)
        found = explored(two_hills, 20)
        assert best(found).alpha == pytest.approx(8.0, rel=0.35)

    @pytest.mark.parametrize("place", [0.05, 0.1])
    def test_it_goes_down_by_fours_when_the_first_step_is_too_far(self, place: float) -> None:
        found = alphas(explored(hill(place), 20, start=4.0))
        down = [4.0]
        while hill(place)(down[-1]) + 1.3 * SE < 0:
            down.append(down[-1] / 4)
        assert found[1 : 1 + len(down)] == down
        assert len(down) > 2

    def test_negative_alphas_are_tried_where_every_positive_one_loses(self) -> None:
        found = explored(hill(-0.3), 20)
        assert -1.0 <= min(alphas(found)) < 0
        assert best(found).alpha == pytest.approx(-0.3, rel=0.35)
        assert best(found).gain.mean > 0.95 * 0.3

    @pytest.mark.parametrize("truth", [hill(0.4), hill(20.0)])
    def test_they_are_not_where_a_positive_one_gains(self, truth: Truth) -> None:
        assert min(alphas(explored(truth, 16))) == 0

    @pytest.mark.parametrize("place", [-0.1, -0.3, -0.7])
    def test_one_alpha_that_clearly_loses_is_reason_to_look_below_0_though_smaller_ones_do_not(
        self, place: float
    ) -> None:
        """On few prompts the smallest step's loss cannot be told from 0."""
        near, far = trial(1, 0.25, -0.03, "enough", se=0.05), trial(2, 0.5, -0.12, "enough", se=0.05)
        nearer = trial(3, 0.0625, -0.01, "enough", se=0.05)
        further = trial(4, 1.0, -0.3, "enough", se=0.05)
        assert bracketing([CONTROL, near, far, further], -1.0, 64.0, 0.25) == 0.0625, "first a step down"
        assert bracketing([CONTROL, near, far, further, nearer], -1.0, 64.0, 0.25) == -0.5
        assert bracketing([CONTROL, near, far, further, nearer], 0.0, 64.0, 0.25) is None
        gains = replace(nearer, gain=Estimate(0.1, 0.05, 100))
        assert bracketing([CONTROL, near, far, further, gains], -1.0, 64.0, 0.25) is None
        found = explored(hill(place), 20, noise=SE)
        assert best(found).gain.mean > 0.85 * 0.3

    def test_a_small_alpha_that_was_lucky_on_few_prompts_does_not_keep_it_from_looking_below_0(self) -> None:
        lucky = trial(1, 0.0625, 0.08, "enough", se=0.05)
        lost = [trial(2, 0.25, -0.12, "enough", se=0.05), trial(3, 0.5, -0.3, "hopeless", se=0.05)]
        assert bracketing([CONTROL, lucky, *lost], -1.0, 64.0, 0.25) is None, "first it is tried on all prompts"
        assert bracketing([CONTROL, lucky, *lost, trial(4, 0.08, 0.01, se=0.03)], -1.0, 64.0, 0.25) == -0.25
        assert bracketing([CONTROL, lucky, *lost, trial(4, 0.08, 0.1, se=0.03)], -1.0, 64.0, 0.25) is None

    def test_only_one_step_down_is_taken_for_a_loss_that_may_be_chance(self) -> None:
        steps = [trial(i, a, -0.01, "enough", se=0.05) for i, a in enumerate((0.25, 0.5, 1.0, 2.0), 1)]
        fallen = trial(9, 4.0, -3.0, "degenerate")
        assert bracketing([CONTROL, *steps, fallen], 0.0, 64.0, 0.25) == pytest.approx(2 * math.sqrt(2))
        steps.append(trial(8, 2 * math.sqrt(2), -0.01, "enough", se=0.05))
        assert bracketing([CONTROL, *steps, fallen], 0.0, 64.0, 0.25) == 0.0625
        steps.append(trial(7, 0.0625, -0.01, "enough", se=0.05))
        assert bracketing([CONTROL, *steps, fallen], 0.0, 64.0, 0.25) is None

    def test_nor_in_a_range_that_has_none(self) -> None:
        assert min(alphas(explored(hill(-0.3), 16, low=0.0))) == 0

    def test_a_range_that_was_given_is_doubled_up_to_its_end(self) -> None:
        found = alphas(explored(hill(20.0), 12, low=0.0, high=3.0, start=0.75))
        assert found[:4] == [0.0, 0.75, 1.5, 3.0]
        assert max(found) == 3.0

    def test_in_a_range_that_was_narrowed_no_step_lies_beyond_it(self) -> None:
        gains = {0.25: 0.1, 0.5: 0.2, 1.0: 0.3, 2.0: 0.35}
        known = [CONTROL, *(trial(i, a, g) for i, (a, g) in enumerate(gains.items(), 1))]
        fallen = trial(5, 4.0, -3.0, "degenerate")
        assert bracketing([*known, fallen], 0.0, 64.0, 0.25) == pytest.approx(math.sqrt(8))
        assert bracketing([*known, fallen], 0.0, 2.0, 0.25) is None
        assert propose([*known, fallen], 0.0, 2.0, 0.25) < 2.0

    def test_a_bracketed_optimum_needs_no_more_steps(self) -> None:
        trials = [CONTROL, trial(1, 0.25, 0.2), trial(2, 0.5, 0.3), trial(3, 1.0, -0.2)]
        assert bracketing(trials[:3], -1.0, 64.0, 0.25) == 1.0
        assert bracketing(trials, -1.0, 64.0, 0.25) is None

    @pytest.mark.parametrize(
        ("last", "goes_on"),
        [
            (trial(3, 1.0, 0.05), True),
            (trial(3, 1.0, 0.05, "hopeless"), True),  # worse than the best; a higher hill may follow
            (trial(3, 1.0, -0.05, "hopeless", se=0.1), True),  # perhaps no worse than alpha = 0
            (trial(3, 1.0, -0.2, "hopeless"), False),
            (trial(3, 1.0, -4.9 * SE), True),
            (trial(3, 1.0, -5.1 * SE), False),
            (trial(3, 1.0, 0.4, "degenerate"), False),
        ],
    )
    def test_the_doubling_ends_where_a_trial_is_clearly_below_alpha_0_or_degenerate(
        self, last: Evaluation, goes_on: bool
    ) -> None:
        trials = [CONTROL, trial(1, 0.25, 0.2), trial(2, 0.5, 0.3), last]
        assert (bracketing(trials, -1.0, 64.0, 0.25) == 2.0) == goes_on

    def test_one_trial_below_alpha_0_by_what_may_be_chance_does_not_end_it_but_a_second_does(self) -> None:
        perhaps, low = ([trial(i, a, -z * SE) for i, a in enumerate((0.25, 0.5), 1)] for z in (1.9, 2.1))
        assert bracketing([CONTROL, low[0]], -1.0, 64.0, 0.25) == 0.5
        assert bracketing([CONTROL, *low], -1.0, 64.0, 0.25) == 0.25 / 4
        assert bracketing([CONTROL, *perhaps], -1.0, 64.0, 0.25) == 1.0

    def test_an_alpha_that_breaks_a_guardrail_bounds_it_too(self) -> None:
        trials = [CONTROL, trial(1, 0.25, -0.2), replace(trial(2, 0.0625, 0.3), broken=("cut off",))]
        step = bracketing(trials, 0.0, 64.0, 0.25)
        assert step is not None
        assert step < 0.0625


@pytest.mark.parametrize("place", [0.05, 0.37, 3.0, 30.0, -0.3])
def test_optima_of_any_size_are_found_without_a_range(place: float) -> None:
    found = explored(hill(place), 20, until_settled=True)
    # it ends when 5 % of the gain or half a standard error, here 3 %, is all that it expects to find
    assert hill(place)(best(found).alpha) > 0.9 * 0.3
    assert len(found) < 20


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("high", [1.0, 64.0])
def test_proposals_stay_in_the_range_and_never_come_twice(seed: int, high: float) -> None:
    place = math.copysign(0.1 * 4**seed, 1 if seed else -1)
    found = alphas(explored(hill(place), 20, low=-0.5, high=high, noise=0.1, cliff=3 * abs(place)))
    assert all(-0.5 <= a <= high for a in found)
    gaps = [abs(math.log(b / a)) for a, b in pairwise(sorted(a for a in found if a > 0))]
    assert min(gaps, default=1.0) > 1e-3
    assert len(set(found)) == 20


@pytest.mark.parametrize(("cliff", "place"), [(1.3, 1.1), (0.6, 0.5), (7.0, 6.0)])
def test_a_cliff_is_approached_from_below(cliff: float, place: float) -> None:
    found = explored(hill(place), 16, cliff=cliff)
    lowest_fallen = math.inf
    for e in found:
        assert e.alpha < lowest_fallen, "nothing is looked for beyond a collapse"
        if e.outcome == "degenerate":
            lowest_fallen = e.alpha
    assert cliff <= lowest_fallen < 2 * cliff
    assert hill(place)(best(found).alpha) > 0.9 * hill(place)(place)
    assert sum(e.outcome == "degenerate" for e in found) < 6


@pytest.mark.parametrize(
    ("low", "high", "cliff", "best"),
    [
        (1.0, 8.0, 2.0, 1.3),
        (0.7, 8.0, 1.2, 0.9),
        (0.7, 8.0, 0.1, None),
        (-4.0, -1.0, 1.5, -1.2),
        (-1.0, -0.5, 0.9, -0.7),
        (-1.0, -0.5, 0.1, None),
    ],
)
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_a_range_without_0_is_searched_up_to_its_near_end(
    low: float, high: float, cliff: float, best: float | None, tolerance: float
) -> None:
    """The first step lies beyond the cliff."""
    trials, start = [trial(0, 0.0, 0.0)], 2.75 if low > 0 else None
    while len(trials) < 12 and not settled(trials, low, high, start, tolerance):
        alpha = propose(trials, low, high, start)
        assert low <= alpha <= high
        fell = abs(alpha) >= cliff
        gain = -3.0 if fell else 0.3 - 0.1 * abs(alpha - (best or 0.0))
        trials.append(trial(len(trials), alpha, gain, "degenerate" if fell else "complete"))
    assert len(trials) == 12 or tolerance > 0
    assert any(t.outcome == "complete" for t in trials[1:]) == (best is not None)
    if best is not None:
        assert min(abs(t.alpha - best) for t in trials) < 0.3


class TestWinner:
    NEIGHBOURS = tuple(trial(i, a, 0.3, se=0.05) for i, a in enumerate((0.8, 0.9, 1.0, 1.1, 1.2), 1))
    LONER = trial(9, 0.25, 0.34, se=0.05)  # a little better by its own number; it stands alone

    def test_it_is_none_where_nothing_but_alpha_0_was_tried_or_none_may_win(self) -> None:
        assert winner([]) is None
        assert winner([CONTROL]) is None
        broken = replace(trial(2, 0.4, 0.5), broken=("length",))
        assert winner([CONTROL, trial(1, 0.2, -0.1, "hopeless"), broken, trial(3, 0.8, 0.0, "degenerate")]) is None

    def test_the_fit_weighs_the_neighbours_in(self) -> None:
        assert winner([CONTROL, self.LONER, *self.NEIGHBOURS]) in self.NEIGHBOURS

    def test_beside_a_cliff_the_data_decide(self) -> None:
        fallen = trial(10, 1.4, -3.0, "degenerate")
        assert winner([CONTROL, self.LONER, *self.NEIGHBOURS, fallen]) is self.LONER

    def test_a_trial_of_a_few_prompts_does_not_win_where_one_was_evaluated_whole(self) -> None:
        """It tells too little: its interval holds 0, and a whole trial's need not."""
        whole, lucky = trial(1, 0.5, 0.3), trial(2, 1.0, 0.6, "enough", se=0.1)
        assert winner([CONTROL, whole, lucky]) is whole
        assert winner([CONTROL, lucky]) is lucky

    def test_beside_a_cliff_a_trial_of_a_few_prompts_does_not_win_against_whole_ones(self) -> None:
        lucky, fallen = trial(9, 0.9, 0.6, "enough", se=0.1), trial(10, 1.4, -3.0, "degenerate")
        whole = trial(1, 0.5, 0.3)
        assert winner([CONTROL, whole, lucky, fallen]) is whole

    @pytest.mark.parametrize("outcome", ["hopeless", "degenerate"])
    def test_a_trial_that_was_stopped_because_it_lost_never_wins(self, outcome: Outcome) -> None:
        lost, other = trial(1, 0.5, 9.0, outcome), trial(2, 0.25, 0.01)
        assert winner([CONTROL, lost, other]) is other

    def test_nor_does_one_that_broke_a_guardrail(self) -> None:
        broken, other = replace(trial(1, 0.5, 9.0), broken=("repeating",)), trial(2, 0.25, 0.01)
        assert winner([CONTROL, broken, other]) is other

    def test_a_loss_is_recommended_only_where_there_is_nothing_better_than_alpha_0(self) -> None:
        assert winner([CONTROL, trial(1, 0.5, -0.02), trial(2, 1.0, -0.3)]) is not None
        assert best([CONTROL, trial(1, 0.5, -0.02), trial(2, 0.25, 0.1)]).alpha == 0.25


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e3])
def test_the_unit_of_the_reward_changes_nothing(unit: float) -> None:
    """A scorer may give likelihoods."""

    def in_unit(e: Evaluation) -> Evaluation:
        return replace(e, gain=Estimate(e.gain.mean * unit, e.gain.se * unit, e.gain.n))

    trials = explored(hill(0.4), 6)
    scaled = [in_unit(e) for e in trials]
    assert propose(scaled, *WIDEST, 0.25) == pytest.approx(propose(trials, *WIDEST, 0.25), rel=1e-6)
    assert settled(scaled, *WIDEST, 0.25, 0.05) == settled(trials, *WIDEST, 0.25, 0.05)


@pytest.mark.parametrize("fallen", [-3.0, -1e5, -1e9])
def test_how_far_a_collapsed_trial_fell_settles_nothing(fallen: float) -> None:
    """A scorer may have a number of its own for answers that cannot be read."""
    good = [trial(1, 0.5, 0.1), trial(2, 1.0, 0.3)]
    assert not settled([CONTROL, *good, trial(3, 1.5, fallen, "degenerate")], 0.0, 64.0, 0.25, 0.05)


class TestSettled:
    FOUND = explored(hill(0.4), 12)

    def test_a_search_that_has_found_its_optimum_is_settled(self) -> None:
        assert settled(self.FOUND, *WIDEST, 0.25, 0.05)

    def test_with_a_tolerance_of_0_it_never_is(self) -> None:
        assert not settled(self.FOUND, *WIDEST, 0.25, 0.0)

    @pytest.mark.parametrize("n", [1, 2, 3, 4])
    def test_one_that_is_still_bracketing_is_not(self, n: int) -> None:
        assert bracketing(self.FOUND[:n], *WIDEST, 0.25) is not None
        assert not settled(self.FOUND[:n], *WIDEST, 0.25, 0.5)

    def test_the_gain_must_have_been_measured_on_all_prompts(self) -> None:
        explored_only = [e if e.alpha == 0 else replace(e, outcome="enough") for e in self.FOUND]
        assert not settled(explored_only, *WIDEST, 0.25, 0.5)

    @pytest.mark.parametrize(("n_whole", "expected"), [(1, False), (2, True)])
    def test_by_two_trials_at_least(self, n_whole: int, expected: bool) -> None:
        whole = sorted(self.FOUND, key=lambda e: e.gain.mean)[-n_whole:]
        trials = [e if e.alpha == 0 or e in whole else replace(e, outcome="enough") for e in self.FOUND]
        assert settled(trials, *WIDEST, 0.25, 0.5) is expected

    def test_what_half_a_standard_error_hides_is_not_searched_for(self) -> None:
        gains, se = {0.25: 0.1, 0.5: 0.3, 1.0: -0.3, 0.35: 0.1}, 0.05
        trials = [CONTROL, *(trial(i, alpha, gain, se=se) for i, (alpha, gain) in enumerate(gains.items(), 1))]
        before, now = (expected_regret(trials[:n], *WIDEST) for n in (4, 5))
        assert se / 4 < now < se / 2 < before < se
        assert not settled(trials[:4], *WIDEST, 0.25, 1e-9)
        assert settled(trials, *WIDEST, 0.25, 1e-9)

    @pytest.mark.parametrize("truth", [lambda _: 0.0, lambda a: -0.3 * abs(a), lambda _: -3.0])
    def test_where_there_is_no_gain_a_search_ends_all_the_same(self, truth: Truth) -> None:
        found = explored(truth, 20, until_settled=True)
        assert len(found) < 20

    def test_a_smaller_tolerance_takes_no_fewer_trials(self) -> None:
        def n_needed(tolerance: float) -> int:
            return next(n for n in range(1, 13) if settled(self.FOUND[:n], *WIDEST, 0.25, tolerance))

        assert n_needed(0.01) >= n_needed(0.05) >= n_needed(0.5)


class TestRange:
    def test_without_one_expo_has_the_widest_there_is(self) -> None:
        assert bounds(SearchSpec(), None) == bounds(SearchSpec(), 0.3) == (-1.0, 64.0)

    @pytest.mark.parametrize("sampler", ["gp", "tpe", "grid", "random"])
    def test_without_one_other_samplers_get_twice_the_published_alpha_and_at_least_1(self, sampler: str) -> None:
        spec = SearchSpec(sampler=sampler)
        assert [bounds(spec, published) for published in (None, 0.3, 8.0)] == [(0, 1), (0, 1), (0, 16)]

    @pytest.mark.parametrize("sampler", ["expo", "tpe"])
    def test_an_end_that_was_given_is_kept_and_the_other_lies_on_its_side(self, sampler: str) -> None:
        def ends(low: float | str, high: float | str) -> tuple[float, float]:
            return bounds(SearchSpec(alpha_min=low, alpha_max=high, sampler=sampler), None)

        assert ends(0.5, 2.0) == (0.5, 2.0)
        assert ends("auto", 2.0) == (-1.0 if sampler == "expo" else 0.0, 2.0)
        assert ends("auto", -0.5) == (-1.5, -0.5)
        for low in (-3.0, 0.5, 1.0, 99.0):
            found_low, found_high = ends(low, "auto")
            assert found_low == low < found_high

    def test_the_first_step_is_the_published_alpha(self) -> None:
        assert first_step(SearchSpec(), 8.0, 0.01) == 8.0
        assert first_step(SearchSpec(alpha_max=2.0), 0.3, None) == 0.3

    def test_in_a_range_that_was_given_it_is_a_quarter_of_what_lies_above_0(self) -> None:
        assert first_step(SearchSpec(alpha_max=2.0), None, 0.01) == 0.5
        assert first_step(SearchSpec(alpha_max=2.0), 99.0, 0.01) == 0.5
        assert first_step(SearchSpec(alpha_min=-1.0, alpha_max=2.0), None, 0.01) == 0.5
        assert first_step(SearchSpec(alpha_min=1.0, alpha_max=2.0), None, 0.01) == 1.25

    def test_else_it_is_larger_the_smaller_the_delta_is(self) -> None:
        steps = [first_step(SearchSpec(), None, delta) for delta in (1e-9, 0.001, 0.004, 0.01, 1.0)]
        assert steps == [4.0, 1.0, 0.25, 0.1, 0.05]

    def test_a_delta_whose_last_bits_differ_gives_the_same_step(self) -> None:
        assert first_step(SearchSpec(), None, 0.0031000001) == first_step(SearchSpec(), None, 0.0031)

    def test_where_nothing_is_known_of_the_delta_it_is_a_quarter(self) -> None:
        assert first_step(SearchSpec(), None, None) == 0.25
