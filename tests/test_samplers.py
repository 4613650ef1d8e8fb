"""Optuna's samplers on a smooth curve whose best alpha is known, and the points that a study starts with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from fakes import BEST, expected_reward
from test_search import PROMPTS, run

from expo_search.config.spec import SearchSpec
from expo_search.search.alpha_range import N_START, start_points
from expo_search.stats.paired import estimate


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


def replace_range(spec: SearchSpec, low: float, high: float) -> SearchSpec:
    return spec.model_copy(update={"alpha_min": low, "alpha_max": high})


# The curve is smooth and free of noise. A Gaussian process should come within a hundredth of the range; a grid of 11
# within half of its step of 0.1; of 14 random points one is within 0.15 with a probability of 1 - 0.7^14 > 0.99.
@pytest.mark.parametrize(
    ("sampler", "n_trials", "tolerance"), [("gp", 9, 0.01), ("tpe", 15, 0.1), ("grid", 11, 0.05), ("random", 15, 0.15)]
)
def test_every_sampler_finds_a_known_best_alpha(url: str, sampler: str, n_trials: int, tolerance: float) -> None:
    spec = SearchSpec(sampler=sampler, alpha_min=0.0, alpha_max=1.0, seed=1)
    found, _ = run(url, n_trials, spec)
    best = max(found, key=lambda e: e.reward.mean)
    assert len(found) == n_trials
    assert abs(best.alpha - BEST) <= tolerance
    assert best.reward.mean == pytest.approx(
        estimate([expected_reward(best.alpha, p) for p in PROMPTS]).mean, rel=1e-12
    )


def test_the_points_a_study_starts_with_are_zero_the_published_one_then_halves_of_the_upper_end() -> None:
    spec = SearchSpec(sampler="gp", alpha_max=16.0)
    assert start_points(spec, None, 20) == [0, 4, 8, 2, 16]
    assert start_points(spec, 0.3, 20) == [0, 0.3, 4, 8, 2]
    assert start_points(spec, 4.0, 20) == [0, 4, 8, 2, 16]
    assert start_points(spec, 99.0, 20) == [0, 4, 8, 2, 16]
    assert start_points(replace_range(spec, 3.0, 16.0), None, 20) == [0, 4, 8, 16]
    assert start_points(replace_range(spec, -2.0, -1.0), None, 20) == [0, -1]
    assert len(start_points(spec, 0.3, 20)) == N_START


def test_without_a_range_the_points_reach_twice_the_published_alpha() -> None:
    assert start_points(SearchSpec(sampler="gp"), 8.0, 20) == [0, 8, 4, 2, 16]
    assert start_points(SearchSpec(sampler="tpe"), None, 20) == [0, 0.25, 0.5, 0.125, 1]


def test_random_starts_with_zero_and_the_published_alpha_and_expo_with_zero_alone() -> None:
    assert start_points(SearchSpec(sampler="random"), 0.3, 20) == [0, 0.3]
    assert start_points(SearchSpec(sampler="expo"), 0.3, 20) == [0]


@pytest.mark.parametrize(("low", "published"), [(0.0, None), (0.0, 0.3), (0.5, None), (0.5, 0.7), (0.5, 0.1)])
@pytest.mark.parametrize("n_trials", [3, 5, 20])
def test_a_grid_spends_exactly_its_trials_and_reaches_both_ends(
    low: float, published: float | None, n_trials: int
) -> None:
    spec = replace_range(SearchSpec(sampler="grid"), low, 2.0)
    points = start_points(spec, published, n_trials)
    grid = [p for p in points if p != published]
    assert len(set(points)) == len(points) == n_trials
    assert points[0] == 0
    if n_trials > 3:
        inside = [p for p in grid if p >= low]
        assert (min(inside), max(inside)) == (low, 2.0)
        steps = {round(b - a, 9) for a, b in pairwise(inside)}
        assert len(steps) == 1


def test_a_grid_that_is_extended_fills_its_gaps_all_over_its_range(url: str) -> None:
    spec = SearchSpec(sampler="grid", alpha_min=0.0, alpha_max=1.0, seed=1)
    first, _ = run(url, 6, spec)
    assert [e.alpha for e in first] == pytest.approx([i / 5 for i in range(6)]), "a grid of its own goes upwards"
    extended, _ = run(url, 12, spec)
    alphas = sorted(e.alpha for e in extended)
    assert len({round(alpha, 9) for alpha in alphas}) == 12
    # between any two of the six there are two of a grid of twelve, and six of these ten are asked
    assert all(any(low < alpha < low + 0.2 for alpha in alphas) for low in (0.0, 0.2, 0.4, 0.6, 0.8))
    new = [e.alpha for e in extended[6:]]
    assert sorted(new[:2]) == pytest.approx([1 / 11, 10 / 11]), "those farthest from all that were asked come first"
