"""Laws that estimates keep whatever the rewards are."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from expo_search.stats.paired import estimate, paired_difference

# products and sums of these stay well inside the range of a float, so that rounding is all that can differ
rewards = st.floats(-1e6, 1e6, allow_subnormal=False)
several = st.lists(rewards, min_size=2, max_size=30)
by_position = st.dictionaries(st.integers(0, 40), rewards, min_size=1, max_size=30)
law = settings(deadline=None)  # the first call imports scipy
CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-6}


@law
@given(values=several)
def test_the_mean_lies_among_the_values_and_in_its_interval(values: list[float]) -> None:
    found = estimate(values)
    slack = 1e-9 * max(map(abs, values), default=0)
    assert min(values) - slack <= found.mean <= max(values) + slack
    assert found.low <= found.mean <= found.high
    assert found.n == len(values)
    assert found.se >= 0


@law
@given(values=several, shift=rewards, data=st.data())
def test_order_does_not_matter_and_a_shift_moves_the_mean_alone(
    values: list[float], shift: float, data: st.DataObject
) -> None:
    found = estimate(values)
    assert math.isclose(estimate(data.draw(st.permutations(values))).mean, found.mean, **CLOSE)
    moved = estimate([v + shift for v in values])
    assert math.isclose(moved.mean, found.mean + shift, **CLOSE)
    assert math.isclose(moved.se, found.se, **CLOSE)


@law
@given(values=several, scale=st.floats(1e-3, 1e3))
def test_error_and_mean_scale_with_the_rewards(values: list[float], scale: float) -> None:
    found, scaled = estimate(values), estimate([v * scale for v in values])
    assert math.isclose(scaled.mean, found.mean * scale, **CLOSE)
    assert math.isclose(scaled.se, found.se * scale, **CLOSE)


@law
@given(values=st.lists(rewards, min_size=2, max_size=10))
def test_every_value_four_times_halves_the_error_but_for_the_degrees_of_freedom(values: list[float]) -> None:
    n = len(values)
    exact = estimate(values).se * math.sqrt((n - 1) / (4 * n - 1))
    assert math.isclose(estimate(values * 4).se, exact, **CLOSE)


@law
@given(value=rewards)
def test_one_value_says_nothing_about_its_error(value: float) -> None:
    found = estimate([value])
    assert (found.mean, found.n) == (value, 1)
    assert found.low == -math.inf
    assert found.high == math.inf


@law
@given(a=by_position, b=by_position)
def test_a_paired_difference_is_that_of_the_common_prompts_and_turns_its_sign_with_the_order(
    a: dict[int, float], b: dict[int, float]
) -> None:
    common = a.keys() & b.keys()
    if not common:
        return
    found = paired_difference(a, b)
    assert found.n == len(common)
    assert math.isclose(found.mean, sum(a[k] - b[k] for k in common) / len(common), **CLOSE)
    turned = paired_difference(b, a)
    assert math.isclose(turned.mean, -found.mean, **CLOSE)
    assert turned.se == found.se or math.isclose(turned.se, found.se, **CLOSE)


@law
@given(a=by_position, level=rewards)
def test_what_all_prompts_have_in_common_leaves_the_difference_without_error(a: dict[int, float], level: float) -> None:
    if len(a) < 2:
        return
    found = paired_difference({k: v + level for k, v in a.items()}, a)
    assert math.isclose(found.mean, level, **CLOSE)
    assert found.se < 1e-6
