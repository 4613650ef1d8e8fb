"""The error tree, and the four parts that every message has."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from expo_search import errors
from expo_search.errors import ExpoError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ExpoError)]
PARTS = {"where", "found", "expected", "do"}


@pytest.mark.parametrize("error", CLASSES)
def test_a_message_is_one_line_with_where_found_expected_and_do_in_this_order(error: type[ExpoError]) -> None:
    fault = error(where="file a.toml", found="2 wheels", expected="4", do="add two")
    assert str(fault) == "file a.toml: 2 wheels; expected 4; add two"
    assert (fault.where, fault.found, fault.expected, fault.do) == ("file a.toml", "2 wheels", "4", "add two")


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize("error", CLASSES)
def test_no_part_of_a_message_can_be_left_out(error: type[ExpoError], part: str) -> None:
    with pytest.raises(TypeError, match=part):
        error(**dict.fromkeys(PARTS - {part}, "x"))


def test_the_tree_is_the_one_that_the_docstring_draws() -> None:
    assert errors.__doc__
    drawn = [line.split("── ")[1].split()[0] for line in errors.__doc__.splitlines() if "── " in line]
    assert sorted(drawn) == sorted(c.__name__ for c in CLASSES if c is not ExpoError)
    assert issubclass(errors.CheckpointError, errors.PairError)
    assert issubclass(errors.SettingsChanged, errors.StoreError)
    assert not issubclass(errors.PromptsError, errors.StudyError)


def test_every_error_is_made_somewhere_in_the_package_and_the_base_alone_is_not() -> None:
    package = Path(inspect.getfile(errors)).parent
    called = {
        node.func.id
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert {c.__name__ for c in CLASSES} - called == {"ExpoError"}
