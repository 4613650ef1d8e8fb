"""Paired differences, intervals and tests, against numbers worked out by hand, tables of Student's t, and simulation.

A simulated rate from n repetitions has a standard error of sqrt(p (1 - p) / n); bounds lie three of them away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from expo_search.contracts import Rated
from expo_search.stats.paired import (
    Estimate,
    Kind,
    estimate,
    gain,
    hopeless,
    mean_covariance,
    paired_difference,
    prompt_gains,
    rise_beyond_chance,
    win_rate,
)

Array = NDArray[Any]
# 97.5 % quantiles of Student's t by degrees of freedom, from a printed table (3 decimals)
T_TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 10: 2.228, 30: 2.042, 120: 1.980}


def test_mean_and_standard_error_of_four_values_are_those_worked_out_by_hand() -> None:
    # mean 5; squared deviations 9 + 1 + 1 + 9 = 20; variance 20 / 3; standard error sqrt(20 / 3 / 4)
    found = estimate([2.0, 4.0, 6.0, 8.0])
    assert found.mean == 5.0
    assert found.n == 4
    assert found.se == pytest.approx(math.sqrt(5 / 3), rel=1e-15)


@pytest.mark.parametrize("df", T_TABLE)
def test_the_interval_is_that_of_the_t_distribution(df: int) -> None:
    found = Estimate(mean=10.0, se=2.0, n=df + 1)
    # the table is rounded to 0.0005, times the standard error of 2
    assert found.high == pytest.approx(10.0 + 2.0 * T_TABLE[df], abs=1e-3)
    assert found.low == pytest.approx(10.0 - 2.0 * T_TABLE[df], abs=1e-3)


def test_a_single_value_has_an_unbounded_interval() -> None:
    found = estimate([3.5])
    assert (found.mean, found.se, found.n) == (3.5, math.inf, 1)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_equal_values_have_no_error() -> None:
    found = estimate([0.1] * 7)
    assert found == Estimate(0.1, 0.0, 7)
    assert found.low == found.high == 0.1


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_a_difference_is_paired_by_position_over_the_prompts_that_both_have() -> None:
    # in common 1, 2, 5: differences 1, 2, 3 -> mean 2, variance 1, standard error 1 / sqrt(3)
    found = paired_difference({5: 13.0, 1: 11.0, 2: 102.0, 9: 1e9}, {1: 10.0, 2: 100.0, 5: 10.0, 7: -1e9})
    assert found.mean == 2.0
    assert found.n == 3
    assert found.se == pytest.approx(1 / math.sqrt(3), rel=1e-15)


def test_pairing_takes_the_prompts_own_level_out_of_the_error() -> None:
    control = {i: 100.0 * i for i in range(10)}
    shifted = {i: r + 0.5 for i, r in control.items()}
    assert estimate(list(shifted.values())).se > 90
    assert paired_difference(shifted, control) == Estimate(0.5, 0.0, 10)


def test_the_control_differs_from_itself_by_exactly_nothing() -> None:
    control = {i: 0.1 * i for i in range(5)}
    assert paired_difference(control, control) == Estimate(0.0, 0.0, 5)


def test_no_prompt_in_common_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        paired_difference({1: 1.0}, {2: 1.0})


def test_a_mean_of_many_values_is_rounded_once() -> None:
    # adding from left to right in floats gives 1; the exact sum is 2
    assert estimate([1e100, 1.0, -1e100, 1.0]).mean == 0.5


KINDS: list[Kind] = ["reward", "win-rate", "length-controlled"]


def rated(rewards: Sequence[float] | Array, lengths: Sequence[int] | Array | None = None) -> dict[int, Rated]:
    return {i: Rated(float(r), 10 if lengths is None else int(lengths[i])) for i, r in enumerate(rewards)}


def three_sigma(rate: float, n: int) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / n)


def test_a_win_rate_counts_a_tie_half() -> None:
    # two wins, one tie, one loss: (2 + 1/2) / 4; values 1, 1, 1/2, 0 have the standard error sqrt(11 / 48 / 4)
    found = win_rate(rated([3, 9, 1, 0]), rated([1, 2, 1, 5]))
    assert (found.mean, found.n) == (0.625, 4)
    assert found.se == pytest.approx(math.sqrt(11 / 48 / 4), rel=1e-12)


def test_answers_that_always_win_have_a_win_rate_of_1_and_the_control_one_of_a_half() -> None:
    control = rated([1, 2, 3])
    assert win_rate(rated([2, 3, 4]), control) == Estimate(1.0, 1 / 3, 3)  # three wins do not make it certain
    assert win_rate(control, control) == Estimate(0.5, 0.0, 3)


@pytest.mark.parametrize(("n", "shows"), [(2, False), (5, False), (6, True), (100, True)])
@pytest.mark.parametrize("step", [0.5, 0.1])
def test_so_few_prompts_that_all_gain_the_same_show_no_gain(n: int, shows: bool, step: float) -> None:
    """As with a coin: five heads in a row come by chance more often than once in forty."""
    found = gain(rated([0.7 + i + step for i in range(n)]), rated([0.7 + i for i in range(n)]), "reward")
    assert found.mean == pytest.approx(step)
    assert (found.low > 0) == shows


def test_the_length_controlled_gain_is_what_is_left_at_equal_lengths() -> None:
    rng = np.random.default_rng(1)
    lengths, longer = rng.integers(20, 200, 50), rng.integers(0, 60, 50)
    control = rated(rng.normal(size=50), lengths)
    # half a point at equal lengths, and a hundredth for each token more, without noise
    answers = {i: Rated(c.reward + 0.5 + 0.01 * int(longer[i]), c.length + int(longer[i])) for i, c in control.items()}
    found = gain(answers, control, "length-controlled")
    assert found.mean == pytest.approx(0.5, abs=1e-12)
    assert found.se == pytest.approx(2 * 0.5 / 50, rel=1e-9), "every prompt says the same"
    assert gain(answers, control, "reward").mean == pytest.approx(0.5 + 0.01 * longer.mean(), rel=1e-12)


def test_the_length_controlled_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held, n = np.random.default_rng(2), 0, 500
    for _ in range(n):
        # all answers are longer: the intercept lies outside the data, and its error is mostly the slope's
        longer = rng.normal(30, 10, 40).round()
        differences = 0.3 + 0.02 * longer + rng.normal(0, 0.5, 40)
        found = gain(rated(differences, 50 + longer), rated(np.zeros(40), np.full(40, 50)), "length-controlled")
        held += found.low <= 0.3 <= found.high
    assert held / n == pytest.approx(0.95, abs=three_sigma(0.95, n))


def test_the_length_controlled_gain_is_the_intercept_of_ordinary_least_squares() -> None:
    rng, n = np.random.default_rng(10), 2000
    x = rng.normal(30, 10, n).round()
    y = 0.3 + 0.02 * x + rng.normal(0, 0.5, n)
    found = gain(rated(y, 50 + x), rated(np.zeros(n), np.full(n, 50)), "length-controlled")
    (_, intercept), covariance = np.polyfit(x, y, 1, cov="unscaled")
    assert found.mean == pytest.approx(intercept, rel=1e-9)
    # the jackknife's error has one of its own, of a few per cent
    assert found.se == pytest.approx(0.5 * math.sqrt(covariance[1, 1]), rel=0.08)


@pytest.mark.parametrize("n", [1, 2])
def test_two_prompts_are_too_few_to_control_for_length(n: int) -> None:
    answers, control = rated([3.0, 9.0][:n], [5, 9]), rated([1.0, 2.0][:n], [5, 6])
    assert gain(answers, control, "length-controlled") == gain(answers, control, "reward")


def test_one_answer_that_differs_in_length_alone_sets_the_slope_and_leaves_the_others_their_mean() -> None:
    found = gain(rated([3, 4, 5, 60], [9, 9, 9, 99]), rated([0, 0, 0, 0], [9, 9, 9, 9]), "length-controlled")
    assert found.mean == pytest.approx(4.0, rel=1e-12)
    assert math.isfinite(found.se)


def test_answers_of_equal_lengths_need_no_length_control() -> None:
    answers, control = rated([3, 9, 1, 0]), rated([1, 2, 1, 5])
    assert gain(answers, control, "length-controlled").mean == gain(answers, control, "reward").mean


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_prompts_say_averages_to_the_gain(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    answers, control = (rated(rng.normal(size=30), rng.integers(5, 99, 30)) for _ in range(2))
    gains = prompt_gains(answers, control, kind)
    assert gains.keys() == answers.keys()
    assert math.fsum(gains.values()) / 30 == pytest.approx(gain(answers, control, kind).mean, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_one_side_lacks_does_not_count(kind: Kind) -> None:
    answers, control = rated([3, 9, 1, 0, 4], [5, 9, 7, 8, 8]), rated([1, 2, 1, 5, 6], [5, 6, 7, 9, 6])
    both = gain({i: answers[i] for i in (0, 2, 3)}, {i: control[i] for i in (0, 2, 3)}, kind)
    assert gain({i: answers[i] for i in (0, 2, 3, 4)}, {i: control[i] for i in (0, 1, 2, 3)}, kind) == both
    with pytest.raises(ValueError, match="no values"):
        gain({0: answers[0]}, {1: control[1]}, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_control_gains_exactly_nothing_over_itself(kind: Kind) -> None:
    control = rated([0.1, 0.2, 0.7, 0.4], [5, 9, 7, 8])
    assert gain(control, control, kind) == Estimate(0.0, 0.0, 4)


def pairs(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Two gains on each of n prompts, shape (n, 2): variances 1 and 4, covariance 1."""
    shared = rng.normal(size=n)
    return np.stack([shared, shared + math.sqrt(3) * rng.normal(size=n)], axis=1)


