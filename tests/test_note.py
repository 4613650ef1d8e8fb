"""The study's note: what it says, and that nothing from outside becomes markup."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from fakes import make_evaluation

from expo_search.evaluation.result import Evaluation
from expo_search.results.next_commands import next_steps
from expo_search.results.note import YOURS, markdown_note
from expo_search.results.study_results import StudyResult
from expo_search.results.verdict import verdict
from expo_search.text import markdown, markdown_spans

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
BETTER = make_evaluation(1, 0.3, 0.5, 0.05)


def judged(known: list[Evaluation], url: str = "sqlite:///expo-search.db") -> StudyResult:
    return StudyResult("s", url, known, {}, verdict(known))


def test_it_says_the_verdict_the_best_trials_and_the_next_commands() -> None:
    note = markdown_note(judged([CONTROL, make_evaluation(2, 0.9, -1.0, 0.05), BETTER]))
    assert note.startswith("## Better: alpha = 0.3\n")
    rows = [line.split("|")[2].strip() for line in note.splitlines() if line.startswith("| ")]
    assert rows == ["alpha", "0.3", "0.9", "0"]
    [equal] = {line.split("|")[5].strip() for line in note.splitlines() if line.startswith("| ▲ 1 |")}
    assert equal == rf"\{BETTER.length_controlled.mean:+.4f}"
    assert "\n- equal length: the gain over alpha = 0 if answers were as long as there" in note
    assert "\n    expo-search confirm s\n" in note


@pytest.mark.parametrize("word", ["no evidence of a gain", "worse"])
def test_without_a_gain_it_keeps_alpha_0_and_offers_no_export(word: str) -> None:
    study = judged([CONTROL, make_evaluation(1, 0.3, 0.0, 0.05)])
    note = markdown_note(replace(study, verdict=replace(study.verdict, word=word)))
    assert note.startswith("## Keep alpha = 0\n")
    assert "expo-search export" not in note


def test_trials_that_cannot_win_say_why() -> None:
    e = replace(make_evaluation(1, 0.3, -0.5, 0.05), outcome="hopeless", broken=("cut off",))
    assert "| hopeless; broke cut off |" in markdown_note(judged([CONTROL, e]))


def test_what_a_person_wrote_below_the_line_stays() -> None:
    first = markdown_note(judged([CONTROL]))
    edited = first[: first.index(YOURS)] + YOURS + "\n\nTry --alpha-max 2 next.\n"
    second = markdown_note(judged([CONTROL, BETTER]), old=edited)
    assert second.startswith("## Better")
    assert second.endswith(YOURS + "\n\nTry --alpha-max 2 next.\n")
    assert markdown_note(judged([CONTROL, BETTER]), old=second) == second


def test_a_note_that_a_person_wrote_whole_stays() -> None:
    note = markdown_note(judged([CONTROL]), old="mine alone")
    assert note.startswith("## ")
    assert note.endswith("mine alone")
    assert markdown_note(judged([CONTROL]), old=note) == note


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", r"\<script\>alert\(1\)\</script\>"),
        ("[x](javascript:alert(1))", r"\[x\]\(javascript:alert\(1\)\)"),
        ("a | b\n# c `d` **e**", r"a \| b \# c \`d\` \*\*e\*\*"),
        ("\x1b[31m", r"�\[31m"),
    ],
)
def test_a_text_stays_text_in_markdown(text: str, shown: str) -> None:
    assert markdown(text) == shown


def test_past_an_edge_the_note_has_the_command_of_the_verdict() -> None:
    command = "expo-search --pair zephyr --alpha-max auto --study-name zephyr"
    found = replace(verdict([CONTROL, BETTER]), edge=0.3, again=command)
    assert next_steps("s", "sqlite:///expo-search.db", found)[0][0] == command
    assert command in found.sentence()
    assert "..." not in markdown_note(StudyResult("s", "sqlite:///expo-search.db", [CONTROL, BETTER], {}, found))


def test_commands_are_quoted_for_the_shell_and_show_no_password() -> None:
    found = verdict([CONTROL, BETTER])
    commands = [c for c, _ in next_steps("s; rm -rf ~", "postgresql://me:secret@host/db?a=$(x)", found)]
    assert all(c.startswith("expo-search ") and "'s; rm -rf ~'" in c for c in commands)
    assert not any("secret" in c for c in commands)
    assert all(
        shlex.split(c)[2:3] != ["rm"] and "postgresql://me:***@host/db?a=" in shlex.split(c)[-1] for c in commands
    )
    trusted = [c for c, _ in next_steps("s", "sqlite:///expo-search.db", found, asks_consent=True)]
    starting = ("confirm", "bench", "export", "compare")
    assert all(c.endswith(" --trust-remote-code") == (c.split()[1] in starting) for c in trusted)
    local = next_steps("s", "sqlite:////a folder/$(x).db", found)
    assert all(shlex.split(c)[-1] == "sqlite:////a folder/$(x).db" for c, _ in local)


def test_a_note_names_no_place_of_its_database_which_may_be_moved() -> None:
    url = "sqlite:////home/me/first/place.db"
    study = StudyResult(
        "s", url, [CONTROL, BETTER], {}, replace(verdict([CONTROL, BETTER]), edge=0.3, again=f"x --storage {url}")
    )
    note = markdown_note(study, artifacts="Artifacts: 3 files in `place.db.artifacts` beside it.")
    assert "/home/me" not in note
    assert "expo-search show s" in note
    assert "add `--storage`" in note
    assert "add `--storage`" in markdown_note(judged([CONTROL, BETTER])), "the usual one may be renamed as well"


def test_a_command_of_several_lines_does_not_end_its_block() -> None:
    command = "expo-search --scorer 'first\n<b>second</b>'"
    found = replace(verdict([CONTROL, BETTER]), edge=0.3, again=command)
    note = markdown_note(StudyResult("s", "sqlite:///expo-search.db", [CONTROL, BETTER], {}, found))
    assert "\n    expo-search --scorer 'first\n    <b>second</b>'\n" in note.partition("### Next")[2]


def test_what_stands_between_backticks_is_code_and_all_else_stays_text() -> None:
    note = markdown_note(judged([CONTROL, BETTER]))
    assert "(`expo-search confirm` measures it" in note.replace("\\(", "(")
    assert markdown_spans("a <b> `c <d>` *e* `") == r"a \<b\> `c <d>` \*e\* "
