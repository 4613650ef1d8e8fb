"""Intervals of a picked gain: wide enough downwards for the pick, and no wider; what n prompts can tell.

A simulated rate from n repetitions has a standard error of sqrt(p (1 - p) / n); bounds lie three of them away.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm, t

from expo_search.stats.paired import Estimate, estimate
from expo_search.stats.selection import Power, critical, few_prompts, picked_interval, rivals, student

Array = NDArray[np.float64]
# the simulated quantile has a standard error of 0.7 % at 20,000 draws
QUANTILE = 0.02


def measured(gains: Array) -> tuple[list[Estimate], Array]:
    """Estimates and their covariance from gains on prompts, shape (prompts, alphas)."""
    return [estimate(column.tolist()) for column in gains.T], np.atleast_2d(np.cov(gains.T)) / len(gains)


def correlated(rng: np.random.Generator, n: int, n_alphas: int, correlation: float) -> Array:
    own = rng.normal(size=(n, n_alphas))
    return np.asarray(math.sqrt(correlation) * rng.normal(size=(n, 1)) + math.sqrt(1 - correlation) * own)


def judged(gains: Array) -> tuple[float, float]:
    """The interval of the alpha with the highest mean."""
    e, covariance = measured(gains)
    best = max(range(len(e)), key=lambda i: e[i].mean)
    near = rivals(best, e, covariance)
    return picked_interval(e[best], critical(covariance[np.ix_(near, near)]))


def test_for_a_single_alpha_the_interval_is_students() -> None:
    [e], covariance = measured(np.random.default_rng(7).normal(size=(30, 1)))
    low, high = picked_interval(e, critical(covariance))
    assert high == e.high
    assert e.mean - low == pytest.approx(e.mean - e.low, rel=QUANTILE)


def test_it_reaches_lower_the_more_alphas_were_tried_and_less_than_bonferronis() -> None:
    covariance = np.full((16, 16), 0.7) + 0.3 * np.eye(16)
    z = [critical(covariance[:k, :k]) for k in (1, 4, 16)]
    assert z == sorted(z)
    assert z[-1] < 0.95 * norm.ppf(1 - 0.025 / 16), "correlated alphas are fewer than they look"
    assert z[-1] > 1.1 * z[0]


def test_for_independent_alphas_it_is_sidaks() -> None:
    assert critical(np.eye(5)) == pytest.approx(norm.ppf(0.975 ** (1 / 5)), rel=QUANTILE)


def test_an_alpha_tried_many_times_over_costs_no_more_than_once() -> None:
    assert critical(np.full((10, 10), 0.01)) == pytest.approx(norm.ppf(0.975), rel=QUANTILE)


def test_few_prompts_reach_further_as_students_t_does() -> None:
    assert student(1.959964, 4) == pytest.approx(t.ppf(0.975, 3), rel=1e-6)


def test_what_is_clearly_worse_than_the_pick_does_not_count_and_what_shares_its_noise_is_told_apart_sooner() -> None:
    gains = [Estimate(0.5, 0.1, 100), Estimate(0.2, 0.1, 100), Estimate(-0.5, 0.1, 100)]
    assert rivals(0, gains, 0.01 * np.eye(3)) == [0, 1], "0.3 is two standard errors of the difference, 1.0 is seven"
    assert rivals(0, gains, 0.01 * (0.9 + 0.1 * np.eye(3))) == [0], "now a standard error of it is 0.045"
    near, far = (Estimate(0.5 - z * math.sqrt(0.02), 0.1, 100) for z in (2.7, 2.9))
    assert rivals(0, [gains[0], near, far], 0.01 * np.eye(3)) == [0, 1]
    assert rivals(1, gains, 0.01 * np.eye(3)) == [0, 1], "one that looks better than the pick is a rival"


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_where_no_alpha_gains_the_best_looking_one_is_called_a_gain_in_one_search_of_forty(correlation: float) -> None:
    rng, searches = np.random.default_rng(9), 400
    false = sum(judged(correlated(rng, 64, 8, correlation))[0] > 0 for _ in range(searches))
    assert false / searches <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / searches)
    if correlation < 0.9:
        naive = 0
        for _ in range(searches):
            e, _ = measured(correlated(rng, 64, 8, correlation))
            naive += max(e, key=lambda x: x.mean).low > 0
        assert naive / searches > 0.06, "without the correction the test above would show nothing"


@pytest.mark.parametrize("gap", [0.0, 0.2, 1.0])
def test_the_interval_of_the_pick_holds_its_truth_whether_it_has_rivals_or_none(gap: float) -> None:
    rng, searches, held = np.random.default_rng(10), 600, 0
    truth = np.array([gap, 0.0, 0.0, 0.0, -gap])
    for _ in range(searches):
        gains = correlated(rng, 64, 5, 0.5) + truth
        low, high = judged(gains)
        held += low <= truth[int(gains.mean(axis=0).argmax())] <= high
    assert held / searches >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / searches)
    assert held / searches < 0.995, "not much wider than it must be"


class TestPower:
    def test_a_gain_of_the_least_size_is_told_four_times_in_five(self) -> None:
        power = Power(sd=2.0, n=200, z=2.3)
        rng, trials = np.random.default_rng(11), 2000
        told = 0
        for _ in range(trials):
            e = estimate((power.least_gain + 2.0 * rng.standard_normal(200)).tolist())
            told += picked_interval(e, 2.3)[0] > 0
        assert told / trials == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / trials))

    def test_so_many_prompts_as_it_names_are_not_too_few(self) -> None:
        few = Power(sd=0.7, n=24, z=2.4)
        assert few.is_too_small
        assert not Power(0.7, few.n_needed, 2.4).is_too_small
        assert few.sentence().startswith(f"Too few prompts to tell a gain below {few.least_gain:.2g}: ")
        assert f"about {few.n_needed}, not 24, tell one of 0.21" in few.sentence()

    def test_where_prompts_are_many_it_says_what_would_have_been_seen(self) -> None:
        assert Power(0.7, 1000, 2.3).sentence() == "A gain of 0.07 would be told from 0 four times in five."

    def test_before_a_search_only_few_prompts_are_worth_a_word(self) -> None:
        said = few_prompts(24)
        assert said is not None
        assert "Too few prompts to tell a gain below 0.6" in said
        assert "standard deviations" in said
        assert few_prompts(256) is None
