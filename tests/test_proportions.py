"""Paired right and wrong answers: published numbers, coverage counted over every outcome, and Holm by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from expo_search.stats.proportions import holm, mcnemar, paired_interval


@pytest.mark.parametrize(
    ("gained", "lost", "by_hand"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 * (1/2)
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (1, 5, 2 * (1 + 6) / 64),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_counts_the_coins_that_fall_as_far_apart(gained: int, lost: int, by_hand: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(by_hand)
    assert mcnemar(lost, gained) == pytest.approx(by_hand)


def test_the_interval_is_the_published_one() -> None:
    """Fagerland, Lydersen and Laake 2014, airway hyper-responsiveness: n = 21, 1 and 7 differ; -0.517 to -0.026."""
    low, high = paired_interval(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("gained", "lost", "n"), [(1, 7, 21), (12, 2, 50), (0, 3, 30), (4, 4, 40)])
def test_its_ends_are_where_the_likelihood_itself_puts_the_score_test(gained: int, lost: int, n: int) -> None:
    """The nuisance share by numeric maximisation, in the place of its closed form."""
    for end, sign in zip(paired_interval(gained, lost, n), (1, -1), strict=True):

        def minus_log(share_lost: float, d: float = end) -> float:
            p = np.array([share_lost + d, share_lost, 1 - 2 * share_lost - d])
            counts = np.array([gained, lost, n - gained - lost])
            return -float(np.sum(counts[counts > 0] * np.log(np.maximum(p[counts > 0], 1e-300))))

        low, high = max(0.0, -end), (1 - end) / 2
        share = float(minimize_scalar(minus_log, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
        z = (gained - lost - n * end) / math.sqrt(n * (2 * share + end * (1 - end)))
        assert z == pytest.approx(sign * norm.ppf(0.975), abs=1e-3)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 0), (2, 9)])
def test_exchanging_the_two_turns_the_interval_about(gained: int, lost: int) -> None:
    low, high = paired_interval(gained, lost, 40)
    assert paired_interval(lost, gained, 40) == pytest.approx((-high, -low))
    assert low <= (gained - lost) / 40 <= high


def test_no_difference_seen_is_no_certainty() -> None:
    """0 of n: the ends are z^2 / (n + z^2), as the score interval of one share has it."""
    z2 = float(norm.ppf(0.975)) ** 2
    assert paired_interval(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)
    assert paired_interval(7, 0, 7)[1] == pytest.approx(1.0)


@pytest.mark.parametrize(("p_gained", "p_lost"), [(0.02, 0.02), (0.05, 0.1), (0.3, 0.1), (0.0, 0.04)])
def test_it_holds_the_truth_as_often_as_it_says(p_gained: float, p_lost: float) -> None:
    """Every outcome of 20 items, weighed by its probability. A score interval may fall a little short."""
    n, covered = 20, 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        if gained + lost > n or (p_gained == 0 and gained):
            continue
        low, high = paired_interval(gained, lost, n)
        if low <= p_gained - p_lost <= high:
            ways = math.comb(n, gained) * math.comb(n - gained, lost)
            covered += ways * p_gained**gained * p_lost**lost * (1 - p_gained - p_lost) ** (n - gained - lost)
    assert covered > 0.93


def test_counts_that_cannot_be_are_refused() -> None:
    for counts in ((1, 1, 1), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(ValueError, match="items"):
            paired_interval(*counts)


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
