"""The curve's axis, marks and pictures; what is drawn must be what was measured."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from fakes import make_evaluation
from PIL import Image

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.interactive import plotly_curve
from expo_search.results.curve.layout import BROKEN, CHOSEN, CONFIRMED, EVALUATED, FEWER, STOPPED, AlphaAxis, Band
from expo_search.results.curve.static import curve_png, curve_svg
from expo_search.results.curve.terminal import terminal_curve
from expo_search.results.verdict import Verdict, verdict
from expo_search.search.confirm import Confirmation

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
GOOD = make_evaluation(1, 0.5, 0.3, 0.05)
HOPELESS = replace(make_evaluation(2, 1.0, -0.2, 0.1, 16), outcome="hopeless")
FEW = replace(make_evaluation(3, 0.7, 0.1, 0.1, 16), outcome="enough")
DEGENERATE = replace(make_evaluation(4, 8.0, -5.0, 0.1, 16), outcome="degenerate", broken=("cut off",))
TRIALS = [CONTROL, GOOD, HOPELESS, FEW, DEGENERATE]


def traces(known: list[Evaluation], found: Verdict | None = None, band: Band | None = None) -> dict[str, Any]:
    figure = json.loads(plotly_curve(known, found or verdict(known), band=band).to_json())
    return {trace.get("name", f"unnamed {i}"): trace for i, trace in enumerate(figure["data"])}


class TestAxis:
    def test_it_is_linear_where_alphas_are_of_one_size(self) -> None:
        axis = AlphaAxis((0.0, 1.0, 2.0, 16.0))
        assert axis.positions([-1.0, 0.3, 16.0]) == [-1.0, 0.3, 16.0]

    def test_it_spreads_alphas_over_decades_evenly_and_keeps_their_order(self) -> None:
        alphas = (-0.5, 0.0, 0.05, 0.3, 2.0, 30.0)
        axis = AlphaAxis(alphas)
        places = axis.positions(alphas)
        assert places == sorted(places)
        assert axis.position(0.0) == 0.0
        # far from 0 equal factors are equal steps: asinh(x) -> ln(2x)
        assert axis.position(30.0) - axis.position(3.0) == pytest.approx(math.log(10), rel=1e-3)

    @pytest.mark.parametrize(
        "alphas", [(0.0, 0.05, 30.0), (0.0, 16.0), (-1.0, 0.0, 2.5), (-3.0, 0.0, 0.05, 20.0), (0.0,), (0.3,), ()]
    )
    def test_a_tick_says_the_alpha_that_stands_there(self, alphas: tuple[float, ...]) -> None:
        axis = AlphaAxis(alphas)
        ticks = axis.ticks()
        assert all(axis.position(float(label)) == pytest.approx(place) for place, label in ticks.items())
        assert all(min(alphas) <= float(label) <= max(alphas) for label in ticks.values() if alphas)
        assert len(ticks) <= 19

    def test_decades_have_ticks(self) -> None:
        assert {"0", "0.1", "1", "10"} <= set(AlphaAxis((0.0, 0.05, 30.0)).ticks().values())
        assert list(AlphaAxis((0.0, 16.0)).ticks().values()) == ["0", "2", "4", "6", "8", "10", "12", "14", "16"]


class TestMarks:
    def test_every_trial_but_the_control_is_drawn_once_in_its_style(self) -> None:
        drawn = traces(TRIALS)
        assert drawn[EVALUATED.words]["x"] == [0.5]
        assert drawn[FEWER.words]["x"] == [0.7]
        assert drawn[STOPPED.words]["x"] == [1.0]
        assert drawn[BROKEN.words]["x"] == [8.0]

    def test_bars_are_the_95_percent_interval_of_students_t(self) -> None:
        # 100 prompts: 1.984 standard errors (quantile from a table)
        assert traces([CONTROL, GOOD])[EVALUATED.words]["error_y"]["array"][0] == pytest.approx(1.984 * 0.05, rel=1e-3)

    def test_an_unknown_error_has_no_bar(self) -> None:
        one_prompt = make_evaluation(1, 0.5, 0.3, math.inf, 1)
        drawn = traces([CONTROL, one_prompt], Verdict(one_prompt, "no evidence of a gain"))
        assert drawn[EVALUATED.words]["error_y"]["array"] == [0.0]
        assert curve_png([CONTROL, one_prompt], Verdict(one_prompt, "no evidence of a gain"))

    @pytest.mark.parametrize(("word", "alpha"), [("better", 0.5), ("no evidence of a gain", 0.0), ("worse", 0.0)])
    def test_the_verdicts_alpha_is_marked(self, word: str, alpha: float) -> None:
        drawn = traces([CONTROL, GOOD], Verdict(GOOD, word))
        assert drawn[f"{CHOSEN.words}: alpha = {alpha:g}"]["x"] == [alpha]

    def test_where_none_may_win_alpha_0_is_marked(self) -> None:
        broken = replace(GOOD, broken=("cut off",))
        assert traces([CONTROL, broken], Verdict(None, "worse", n_tried=1))["verdict: alpha = 0"]["x"] == [0.0]

    def test_a_confirmation_is_drawn_with_its_own_interval(self) -> None:
        c = Confirmation(1, 0.5, 0.1, 0.05, 100, "abcd", 1.1, 1.0)
        drawn = traces([CONTROL, GOOD], Verdict(GOOD, "better", confirmed=c))
        assert drawn[CONFIRMED.words]["y"] == [0.1]
        assert drawn[CONFIRMED.words]["error_y"]["array"][0] == pytest.approx(1.984 * 0.05, rel=1e-3)

    def test_a_band_is_drawn_on_the_same_axis(self) -> None:
        wide = [CONTROL, make_evaluation(1, 0.05, 0.1, 0.05), make_evaluation(2, 30.0, 0.2, 0.05)]
        band = Band([0.05, 30.0], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3])
        drawn = traces(wide, band=band)
        assert drawn["fit, 95 %"]["x"] == drawn[EVALUATED.words]["x"] == [math.asinh(1), math.asinh(600)]
        assert drawn["fit, 95 %"]["y"] == [0.2, 0.3]

    def test_a_collapsed_trial_does_not_press_the_others_together(self) -> None:
        figure = plotly_curve(TRIALS, verdict(TRIALS)).to_dict()
        low, high = figure["layout"]["yaxis"]["range"]
        assert -2 < low < 0.3 < high
        assert any(a["text"] == "-5.00" for a in figure["layout"]["annotations"])

    def test_hover_texts_hold_no_markup_of_others(self) -> None:
        hostile = replace(GOOD, broken=("<img src=x onerror=alert(1)>",))
        (text,) = traces([CONTROL, hostile])[BROKEN.words]["text"]
        assert "<img" not in text
        assert "&lt;img" in text


class TestPictures:
    def test_the_png_is_a_picture_of_the_size_that_is_said(self) -> None:
        picture = Image.open(io.BytesIO(curve_png(TRIALS, verdict(TRIALS), title="a $\\frac$ title")))
        assert (picture.format, picture.size) == ("PNG", (1200, 675))
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20

    def test_one_curve_gives_one_file(self) -> None:
        assert curve_png(TRIALS, verdict(TRIALS)) == curve_png(TRIALS, verdict(TRIALS))

    @pytest.mark.parametrize("known", [[CONTROL], [CONTROL, GOOD], [make_evaluation(1, 0.0, 0.0, 0.0)]])
    def test_few_trials_can_be_drawn(self, known: list[Evaluation]) -> None:
        assert curve_png(known, verdict(known))
        assert plotly_curve(known, verdict(known)).to_json()

    def test_the_svg_is_one_element_that_needs_nothing_else(self) -> None:
        svg = curve_svg(TRIALS, verdict(TRIALS))
        assert svg.startswith("<svg")
        assert svg.rstrip().endswith("</svg>")
        assert "<script" not in svg
        assert "font-family" not in svg


def drawn(known: list[Evaluation], found: Verdict | None = None, **options: Any) -> tuple[list[str], str]:
    """The lines of the picture between its axes, and what stands below it."""
    text = terminal_curve(known, found or verdict(known), **options)
    picture, _, below = text.partition("└")
    return [re.split("[│┤├]", line, maxsplit=1)[1] for line in picture.splitlines()[2:-1]], below


class TestTerminal:
    def test_a_trial_stands_at_its_gain_with_its_95_percent_interval(self) -> None:
        few = make_evaluation(1, 0.5, 0.2, 0.1, 5)  # 2.776 standard errors (quantile from a table): -0.08 .. 0.48
        text = terminal_curve([CONTROL, few], Verdict(few, "better"), height=40)
        assert "bars: 95 % interval" in text.splitlines()[0]
        lines = text.splitlines()
        zero = next(i for i, line in enumerate(lines) if "├" in line)
        mark = next(i for i, line in enumerate(lines) if EVALUATED.character in line)
        column = lines[mark].index(EVALUATED.character)
        bar = [i for i, line in enumerate(lines) if line[column : column + 1] in ("│", EVALUATED.character)]
        a_line = (zero - mark) / 0.2  # in which a gain is rounded to whole lines
        assert zero - bar[0] == pytest.approx(0.4776 * a_line, abs=1.5)
        assert zero - bar[-1] == pytest.approx(-0.0776 * a_line, abs=1.5)
        verdict_mark = next(line for line in lines if CHOSEN.character in line)
        assert verdict_mark.index(CHOSEN.character) == column

    def test_each_kind_of_trial_has_its_mark_and_the_legend_says_which(self) -> None:
        c = Confirmation(1, 0.5, 0.1, 0.05, 100, "abcd", 1.1, 1.0)
        picture, below = drawn(TRIALS, Verdict(GOOD, "no evidence of a gain", confirmed=c), width=100, height=30)
        for kind in (EVALUATED, FEWER, STOPPED, BROKEN, CONFIRMED):
            assert "".join(picture).count(kind.character) == 1, kind.words
            assert f"{kind.character} {kind.words}" in below
        assert f"{CHOSEN.character} verdict: alpha = 0" in below
        assert FEWER.character not in drawn([CONTROL, GOOD])[1], "nothing that is not drawn"

    def test_alphas_over_decades_stand_on_the_same_axis_as_in_the_other_pictures(self) -> None:
        wide = [CONTROL, make_evaluation(1, 0.05, 0.1, 0.05), make_evaluation(2, 30.0, 0.2, 0.05)]
        _, below = drawn(wide)
        labels = below.splitlines()[1].split()
        assert {"0", "0.1", "1", "10"} <= set(labels)
        assert [float(label) for label in labels] == sorted(float(label) for label in labels)

    def test_of_a_fit_the_mean_is_drawn(self) -> None:
        band = Band([0.0, 0.5], [0.0, 0.3], [0.0, 0.2], [0.0, 0.4])
        picture, below = drawn([CONTROL, GOOD], band=band)
        assert "· fit" in below
        assert "··" in "".join(picture)
        assert "·" not in "".join(drawn([CONTROL, GOOD])[0])

    @pytest.mark.parametrize(("alpha", "note"), [(8.0, "↓ -5.00 ×"), (-3.0, "× -5.00 ↓")])
    def test_a_collapsed_trial_does_not_press_the_others_together(self, alpha: float, note: str) -> None:
        picture, _ = drawn([CONTROL, GOOD, replace(DEGENERATE, alpha=alpha)])
        assert note in picture[-1]
        mark = next(i for i, line in enumerate(picture) if EVALUATED.character in line)
        assert mark < len(picture) / 2

    @pytest.mark.parametrize("n", [1, 2, 20])
    @pytest.mark.parametrize(("width", "height"), [(90, 18), (40, 10), (120, 40)])
    def test_it_is_plain_text_within_its_width_and_height(self, n: int, width: int, height: int) -> None:
        known = [make_evaluation(i, i / n, i / n * (1 - i / n), 0.01 if i else 0.0) for i in range(n)]
        text = terminal_curve(known, verdict(known), width=width, height=height)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) == width
        assert text.splitlines()[height - 1].strip() == "alpha", "the last line before the legend"

    def test_a_long_legend_goes_on_below_within_the_width(self) -> None:
        text = terminal_curve(TRIALS, verdict(TRIALS), width=40)
        assert max(map(len, text.splitlines())) <= 40
        assert f"\n{STOPPED.character} {STOPPED.words}\n" in text

    @pytest.mark.parametrize("height", [10, 18, 40])
    def test_no_two_gains_of_the_axis_share_a_line(self, height: int) -> None:
        lines = terminal_curve(TRIALS, verdict(TRIALS), height=height).partition("└")[0].splitlines()
        gains = [float(re.split("[│┤├]", line)[0]) for line in lines if re.match(r" *[+-]?\d", line)]
        steps = [above - below for above, below in itertools.pairwise(gains)]
        assert 0.0 in gains
        assert steps == pytest.approx([steps[0]] * len(steps)), "none is missing between two others"

    def test_drawing_twice_gives_the_same_curve(self) -> None:
        first = terminal_curve(TRIALS, verdict(TRIALS))
        terminal_curve([CONTROL, GOOD], verdict([CONTROL, GOOD]))
        assert terminal_curve(TRIALS, verdict(TRIALS)) == first

    @pytest.mark.parametrize("known", [[CONTROL], [CONTROL, make_evaluation(1, 0.5, 0.0, 0.0)]])
    def test_equal_gains_can_be_drawn(self, known: list[Evaluation]) -> None:
        assert "0├" in terminal_curve(known, verdict(known))
