"""What is shown while something takes long, and that no library writes through it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

import expo_search
from expo_search.session.bench_progress import BenchProgress
from expo_search.session.progress import Progress
from expo_search.session.working import working

Shown = Callable[[Console], AbstractContextManager[object]]


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=80), out


def test_a_terminal_sees_what_is_being_done_and_the_line_goes() -> None:
    screen, out = console(terminal=True)
    with working(screen, False, "checking") as doing:
        doing("starting [vLLM]")
        screen.print("a line that stays")
    assert "starting [vLLM]" in out.getvalue()
    assert "a line that stays" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the last thing is to erase it


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_nothing_is_shown_where_there_is_no_terminal_or_quiet_is_asked(terminal: bool, quiet: bool) -> None:
    screen, out = console(terminal=terminal)
    with working(screen, quiet, "checking") as doing:
        doing("starting")
    assert out.getvalue().strip() == ""


def in_a_trial(screen: Console) -> Progress:
    progress = Progress(screen, 2, 0)
    progress.__enter__()
    progress.started(0, 0.0, 4, 0)
    return progress


SHOWN: dict[str, Shown] = {
    "working": partial(working, quiet=False, first="checking"),
    "a trial": in_a_trial,
    "a benchmark": BenchProgress,
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_what_a_library_writes_meanwhile_goes_where_it_would_go_without(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    screen, out = console(terminal=True)
    with shown(screen):
        assert (sys.stdout, sys.stderr) == streams  # a handler that a library makes now keeps these for good
        sys.stderr.write("INFO of a library")
    assert "library" not in out.getvalue()


def test_no_live_display_is_shown_before_the_first_trial_begins() -> None:
    """`reproduce` makes its display before its engine starts, which has a line of its own."""
    screen, out = console(terminal=True)
    with Progress(screen, 2, 0):
        assert out.getvalue() == ""


def test_every_live_display_of_ours_leaves_the_libraries_streams_alone() -> None:
    """Rich's `Live` and `status` redirect them by default, and `status` cannot be told not to."""
    for file in Path(expo_search.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"rich\.(live|status)|console\.status\(", text), file
        if "from rich.progress import" in text:
            assert '"redirect_stdout": False' in text or "redirect_stdout=False" in text, file
