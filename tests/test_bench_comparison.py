"""Paired scores of two alphas: McNemar and Tango for right and wrong, Student for the rest, Holm over the tasks."""

from __future__ import annotations

import math

import pytest
from scipy.stats import ttest_rel

from expo_search.bench.comparison import Compared, compare, corrected, mean_of
from expo_search.bench.task import Metric
from expo_search.stats.proportions import mcnemar, paired_interval
from expo_search.store.bench_store import Score, Scores

RIGHT = (Metric("right", "right"),)


def shares(gained: int, lost: int, n: int) -> tuple[dict[str, Scores], dict[str, Scores]]:
    """Scores at an alpha and at 0 of n items, of which so many differ."""
    at: dict[str, Scores] = {f"i{k}": {"right": Score(float(k < gained or k >= gained + lost))} for k in range(n)}
    zero: dict[str, Scores] = {f"i{k}": {"right": Score(float(k >= gained))} for k in range(n)}
    return at, zero


def of(gained: int, lost: int, n: int, title: str = "GSM8K") -> Compared:
    at, zero = shares(gained, lost, n)
    return compare("gsm8k", title, RIGHT, 0.3, at, zero)[0]


def test_right_and_wrong_is_mcnemars_p_and_tangos_interval() -> None:
    c = of(8, 28, 400)
    assert (c.n, c.mean, c.control) == (400, 372 / 400, 392 / 400)
    assert (c.low, c.high) == paired_interval(8, 28, 400)
    assert c.p == mcnemar(8, 28)
    assert c.sentence() == f"GSM8K -5.0 [{100 * c.low:+.1f}, {100 * c.high:+.1f}]: a loss"


@pytest.mark.parametrize(
    ("gained", "lost", "word"), [(20, 24, "no evidence of a loss"), (24, 20, "no evidence of a loss"),
                                 (0, 12, "a loss"), (12, 0, "a gain"), (0, 0, "no evidence of a loss")],
)  # fmt: skip
def test_only_what_is_shown_is_called_a_loss_or_a_gain(gained: int, lost: int, word: str) -> None:
    assert of(gained, lost, 300).word == word


def test_other_scores_are_compared_by_students_t_on_the_items() -> None:
    zero_values, at_values = [0.2, 3.0, 1.5, 2.0, 0.0], [0.9, 3.5, 1.0, 2.2, 0.4]
    metrics = (Metric("score", "score"),)
    zero = {f"i{k}": {"score": Score(v)} for k, v in enumerate(zero_values)}
    at = {f"i{k}": {"score": Score(v)} for k, v in enumerate(at_values)}
    (c,) = compare("t", "Mine", metrics, 0.3, at, zero)
    reference = ttest_rel(at_values, zero_values)
    assert c.p == pytest.approx(reference.pvalue)
    assert (c.low, c.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))
    assert c.sentence() == f"Mine +0.260 [{c.low:+.3f}, {c.high:+.3f}]: no evidence of a loss"


def test_a_weighted_score_counts_what_its_items_hold() -> None:
    """1 of 2 and 3 of 3 are 4 of 5; the difference of the two alphas is that of what they counted."""
    zero = {"a": {"part": Score(0.5, 2)}, "b": {"part": Score(1.0, 3)}, "c": {"part": Score(0.0, 1)}}
    at = {"a": {"part": Score(1.0, 2)}, "b": {"part": Score(2 / 3, 3)}, "c": {"part": Score(0.0, 1)}}
    (c,) = compare("t", "T", (Metric("part", "parts"),), 0.3, at, zero)
    assert c.control == pytest.approx(4 / 6)
    assert c.mean == pytest.approx(4 / 6)
    assert c.low == pytest.approx(-c.high)
    assert mean_of([Score(0.5, 2), Score(1.0, 3)]) == pytest.approx(4 / 5)


def test_items_that_one_alpha_lacks_do_not_count_and_none_is_no_comparison() -> None:
    at, zero = shares(1, 2, 10)
    del at["i0"], zero["i1"]
    (c,) = compare("t", "T", RIGHT, 0.3, at, zero)
    assert c.n == 8
    assert compare("t", "T", RIGHT, 0.3, {}, zero) == []


def test_the_same_difference_of_every_item_is_no_certainty_with_few() -> None:
    zero = {f"i{k}": {"score": Score(1.5)} for k in range(4)}
    at = {f"i{k}": {"score": Score(2.5)} for k in range(4)}
    (c,) = compare("t", "T", (Metric("score", "score"),), 0.3, at, zero)
    assert c.p == 2 / 2**4
    (one,) = compare("t", "T", (Metric("score", "score"),), 0.3, {"i0": at["i0"]}, zero)
    assert (one.p, one.low, one.as_json()["interval_95"]) == (1.0, -math.inf, [None, None])


def test_more_tasks_need_more_evidence_and_the_sentence_says_so() -> None:
    alone, second = of(6, 18, 300), of(20, 21, 300)
    assert alone.p == pytest.approx(mcnemar(6, 18))
    assert alone.word == "a loss"
    both = corrected([alone, second, second])
    assert both[0].corrected == pytest.approx(3 * alone.p)
    assert both[0].word == "no evidence of a loss"
    assert both[0].sentence(3).endswith(f"no evidence of a loss (p = {3 * alone.p:.2f}, corrected for 3 tasks)")
    further = [alone, Compared(**{**vars(second), "decides": False})]
    assert corrected(further)[0].corrected == alone.p, "a metric that decides nothing is no task"
