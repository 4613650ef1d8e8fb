"""What is said beside a trial, in one wording wherever trials are listed."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from fakes import make_evaluation
from rich.console import Console

from expo_search.exporting.model_card import trial_row
from expo_search.results.curve.interactive import plotly_curve
from expo_search.results.html_report import trial_table as html_table
from expo_search.results.note import markdown_note
from expo_search.results.study_results import StudyResult
from expo_search.results.terminal import trial_table
from expo_search.results.verdict import verdict
from expo_search.session.progress import Progress

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
FEW = make_evaluation(1, 0.3, -0.2, 0.05, n=16)
HOPELESS = replace(FEW, outcome="hopeless")
BROKEN = replace(FEW, outcome="degenerate", broken=("length", "cut off"))


def progress_line(e: Any) -> str:
    out = io.StringIO()
    Progress(Console(file=out, width=400), 2, 0).finished(e)
    return out.getvalue()


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({}, ""),
        ({"outcome": "enough"}, "enough"),
        ({"broken": ("length",)}, "broke length"),
        ({"outcome": "degenerate", "broken": ("length", "cut off")}, "degenerate; broke length; broke cut off"),
    ],
)
def test_it_says_why_a_trial_ended_early_and_each_guardrail_that_it_broke(changes: dict[str, Any], remark: str) -> None:
    assert replace(FEW, **changes).remark == remark


@pytest.mark.parametrize("e", [FEW, HOPELESS, BROKEN])
def test_every_view_says_the_same(e: Any) -> None:
    trials = [CONTROL, e]
    judged = StudyResult("s", "sqlite:///s.db", trials, {}, verdict(trials))
    noted = next(line for line in markdown_note(judged).splitlines() if line.startswith("| 1 |"))
    hovered = [
        text for trace in plotly_curve(trials, judged.verdict).data for text in trace.text or () if "trial 1" in text
    ]
    assert list(trial_table(trials, verdict(trials)).columns[-1].cells) == ["", e.remark]
    assert [row.cells[-1] for row in html_table(trials, judged.verdict).rows] == ["", e.remark]
    assert noted.endswith(f"| {e.remark} |")
    assert trial_row(e).endswith(f"| {e.remark} |")
    assert hovered[0].split("<br>")[5:] == ([e.remark] if e.remark else [])
    assert e.remark in progress_line(e)


def test_the_line_of_a_trial_that_was_stopped_early_says_after_how_many_prompts() -> None:
    assert "  hopeless (after 16 prompts)  1250 tokens" in progress_line(HOPELESS)
    assert "prompts" not in progress_line(FEW)