@pytest.mark.parametrize(("n_a", "n_b"), [(60, 60), (60, 20), (20, 60)])
def test_the_covariance_of_two_means_is_that_of_their_draws_also_where_one_has_fewer_prompts(
    n_a: int, n_b: int
) -> None:
    rng, means, claimed = np.random.default_rng(4), [], []
    for _ in range(1500):
        drawn = pairs(rng, 60)
        a, b = (dict(enumerate(drawn[:n, i])) for i, n in ((0, n_a), (1, n_b)))
        means.append((drawn[:n_a, 0].mean(), drawn[:n_b, 1].mean()))
        claimed.append(mean_covariance(a, b))
    expected = 1.0 * min(n_a, n_b) / (n_a * n_b)
    # the covariance of 1500 draws of means with variances 1 / n_a and 4 / n_b and correlation at most 1/2
    tolerance = 3 * math.sqrt(1.25 * 4 / (n_a * n_b) / 1500)
    assert np.cov(np.array(means).T)[0, 1] == pytest.approx(expected, abs=tolerance)
    assert np.mean(claimed) == pytest.approx(expected, rel=0.03)


def test_means_over_hardly_any_common_prompt_count_as_independent() -> None:
    assert mean_covariance({1: 1.0, 2: 3.0, 3: 9.0}, {2: 3.0, 3: 9.0, 4: 1.0}) == 0.0


