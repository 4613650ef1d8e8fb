"""Verdict, table, curve and JSON of finished trials; what is said must follow from the intervals."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import make_evaluation
from rich.console import Console
from test_model_card import make_origin

from expo_search.config.spec import SearchSpec
from expo_search.errors import StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.exporting.model_card import card
from expo_search.exporting.study import _choose
from expo_search.exporting.wanted import Wanted
from expo_search.results.curve.layout import Scene
from expo_search.results.fitted_table import headings
from expo_search.results.html_report import trial_table as html_table
from expo_search.results.legend import legend
from expo_search.results.note import markdown_note
from expo_search.results.study_results import StudyResult
from expo_search.results.summary_json import confirmation_json, summary
from expo_search.results.terminal import stage_seconds, trial_table
from expo_search.results.verdict import Verdict, confirmation_sentence, trial_at, verdict
from expo_search.search.confirm import Confirmation
from expo_search.stats.paired import Estimate

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
# 95 % of Student's t with 99 degrees of freedom lie within 1.984 standard errors; with a single alpha there is nothing
# to correct for, but that quantile is simulated, to 1 %
JUST_BETTER, JUST_NOT = make_evaluation(1, 0.3, 0.202, 0.1), make_evaluation(1, 0.3, 0.195, 0.1)


def trials(n: int) -> list[Evaluation]:
    """n trials on a parabola that is highest at 0.5, in an order that jumps about."""
    alphas = [0.0, *(((7 * i) % n) / n for i in range(1, n))]
    return [make_evaluation(i, a, a * (1 - a), 0.01 if a else 0.0) for i, a in enumerate(alphas)]


def confirmed(trial: int, difference: float, se: float = 0.1) -> Confirmation:
    return Confirmation(trial, 0.3, difference, se, 100, "abcd", 1.0 + difference, 1.0)


def summarised(found: list[Evaluation], *confirmations: dict[int, Confirmation], **options: Any) -> dict[str, Any]:
    """The summary with its verdict, after a way through JSON."""
    return dict(json.loads(json.dumps(summary("s", found, verdict(found, *confirmations, **options)))))


def drawn(found: list[Evaluation], width: int = 140) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as captured:
        console.print(trial_table(found, verdict(found), width))
    return captured.get()


@pytest.mark.parametrize(
    ("other", "word", "sentence"),
    [
        (JUST_BETTER, "better", "Best alpha = 0.3: reward 1.2020, gain +0.2020 against alpha = 0"),
        (JUST_NOT, "no evidence of a gain", "No evidence of a gain: keep alpha = 0. The best other alpha = 0.3"),
        (make_evaluation(1, 0.3, -0.195, 0.1), "no evidence of a gain", "No evidence of a gain"),
        (make_evaluation(1, 0.3, -0.202, 0.1), "worse", "Keep alpha = 0; it beats the best other alpha = 0.3"),
    ],
)
def test_the_verdict_follows_from_the_interval_of_the_gain(other: Evaluation, word: str, sentence: str) -> None:
    found = verdict([CONTROL, other])
    assert (found.best, found.word) == (other, word)
    assert found.sentence().startswith(sentence)
    assert "on 100 prompts" in found.sentence()


@pytest.mark.parametrize("found", [[], [CONTROL], [CONTROL, make_evaluation(1, 0.0, 0.5, 0.1)]])
def test_with_alpha_zero_alone_there_is_nothing_to_compare(found: list[Evaluation]) -> None:
    assert verdict(found).best is None
    assert verdict(found).word == "nothing to compare"
    assert verdict(found).sentence() == "Only alpha = 0 was evaluated: nothing to compare."


def test_where_every_other_alpha_lost_the_advice_is_to_keep_alpha_0() -> None:
    lost = replace(make_evaluation(1, 0.3, -0.2, 0.05), outcome="hopeless")
    broke = replace(make_evaluation(2, 0.6, 0.05, 0.05), broken=("length",))
    found = verdict([CONTROL, lost, broke])
    assert (found.best, found.word) == (None, "no evidence of a gain")
    assert found.sentence() == (
        "No evidence of a gain: keep alpha = 0. No other alpha may win: "
        "each of the 2 tried lost clearly or broke a guardrail."
    )
    assert summary("s", [CONTROL, lost, broke], found)["best_alpha"] == 0.0


def test_the_interval_in_the_sentence_is_the_verdicts_and_about_students_for_one_alpha() -> None:
    found = verdict([CONTROL, JUST_BETTER])
    low, high = found.interval
    assert f"95 % interval [{low:+.4f}, {high:+.4f}] on 100 prompts" in found.sentence()
    assert (low, high) == pytest.approx((0.202 - 1.984 * 0.1, 0.202 + 1.984 * 0.1), abs=0.003)


def test_the_more_alphas_were_tried_the_lower_the_interval_of_the_best_reaches() -> None:
    """A gain of 2.3 standard errors is one if it was the only try, and none as the best of ten."""
    best = make_evaluation(1, 0.3, 0.23, 0.1)
    others = [make_evaluation(i, 0.3 + i / 10, 0.0, 0.1) for i in range(2, 11)]
    alone, of_ten = verdict([CONTROL, best]), verdict([CONTROL, best, *others])
    assert (alone.best, alone.word, alone.n_tried) == (best, "better", 1)
    assert (of_ten.best, of_ten.word, of_ten.n_tried) == (best, "no evidence of a gain", 10)
    assert of_ten.interval[0] < alone.interval[0] < best.gain.mean < alone.interval[1]
    assert of_ten.interval[1] == alone.interval[1] == best.gain.high, "a pick is too high sooner than too low"
    assert "for the best of 10 alphas beside 0 on" in of_ten.sentence()


def test_with_one_rival_the_verdicts_interval_is_no_narrower_than_the_tables() -> None:
    sure = make_evaluation(1, 0.3, 0.0982, 0.05, n=1000)
    assert verdict([CONTROL, sure]).interval[0] <= sure.gain.low


def test_trials_that_a_benchmark_rules_out_are_counted_among_those_that_were_tried() -> None:
    ruled_out = make_evaluation(2, 0.6, 0.9, 0.05)
    found = verdict([CONTROL, JUST_BETTER, ruled_out], lost=[0.6])
    assert (found.best, found.n_tried, found.n_able) == (JUST_BETTER, 2, 1)
    alone = verdict([CONTROL, ruled_out], lost=[0.6])
    assert (alone.best, alone.word, alone.n_tried) == (None, "no evidence of a gain", 1)
    assert alone.sentence().startswith(
        "Keep alpha = 0: alpha = 0.6 gained, and a guardrail or a benchmark rules it out; no other may win."
    )
    assert (alone.word, alone.alpha) == ("no evidence of a gain", 0.0)
    both = verdict([CONTROL, JUST_BETTER, ruled_out], lost=[JUST_BETTER.alpha, 0.6])
    assert (
        f"2 alphas gained ({JUST_BETTER.alpha:.4g}, 0.6), and guardrails or a benchmark rule them out"
        in both.sentence()
    )


def test_where_none_saw_all_prompts_the_sentence_says_so() -> None:
    early = [replace(make_evaluation(i, i / 10, 0.5, 0.1), outcome="enough") for i in (1, 2)]
    fallen = replace(make_evaluation(3, 1.0, -0.5, 0.1), outcome="hopeless")
    said = verdict([CONTROL, *early, fallen]).sentence()
    assert "] on 100 prompts (" in said
    assert (
        " Of 3 alphas tried beside 0, 2 may win, each on a part of the prompts; "
        "the interval is corrected for picking one of those 2." in said
    )
    assert "saw all prompts" not in said
    alone = verdict([CONTROL, early[0], fallen]).sentence()
    assert " Of 2 alphas tried beside 0, this one alone may win, on a part of the prompts." in alone


def test_the_edge_goes_by_the_confirmations_word() -> None:
    spec = SearchSpec(alpha_min=0.0, alpha_max=0.3)
    assert verdict([CONTROL, JUST_BETTER], search=spec).edge == 0.3
    assert verdict([CONTROL, JUST_BETTER], {1: confirmed(1, -0.5)}, search=spec).edge == 0.0


@pytest.mark.parametrize(("published", "edge"), [(None, 1.0), (0.4, 1.0), (2.0, None)])
def test_a_sampler_that_does_not_find_its_own_end_has_one_where_none_was_given(
    published: float | None, edge: float | None
) -> None:
    spec = SearchSpec(sampler="gp")
    best = make_evaluation(1, 1.0, 0.5, 0.1)
    assert verdict([CONTROL, best], search=spec, published_alpha=published).edge == edge
    assert verdict([CONTROL, best], search=SearchSpec()).edge is None


def test_other_alphas_that_fresh_prompts_show_to_be_better_are_named_where_the_picked_one_is_not() -> None:
    other = make_evaluation(2, 0.6, 0.05, 0.1)
    known, fresh = [CONTROL, JUST_BETTER, other], {1: confirmed(1, 0.0), 2: replace(confirmed(2, 0.35), alpha=0.6)}
    judged = verdict(known, fresh)
    assert judged.recommended is None
    [remark] = StudyResult("s", "sqlite:///x.db", known, fresh, judged).remarks
    assert remark == (
        "Fresh prompts show alpha = 0.6 to be better than 0, by itself; "
        "the verdict is about alpha = 0.3, which the search picked."
    )
    better = {1: confirmed(1, 0.4), 2: fresh[2]}
    assert StudyResult("s", "sqlite:///x.db", known, better, verdict(known, better)).remarks == []


def test_an_alpha_that_is_clearly_worse_costs_no_width() -> None:
    """It would not have been picked."""
    best, far = make_evaluation(1, 0.3, 0.22, 0.1), make_evaluation(2, 0.6, -0.3, 0.1)
    assert verdict([CONTROL, best, far]).interval == verdict([CONTROL, best]).interval


def test_a_collapsed_trial_is_not_counted_among_the_tries() -> None:
    fallen = replace(make_evaluation(2, 2.0, -5.0, 0.1), outcome="degenerate")
    assert verdict([CONTROL, JUST_BETTER, fallen]).interval == verdict([CONTROL, JUST_BETTER]).interval
    another = make_evaluation(3, 0.4, 0.2, 0.1)
    said = verdict([CONTROL, JUST_BETTER, another, fallen]).sentence()
    told = (
        "Of 3 alphas tried beside 0, 2 saw all prompts without collapsing or breaking a guardrail; {} is corrected for "
    )
    assert told.format("the interval") + "picking one of those 2." in said, "the table has four rows"
    fresh = verdict([CONTROL, JUST_BETTER, another, fallen], {1: confirmed(1, 0.2, 0.05)}).sentence()
    assert told.format("the search's interval") in fresh, "not the confirmation's, which stands nearer"
    alone = verdict([CONTROL, JUST_BETTER, fallen]).sentence()
    assert "Of 2 alphas tried beside 0, this one alone saw all prompts without" in alone
    assert "corrected" not in alone, "there was nothing to pick from"


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("reward", "gain +0.2020"),
        ("win-rate", "win rate above a half +0.2020"),
        ("length-controlled", "gain at equal lengths +0.2020"),
    ],
)
def test_the_sentence_says_what_the_gain_is_of(objective: Any, says: str) -> None:
    found = verdict([CONTROL, JUST_BETTER], search=SearchSpec(objective=objective))
    assert found.objective == objective
    assert f"{says} against alpha = 0" in found.sentence()


@pytest.mark.parametrize(
    ("low", "high", "edge"),
    [
        (0.0, 0.3, 0.3),
        (0.3, 2.0, 0.3),
        (0.0, 0.301, None),
        (0.0, 1.0, None),
        ("auto", 0.3, 0.3),
        ("auto", "auto", None),
    ],
)
def test_an_optimum_on_the_edge_of_a_given_range_is_said_so_with_what_to_do(
    low: Any, high: Any, edge: float | None
) -> None:
    found = verdict([CONTROL, JUST_BETTER], search=SearchSpec(alpha_min=low, alpha_max=high))
    assert found.edge == edge
    assert ("at the edge 0.3 of the range: the optimum may lie beyond" in found.sentence()) == (edge is not None)
    assert "looks there" not in found.sentence()
    said = replace(found, again="expo-search --pair p --alpha-max auto").sentence()
    assert ("(`expo-search --pair p --alpha-max auto` looks there)" in said) == (edge is not None)


@pytest.mark.parametrize(
    ("low", "sampler", "edge"), [(0.0, "expo", 0.0), ("auto", "expo", None), ("auto", "gp", 0.0), (-1.0, "gp", None)]
)
def test_where_every_alpha_loses_0_can_be_the_edge_of_the_range(low: Any, sampler: Any, edge: float | None) -> None:
    search = SearchSpec(alpha_min=low, alpha_max=2.0, sampler=sampler)
    worse, hopeless = (
        make_evaluation(1, 0.3, -0.5, 0.1),
        replace(make_evaluation(1, 0.3, -0.5, 0.1), outcome="hopeless"),
    )
    for lost in (worse, hopeless):
        found = verdict([CONTROL, lost], search=search)
        assert found.edge == edge
        assert ("at the edge 0 of the range" in found.sentence()) == (edge is not None)


def test_of_equal_trials_beside_a_cliff_the_one_nearer_to_zero_is_the_best() -> None:
    far, near = make_evaluation(1, 0.8, 0.5, 0.1), make_evaluation(2, 0.4, 0.5, 0.1)
    assert verdict([CONTROL, far, near, make_evaluation(3, 1.6, -5.0, 0.1)]).best is near


def test_the_best_trial_is_never_the_control_however_the_others_lose() -> None:
    low, lower = make_evaluation(1, 0.8, -0.3, 0.1), make_evaluation(2, 1.6, -0.35, 0.1)
    assert verdict([CONTROL, low, lower]).best is low
    assert verdict([CONTROL, make_evaluation(1, 0.8, -5.0, 0.1)]).best is None, "a collapse is not worth a word"


@pytest.mark.parametrize(
    ("difference", "word"), [(0.1985, "better"), (0.1983, "no evidence of a gain"), (-0.5, "worse")]
)
def test_a_confirmation_of_the_best_trial_is_what_counts(difference: float, word: str) -> None:
    better = make_evaluation(1, 0.3, 5.0, 0.1)
    found = verdict([CONTROL, better], {1: confirmed(1, difference)})
    assert found.word == word
    opening = "confirmed" if word == "better" else "measured again"
    assert f"; {opening} on 100 fresh prompts and seeds: {difference:+.4f} against alpha = 0" in found.sentence()
    shown = summarised([CONTROL, better], {1: confirmed(1, difference)})
    assert shown["verdict_by"] == "confirmation"
    assert shown["verdict_interval_95"] == shown["confirmation"]["difference_95"] != shown["interval_95"]
    assert (shown["verdict_interval_95"][0] > 0) == (word == "better")
    alone = summarised([CONTROL, better])
    assert (alone["verdict_by"], alone["verdict_interval_95"]) == ("search", alone["interval_95"])
    other = verdict([CONTROL, better], {2: confirmed(2, difference)})
    assert (other.word, other.confirmed) == ("better", None)
    assert "`expo-search confirm` measures it on fresh prompts" in other.sentence()


def test_a_confirmation_says_its_size_in_standard_errors() -> None:
    said = confirmation_sentence(confirmed(1, 0.35))
    assert said.startswith("Better. alpha = 0.3 on 100 prompts")
    assert "(+3.5 standard errors)" in said
    assert confirmation_sentence(confirmed(1, -0.35)).startswith("Worse: keep alpha = 0.")
    assert confirmation_sentence(confirmed(1, 0.0, 0.0)).startswith("No evidence")


@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_table_has_a_row_a_trial_in_the_order_in_which_they_ran(n: int) -> None:
    found = trials(n)
    text = drawn(found).replace("▲", " ")
    lines = [line.split() for line in text.splitlines() if re.match(r" *\d", line)]
    assert [(int(line[0]), line[1], line[2], line[3]) for line in lines] == [
        (e.trial, f"{e.alpha:.4g}", "100", f"{e.reward.mean:.4f}") for e in found
    ]
    assert "+" not in " ".join(lines[0])  # the control is not compared with itself
    assert {tuple(line[-3:]) for line in lines} == {("25%", "0%", "3.1")}  # 0.1 + 2 + 1 + 0.05 seconds


def test_the_table_says_which_trials_stopped_early_and_what_they_broke() -> None:
    few = replace(make_evaluation(1, 0.3, -0.2, 0.05, n=16), outcome="hopeless")
    broke = replace(make_evaluation(2, 0.6, 0.3, 0.05), broken=("length", "cut off"))
    text = drawn([CONTROL, few, broke], width=200)
    rows = [line.replace("▲", "") for line in text.splitlines() if re.match(r" *(▲ )?\d", line)]
    assert rows[0].rstrip().endswith("3.1")
    assert rows[1].split()[2] == "16"
    assert rows[1].rstrip().endswith("hopeless")
    assert rows[2].rstrip().endswith("broke length; broke cut off")


@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_only_the_best_trial_is_marked(n: int) -> None:
    found = trials(n) if n else []
    marked = [i for i, row in enumerate(trial_table(found, verdict(found)).rows) if row.style]
    best = verdict(found).best
    assert marked == ([] if best is None else [best.trial])


@pytest.mark.parametrize("width", [60, 140])
@pytest.mark.parametrize("best", [JUST_BETTER, JUST_NOT])
def test_the_recommended_row_has_a_mark_without_colour_in_every_table_and_the_legend_says_what_it_is(
    width: int, best: Evaluation
) -> None:
    found = [CONTROL, best, make_evaluation(2, 0.9, -1.0, 0.05)]
    judged = verdict(found)
    result = StudyResult("s", "sqlite:///s.db", found, {}, judged)
    number = "1" if judged.word == "better" else "0"
    noted = [line.split("|")[1].strip() for line in markdown_note(result).splitlines() if line.startswith("| ")]
    tables = {
        "terminal": [line.strip() for line in drawn(found, width).splitlines()],
        "report": [row.cells[0] for row in html_table(found, judged).rows],
        "note": noted,
        "notebook": re.findall(r"<tr>\s*<td>([^<]*)</td>", result._repr_html_()),
    }
    for name, rows in tables.items():
        marked = [row for row in rows if "▲" in row]
        assert [row.split()[:2] for row in marked] == [["▲", number]], (name, rows)
    assert legend(found, judged)[0] == "▲: the alpha that the verdict recommends"
    assert headings(trial_table(found, judged, width)) == headings(trial_table(found, replace(judged, word="?"), width))


# like the demo's first search on 32 prompts: the curve is highest where no trial is sure of its gain by itself
UNSURE = [
    CONTROL,
    make_evaluation(1, 1.0, 0.25, 0.08),
    make_evaluation(2, 2.0, 0.40, 0.08),
    make_evaluation(3, 3.9, 0.43, 0.09),
    make_evaluation(4, 4.2, 0.35, 0.20),
    make_evaluation(5, 4.6, 0.43, 0.20),
]


class TestOneAlpha:
    def test_where_the_favourite_cannot_be_told_from_0_another_whole_trial_is_recommended(self) -> None:
        sure = make_evaluation(1, 0.2, 0.2, 0.03)
        unsure = make_evaluation(2, 1.6, 0.35, 0.2)
        found = verdict([CONTROL, sure, unsure])
        assert found.favourite == 1.6
        assert (found.alpha, found.word, found.better) == (0.2, "better", (0.2,))
        assert (
            "The alpha that looks best, 1.6, cannot be told from alpha = 0 by itself; this one can." in found.sentence()
        )

    def test_a_trial_of_a_part_of_the_prompts_is_not_shown_to_be_better_beside_whole_ones(self) -> None:
        few = replace(make_evaluation(1, 0.2, 0.9, 0.03), outcome="enough")
        whole = make_evaluation(2, 0.3, 0.1, 0.2)
        assert verdict([CONTROL, few, whole]).better == ()
        assert verdict([CONTROL, few]).better == (0.2,)

    def test_where_several_are_better_it_says_so_and_picks_one(self) -> None:
        found = verdict(UNSURE)
        assert len(found.better) > 1
        assert found.alpha in found.better
        assert f" {len(found.better)} alphas are better than 0 (1, 2, 3.9" in found.sentence()

    @pytest.mark.parametrize(
        "found", [UNSURE, [CONTROL, JUST_BETTER], [CONTROL, JUST_NOT], [CONTROL, make_evaluation(1, 0.3, -0.5, 0.1)]]
    )
    def test_every_view_says_the_same_alpha(self, found: list[Evaluation], tmp_path: Path) -> None:
        judged = verdict(found)
        alpha = judged.alpha
        read = summarised(found)
        assert (read["best_alpha"], read["recommended"]["alpha"]) == (alpha, alpha)
        assert read["recommended"]["trial"] == read["best_trial"]
        assert read["shown_better"] == list(judged.better)
        assert (alpha in read["shown_better"]) == (alpha != 0) == bool(read["shown_better"])
        assert judged.sentence().startswith(f"Best alpha = {alpha:.4g}" if alpha else ("No evidence", "Keep alpha = 0"))
        marked = [row for row, e in zip(trial_table(found, judged).rows, found, strict=True) if row.style and e]
        assert len(marked) == 1
        assert trial_table(found, judged).rows[[e.alpha for e in found].index(alpha)].style
        assert Scene(found, judged, None).chosen is not None
        assert Scene(found, judged, None).chosen[0] == alpha  # type: ignore[index]
        note = markdown_note(StudyResult("s", "sqlite:///s.db", found, {}, judged))
        assert note.splitlines()[0].endswith(f" alpha = {alpha:.4g}")
        report = html_table(found, judged).rows
        assert [row.cells[1] for row in report if row.cells[0].startswith("▲")] == [f"{alpha:.4g}"]
        self.is_what_export_writes(found, judged, tmp_path)

    def is_what_export_writes(self, found: list[Evaluation], judged: Verdict, folder: Path) -> None:
        """By default; its card says it, and a card of another alpha that it is not the recommended one."""
        by_default = Wanted(folder / "out")
        if judged.alpha == 0:
            with pytest.raises(StudyError, match=f"{re.escape(judged.sentence())}; expected a gain to export"):
                _choose(found, judged, by_default, "s")
        else:
            assert _choose(found, judged, by_default, "s") == (judged.alpha, judged.recommended)
        origin = make_origin(folder, evaluations=found, control=found[0], verdict=judged)
        for e in found[1:]:
            text = card(replace(origin, alpha=e.alpha, trial=e))
            told = f"**not the one that the search recommends**, which is {judged.alpha:.4g}: "
            assert judged.sentence() in text
            assert (told in text) == (e.alpha != judged.alpha)

    def test_where_there_is_no_evidence_it_says_what_these_prompts_could_tell(self) -> None:
        few = replace(JUST_NOT, gain=Estimate(0.2, 0.2, 16))
        said = verdict([CONTROL, few]).sentence()
        assert "Too few prompts to tell a gain below 0.59" in said  # (2.13 + 0.84) * 0.2
        # a prompt's gain has a standard deviation of 0.8; (1.96 + 0.84) / 0.3, squared, is 87
        assert "about 87, not 16, tell one of 0.24 from 0 four times in five." in said
        assert "A gain of 0.28 would be told" in verdict([CONTROL, JUST_NOT]).sentence()
        assert "four times in five" not in verdict([CONTROL, JUST_BETTER]).sentence()


class TestLegend:
    def test_it_explains_the_words_that_stand_there_and_no_others(self) -> None:
        early = [replace(make_evaluation(i, i / 10, 0.0, 0.1), outcome="enough") for i in (1, 2)]
        lines = legend([CONTROL, *early], verdict([CONTROL, *early]), ["alpha", "equal length"])
        assert [line.partition(":")[0] for line in lines] == ["▲", "95 % interval", "equal length", "enough"]
        assert "only the verdict's is corrected" in lines[1]
        broke = replace(make_evaluation(3, 0.5, 0.0, 0.1), outcome="hopeless", broken=("length",))
        lines = legend([CONTROL, broke], verdict([CONTROL, broke]))
        assert [line.partition(":")[0] for line in lines] == ["▲", "hopeless", "broke"]
        assert legend([CONTROL], verdict([CONTROL]), ["equal length"]) == []


def test_seconds_are_added_up_by_stage() -> None:
    # four trials of 0.1 + 2 + 1 + 0.05 s; outside generating and scoring 0.15 of 3.15 s
    assert stage_seconds(trials(4)) == (
        "Seconds in trials: switch 0.4, generate 8.0, score 4.0, other 0.2; outside generating and scoring 4.8%."
    )
    assert "0.0%" in stage_seconds([])


@pytest.mark.parametrize("n", [1, 2, 20])
def test_the_summary_is_json_with_every_trial(n: int) -> None:
    found = trials(n)
    judged = verdict(found)
    read = json.loads(json.dumps(summary("s", found, judged), allow_nan=False))
    best = judged.best
    assert read["study"] == "s"
    assert (read["best_alpha"], read["best_trial"]) == ((best.alpha, best.trial) if best else (0.0, 0))
    assert [(t["trial"], t["alpha"], t["difference"], t["outcome"]) for t in read["trials"]] == [
        (e.trial, e.alpha, e.difference.mean, "complete") for e in found
    ]
    assert read["trials"][0]["difference_95"] == read["trials"][0]["gain_95"] == [0.0, 0.0]
    assert all(
        t["gain_95"] == pytest.approx([e.gain.low, e.gain.high]) for t, e in zip(read["trials"], found, strict=True)
    )
    assert read["confirmation"] is None


def test_without_a_gain_the_summary_recommends_alpha_zero() -> None:
    found = summarised([CONTROL, JUST_NOT])
    assert (found["verdict"], found["best_alpha"], found["best_trial"]) == ("no evidence of a gain", 0.0, 0)
    assert found["recommended"]["alpha"] == 0.0
    assert found["best_other"]["trial"] == 1, "the best other alpha is still told"


def test_the_summary_says_how_sure_of_what_among_how_many() -> None:
    spec = SearchSpec(alpha_max=0.3, objective="win-rate")
    found = summarised([CONTROL, JUST_BETTER, make_evaluation(2, 0.2, 0.0, 0.1)], search=spec)
    assert (found["alphas_tried"], found["objective"], found["edge"]) == (2, "win-rate", 0.3)
    low, high = found["interval_95"]
    assert low < JUST_BETTER.gain.low
    assert high == JUST_BETTER.gain.high


def test_the_summary_of_nothing_recommends_nothing() -> None:
    found = summarised([CONTROL])
    assert (found["verdict"], found["recommended"], found["best_alpha"]) == ("nothing to compare", None, 0.0)


def test_the_summary_holds_the_confirmation_of_the_best_trial() -> None:
    found = summarised([CONTROL, JUST_BETTER], {1: confirmed(1, 0.0)})
    assert (found["verdict"], found["best_alpha"]) == ("no evidence of a gain", 0.0)
    assert found["confirmation"]["difference_95"] == pytest.approx([-0.19842, 0.19842], abs=1e-5)
    assert found["confirmation"]["n"] == 100


def test_a_trial_is_found_by_its_alpha_and_without_one_it_is_the_best() -> None:
    found = trials(20)
    assert trial_at(found, 0.25, "s").alpha == 0.25
    assert trial_at(found, 0.2501, "s").alpha == 0.25, "as the table shows it"
    best = verdict(found).best
    assert trial_at(found, None, "s", best) is best


def test_an_alpha_that_is_no_number_is_at_no_trial() -> None:
    for alpha in (math.inf, -math.inf, math.nan):
        with pytest.raises(StudyError, match="no finished trial at alpha"):
            trial_at(trials(20), alpha, "s")


def test_of_small_alphas_side_by_side_the_one_that_is_asked_for_is_found() -> None:
    found = [make_evaluation(i, alpha, 0.1, 0.1) for i, alpha in enumerate((0.0500, 0.0504, 0.0508), 1)]
    assert [trial_at(found, e.alpha, "s") for e in found] == found


def test_an_alpha_that_was_not_evaluated_names_the_nearest_that_were() -> None:
    with pytest.raises(StudyError, match=r"no finished trial at alpha 0.333.*such as 0.35, 0.3, 0.4"):
        trial_at(trials(20), 0.333, "s")
    with pytest.raises(StudyError, match=r"no finished trial but alpha = 0.*search first"):
        trial_at([CONTROL], None, "s")
    with pytest.raises(StudyError, match=r"no trial that may win.*such as 0.3"):
        trial_at([CONTROL, replace(JUST_NOT, outcome="hopeless")], None, "s")


def test_alpha_0_is_said_to_be_the_aligned_checkpoint_itself() -> None:
    with pytest.raises(
        StudyError, match="--alpha 0: the aligned checkpoint itself, with which every trial is compared"
    ):
        trial_at(trials(20), 0.0, "s")


def test_a_confirmation_in_json_has_its_interval() -> None:
    found = json.loads(json.dumps(confirmation_json(confirmed(1, 0.35))))
    assert found["difference_95"] == pytest.approx([0.35 - 0.1984, 0.35 + 0.1984], abs=1e-4)
    assert (found["trial"], found["n"], found["reward"], found["control_reward"]) == (1, 100, 1.35, 1.0)


def test_a_confirmed_gain_that_broke_a_guardrail_is_none() -> None:
    whole = confirmed(1, 0.3)
    broken = replace(whole, broken=["length"])
    assert verdict([CONTROL, JUST_BETTER], {1: whole}).word == "better"
    found = verdict([CONTROL, JUST_BETTER], {1: broken})
    assert found.word == "no evidence of a gain"
    assert "broke a guardrail there (length)" in found.sentence()
    assert confirmation_sentence(broken).startswith("No evidence of a gain: keep alpha = 0")
