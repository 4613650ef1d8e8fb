"""Paired differences and intervals, against numbers worked out by hand and tables of Student's t."""

from __future__ import annotations

import math

import pytest

from expo_search.statistics import Estimate, estimate, paired_difference

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