@pytest.mark.parametrize("n", [8, 32])
def test_a_candidate_as_good_as_the_best_is_called_hopeless_no_more_often_than_allowed(n: int) -> None:
    rng, repetitions, error = np.random.default_rng(5), 1500, 0.05
    dropped = 0
    for _ in range(repetitions):
        candidate, best = pairs(rng, n).T
        dropped += hopeless(dict(enumerate(candidate)), dict(enumerate(best)), error)
    assert dropped / repetitions == pytest.approx(error, abs=three_sigma(error, repetitions))


def test_a_candidate_that_is_clearly_worse_is_called_hopeless() -> None:
    rng = np.random.default_rng(6)
    best = {i: float(x) for i, x in enumerate(rng.normal(0, 5, 16))}
    worse = {i: x - 1 + 0.5 * float(rng.normal()) for i, x in best.items()}  # two standard deviations, eight errors
    assert hopeless(worse, best, 0.0025)
    assert not hopeless(best, worse, 0.0025)
    assert hopeless(worse, best | {99: 1e9}, 0.0025), "only common prompts count"


def test_fewer_than_eight_prompts_condemn_nobody() -> None:
    assert not hopeless(dict.fromkeys(range(7), -1e9), dict.fromkeys(range(7), 0.0), 0.05)
    assert hopeless(dict.fromkeys(range(8), -1.0), dict.fromkeys(range(8), 0.0), 0.05)


@pytest.mark.parametrize(
    ("share", "control", "n", "is_rise"),
    [
        (1.0, 0.0, 16, True),
        (0.2, 0.0, 10_000, False),  # the limit itself
        (0.5, 0.25, 16, False),  # 0.25 is above the limit of 0.2, but two standard errors are 0.33
        (0.5, 0.25, 1000, True),  # here they are 0.04
        (0.0, 1.0, 1000, False),
        (1.0, 0.9, 1000, False),  # what alpha = 0 does is not held against others
    ],
)
def test_a_share_has_risen_only_beyond_its_limit_and_chance(
    share: float, control: float, n: int, is_rise: bool
) -> None:
    assert rise_beyond_chance(share, control, n, limit=0.2) == is_rise
