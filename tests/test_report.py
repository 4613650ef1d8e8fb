"""Verdict, table, curve and JSON of finished trials; what is said must follow from the intervals."""

from __future__ import annotations

import json
import re

import pytest
from fakes import make_evaluation
from rich.console import Console

from expo_search.confirm import Confirmation
from expo_search.objective import Evaluation
from expo_search.report import confirmation_sentence, curve, stage_seconds, summary, trial_table, verdict

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
# 95 % of Student's t with 99 degrees of freedom lie within 1.984 standard errors
JUST_BETTER, JUST_NOT = make_evaluation(1, 0.3, 0.1985, 0.1), make_evaluation(1, 0.3, 0.1983, 0.1)


def trials(n: int) -> list[Evaluation]:
    """n trials on a parabola that is highest at 0.5, in an order that jumps about."""
    alphas = [0.0, *(((7 * i) % n) / n for i in range(1, n))]
    return [make_evaluation(i, a, a * (1 - a), 0.01 if a else 0.0) for i, a in enumerate(alphas)]


def confirmed(trial: int, difference: float, se: float = 0.1) -> Confirmation:
    return Confirmation(trial, 0.3, difference, se, 100, "abcd", 1.0 + difference, 1.0)


def drawn(found: list[Evaluation], width: int = 140) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as captured:
        console.print(trial_table(found))
    return captured.get()


@pytest.mark.parametrize(
    ("other", "word", "sentence"),
    [
        (JUST_BETTER, "better", "Best alpha = 0.3: reward 1.1985, +0.1985 against alpha = 0"),
        (JUST_NOT, "no evidence of a gain", "No evidence of a gain: keep alpha = 0. The best other alpha = 0.3"),
        (make_evaluation(1, 0.3, -0.1983, 0.1), "no evidence of a gain", "No evidence of a gain"),
        (make_evaluation(1, 0.3, -0.1985, 0.1), "worse", "Keep alpha = 0; it beats the best other alpha = 0.3"),
    ],
)
def test_the_verdict_follows_from_the_interval_of_the_paired_difference(
    other: Evaluation, word: str, sentence: str
) -> None:
    found = verdict([CONTROL, other])
    assert (found.best, found.word) == (other, word)
    assert found.sentence().startswith(sentence)
    assert "on the search's 100 prompts" in found.sentence()


@pytest.mark.parametrize("found", [[], [CONTROL], [CONTROL, make_evaluation(1, 0.0, 0.5, 0.1)]])
def test_with_alpha_zero_alone_there_is_nothing_to_compare(found: list[Evaluation]) -> None:
    assert verdict(found).best is None
    assert verdict(found).word == "nothing to compare"
    assert verdict(found).sentence() == "Only alpha = 0 was evaluated: nothing to compare."


def test_the_interval_in_the_sentence_is_that_of_the_t_distribution() -> None:
    low, high = 0.1985 - 1.9842 * 0.1, 0.1985 + 1.9842 * 0.1  # quantile from a table, 4 decimals
    assert f"95 % interval [{low:+.4f}, {high:+.4f}]" in verdict([CONTROL, JUST_BETTER]).sentence()


def test_of_equal_trials_the_one_nearer_to_zero_is_the_best() -> None:
    far, near = make_evaluation(1, 0.8, 0.5, 0.1), make_evaluation(2, 0.4, 0.5, 0.1)
    assert verdict([CONTROL, far, near]).best is near


def test_the_best_trial_is_never_the_control_however_low_the_others_are() -> None:
    low, lower = make_evaluation(1, 0.8, -3.0, 0.1), make_evaluation(2, 0.4, -5.0, 0.1)
    assert verdict([CONTROL, low, lower]).best is low


@pytest.mark.parametrize(
    ("difference", "word"), [(0.1985, "better"), (0.1983, "no evidence of a gain"), (-0.5, "worse")]
)
def test_a_confirmation_of_the_best_trial_is_what_counts(difference: float, word: str) -> None:
    better = make_evaluation(1, 0.3, 5.0, 0.1)
    found = verdict([CONTROL, better], {1: confirmed(1, difference)})
    assert found.word == word
    assert "confirmed on 100 fresh prompts and seeds" in found.sentence()
    other = verdict([CONTROL, better], {2: confirmed(2, difference)})
    assert (other.word, other.confirmed) == ("better", None)
    assert "optimistic" in other.sentence()


