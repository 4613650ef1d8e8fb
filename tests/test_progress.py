"""What is shown of engines, where there are many."""

from __future__ import annotations

import io

from fakes import make_evaluation
from rich.console import Console

from expo_search.pool.state import EngineState
from expo_search.session.progress import Progress, engine_lines


def engine(i: int, state: str = "answering", rate: float = 100.0) -> EngineState:
    return EngineState(i, "node", state, 7, 256, rate)  # type: ignore[arg-type]


def test_each_engine_has_a_line_and_very_many_are_summed_up() -> None:
    lines = engine_lines([engine(i) for i in range(20)])
    assert len(lines) == 17
    assert lines[0].split() == ["engine", "1", "node", "answering", "7", "prompts", "100", "tokens/s"]
    assert lines[-1] == "  4 more, 4 answering  28 prompts  400 tokens/s"
    assert engine_lines([]) == []


def test_the_live_lines_are_below_the_trials_and_a_name_cannot_move_the_cursor() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    engines = [engine(0), engine(1, "waiting")]
    engines[0].node = "a\x1b[2Jb"
    with Progress(console, 2, 0, engines=lambda: engines) as progress:
        progress.started(1, 0.5, 40, 0)
        progress.generated(10, 1)
        progress._live.refresh()
    shown = out.getvalue()
    assert "engine  1" in shown
    assert "waiting" in shown
    assert "\x1b[2J" not in shown


def test_a_trials_line_says_how_many_engines_were_not_there() -> None:
    out = io.StringIO()
    engines = [engine(0), engine(1, "starting"), engine(2, "given up")]
    Progress(Console(file=out, width=400), 2, 0, engines=lambda: engines).finished(make_evaluation(1, 0.3, 0.1, 0.05))
    assert "2 of 3 engines not there" in out.getvalue()
