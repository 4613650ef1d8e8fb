"""Every bad input: one line with where, found, expected, do; exit code 2; nothing written; a row in the docs."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad_inputs import CASES, GOOD, LONG_CASES, Case
from twins import write_prompts

from expo_search import errors
from expo_search.cli import main as cli
from expo_search.errors import EngineDied, ExpoError

TABLE = Path(__file__).parent.parent / "docs" / "bad-input.md"
COMMAND = "make bad-input-table"
HEAD = f"""# Bad inputs, and what is said

Every row was tried by `tests/test_bad_input.py`: exit code 2, this line, the last on standard error, nothing written.
`{COMMAND}` writes this file; a test fails where it is stale. A path is short where the machine's would stand.

| input | typed after `expo-search` | message |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Refusal:
    """What came of a bad input: the line, and the class of the error behind it."""

    line: str
    error: type[ExpoError]


refusals: dict[str, Refusal] = {}  # by title, filled by the tests as they run


@pytest.fixture
def good(tiny_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good pair, reward model and prompts, of which each test spoils one."""
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(case: Case, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Refusal:
    """Run the command, expect exit code 2 and a single line."""
    if case.spoil:
        case.spoil(folder, patch)
    capfd.readouterr()  # what making the input printed
    patch.setattr(sys, "argv", ["expo-search", *case.typed])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    fault, captured = stop.value.__context__, capfd.readouterr()
    assert isinstance(fault, ExpoError)
    assert captured.out == ""
    *said, line = captured.err.strip().splitlines()
    assert all(not word.startswith("expo-search:") for word in said)
    assert line.startswith("expo-search: ")
    assert "; expected " in line
    for part in case.said:
        assert part in line
    return seen(line, folder, type(fault))


@pytest.mark.parametrize("case", [*CASES, *LONG_CASES], ids=lambda case: case.title)
def test_bad_input_is_one_line_and_nothing_is_written(
    case: Case, good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in good.rglob("*") if not p.name.endswith(("-wal", "-shm"))}

    def spoil(folder: Path, patch: pytest.MonkeyPatch) -> None:
        if case.spoil:
            case.spoil(folder, patch)
        before.update(files())

    before: dict[Path, int] = {}
    found = refused(Case(case.title, case.typed, case.said, spoil), good, capfd, monkeypatch)
    assert files() == before
    if case in CASES:
        refusals[case.title] = found


def seen(line: str, folder: Path, error: type[ExpoError]) -> Refusal:
    return Refusal(line.removeprefix("expo-search: ").replace(f"{folder}/", ""), error)


def whole() -> None:
    if set(refusals) != {case.title for case in CASES}:
        pytest.skip("needs every test before it in this file")


def test_every_class_of_error_is_met_but_the_one_that_no_input_brings_about() -> None:
    whole()
    classes = {c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ExpoError)}
    assert {r.error for r in refusals.values()} == classes - {ExpoError, EngineDied}


def test_the_table_in_the_docs_is_what_was_seen() -> None:
    whole()
    table = HEAD + "".join(row(case, refusals[case.title].line) for case in CASES)
    if "WRITE_BAD_INPUT_TABLE" in os.environ:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(table)
    assert TABLE.read_text() == table, f"stale: run {COMMAND}"


def row(case: Case, line: str) -> str:
    cells = (case.title, f"`{typed(case)}`", line.replace("][", "]\\["))  # no link to a reference
    escaped = (cell.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"


def typed(case: Case) -> str:
    """The words, without those that a good search has as well."""
    words, shown = list(case.typed), []
    usual = [[f"--{name}", value] for name, value in GOOD.items()]
    while words:
        if words[:2] in usual:
            words = words[2:]
        else:
            shown.append(words.pop(0))
    return " ".join(shown) or "(a search)"