def test_a_confirmation_says_its_size_in_standard_errors() -> None:
    said = confirmation_sentence(confirmed(1, 0.35))
    assert said.startswith("Better. alpha = 0.3 on 100 prompts")
    assert "(+3.5 standard errors)" in said
    assert confirmation_sentence(confirmed(1, -0.35)).startswith("Worse: keep alpha = 0.")
    assert confirmation_sentence(confirmed(1, 0.0, 0.0)).startswith("No evidence")


@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_table_has_a_row_a_trial_in_the_order_in_which_they_ran(n: int) -> None:
    found = trials(n)
    lines = [line.split() for line in drawn(found).splitlines() if re.match(r" *\d", line)]
    assert [(int(line[0]), line[1], line[2]) for line in lines] == [
        (e.trial, f"{e.alpha:.4g}", f"{e.reward.mean:.4f}") for e in found
    ]
    assert "+" not in " ".join(lines[0])  # the control is not compared with itself
    assert {line[-1] for line in lines} == {"3.1" if n else ""}  # 0.1 + 2 + 1 + 0.05 seconds
    assert {line[-2] for line in lines} == {"25%"}


@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_only_the_best_trial_is_marked(n: int) -> None:
    found = trials(n) if n else []
    marked = [i for i, row in enumerate(trial_table(found).rows) if row.style]
    best = verdict(found).best
    assert marked == ([] if best is None else [best.trial])


@pytest.mark.parametrize("n", [1, 2, 20])
@pytest.mark.parametrize(("width", "height"), [(90, 18), (40, 10)])
def test_the_curve_is_plain_text_within_its_width(n: int, width: int, height: int) -> None:
    text = curve(trials(n), width=width, height=height)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= height
    assert "alpha" in text


def test_drawing_twice_gives_the_same_curve() -> None:
    first = curve(trials(20))
    curve(trials(2))
    assert curve(trials(20)) == first


def test_the_curve_of_equal_rewards_can_be_drawn() -> None:
    assert "alpha" in curve([CONTROL, make_evaluation(1, 0.5, 0.0, 0.0), make_evaluation(2, 1.0, 0.0, 0.0)])


def test_seconds_are_added_up_by_stage() -> None:
    # four trials of 0.1 + 2 + 1 + 0.05 s; outside generating and scoring 0.15 of 3.15 s
    assert stage_seconds(trials(4)) == (
        "Seconds in trials: switch 0.4, generate 8.0, score 4.0, other 0.2; outside generating and scoring 4.8%."
    )
    assert "0.0%" in stage_seconds([])


@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_summary_is_json_with_every_trial(n: int) -> None:
    found = trials(n)
    read = json.loads(json.dumps(summary("s", found), allow_nan=False))
    best = verdict(found).best
    assert read["study"] == "s"
    assert (read["best_alpha"], read["best_trial"]) == ((best.alpha, best.trial) if best else (0.0, 0))
    assert [(t["trial"], t["alpha"], t["difference"]) for t in read["trials"]] == [
        (e.trial, e.alpha, e.difference.mean) for e in found
    ]
    assert read["trials"][0]["difference_95"] == [0.0, 0.0]
    assert read["confirmation"] is None


def test_without_a_gain_the_summary_recommends_alpha_zero() -> None:
    found = summary("s", [CONTROL, JUST_NOT])
    assert (found["verdict"], found["best_alpha"], found["best_trial"]) == ("no evidence of a gain", 0.0, 0)


def test_the_summary_holds_the_confirmation_of_the_best_trial() -> None:
    found = summary("s", [CONTROL, JUST_BETTER], {1: confirmed(1, 0.0)})
    assert (found["verdict"], found["best_alpha"]) == ("no evidence of a gain", 0.0)
    assert found["confirmation"]["difference_95"] == pytest.approx([-0.19842, 0.19842], abs=1e-5)
    assert found["confirmation"]["n"] == 100
