"""The menu at the end of a search: on a terminal alone; what it does is what the commands do."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run
from fakes import FakeModel, FakeScorer
from pseudo_terminal import on_a_terminal
from rich.console import Console
from twins import write_prompts

import expo_search as es
import expo_search.cli.search as search_command
from expo_search.cli.menu import Menu

SETTINGS: dict[str, dict[str, Any]] = {
    "pair": {"aligned": "my/aligned", "sft": "my/sft", "reward_model": "my/reward"},
    "prompts": {"n": 32, "source": "prompts.jsonl"},
    "search": {"seed": 5},
}
WORDS = ["--sft", "me/sft", "--aligned", "me/aligned", "--reward-model", "me/reward", "--prompts", "prompts.jsonl"]
WORDS += ["--n-prompts", "32", "--trials", "4", "--study-name", "mine"]


def with_fakes() -> None:
    """The command's sessions from now on have no engine."""

    def opened(*words: Any, **options: Any) -> es.Session:
        fakes = {"engines": None, "model": FakeModel(), "scorer": FakeScorer(noise=0.1)}
        return es.open_session(*words, **(options | fakes))

    search_command.open_session = opened  # type: ignore[attr-defined]


def spoken(session: es.Session, lines: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """What the menu prints and says while these lines are typed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    out, err = io.StringIO(), io.StringIO()
    Menu(session, Console(file=out, width=100), Console(file=err, width=100)).run()
    return out.getvalue(), err.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.jsonl", 80)
    return tmp_path


def session_of(here: Path) -> es.Session:
    spec = es.load_study(name="mine", overrides=SETTINGS)
    fakes: dict[str, Any] = {"model": FakeModel(), "scorer": FakeScorer(noise=0.1)}
    return es.open_session(spec, f"sqlite:///{here / 'mine.db'}", quiet=True, **fakes)


def test_what_is_chosen_is_done_on_the_running_engine_until_the_user_leaves(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_of(here) as session:
        session.search(4)
        out, _ = spoken(session, "confirm\ncomp\nnonsense\n\nreport\n\nq\n", monkeypatch)
        assert "1 confirm   2 compare   3 bench   4 export   5 report   q quit" in out
        assert "Better. alpha" in out
        assert out.count("reward") >= 6, "three prompts at two alphas"
        assert "1 compare   2 bench" in out, "what is confirmed is not offered again"
        assert session.result().verdict.confirmed is not None
    assert (here / "mine.html").is_file()


def test_a_choice_that_fails_is_a_line_and_the_menu_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with session_of(here) as session:
        session.search(4)
        (here / "mine.html").touch()
        out, err = spoken(session, "report\n\nreport\nother.html\n", monkeypatch)  # then the input ends
    assert len(err.splitlines()) == 2
    assert "mine.html" in err
    assert (here / "other.html").is_file()
    assert out.count("q quit") == 3


def test_what_is_no_choice_or_more_than_one_is_said_before_it_is_asked_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session_of(here) as session:
        session.search(2)
        out, err = spoken(session, "co\n\n9\nq\n", monkeypatch)
    assert err.splitlines() == [
        "confirm and compare begin with 'co': type a number or a name",
        "no choice begins with '9': type a number or a name",
    ]
    assert out.count("q quit") == 4, "an empty line asks again, and says nothing"


def searched(here: Path, *words: str, typed: bytes = b"") -> tuple[int, str]:
    """A search on a terminal: exit code and what it shows; `typed` once the menu asks."""
    return on_a_terminal(here, *WORDS, *words, until=b"q quit", typed=typed, before=with_fakes)


def test_on_a_terminal_it_is_asked_and_leaving_is_no_failure(here: Path) -> None:
    code, shown = searched(here, typed=b"\x03")
    assert code == 0, shown[-2000:]
    assert shown.count("q quit") == 1


@pytest.mark.parametrize("typed", ["q\n", "quit\n", ""], ids=["q", "quit", "the end of input"])
def test_it_is_left_by_a_word_or_by_the_end_of_input(here: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with session_of(here) as session:
        session.search(2)
        out, err = spoken(session, typed, monkeypatch)
    assert out.count("q quit") == 1
    assert err == ""


def test_without_a_menu_or_a_terminal_nothing_is_asked(here: Path) -> None:
    code, shown = searched(here, "--no-menu")
    assert code == 0, shown[-2000:]
    assert "q quit" not in shown
    out, _ = run(here, *WORDS, before=with_fakes)
    assert "q quit" not in out
