"""How a study names a scorer of its own: `module:function`, `FILE.py:function`, or a command with its arguments.

What looks like a function is one; anything else is a command, whose words are told apart as a shell does. No shell runs
it.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from expo_search.errors import StudyError
from expo_search.folders import path_in, user_path

FORMS = "module:function, FILE.py:function or a command"


def function_of(named: str) -> tuple[str, str] | None:
    """(module or file, function), `~` in the file's path for a home; None: it is a command."""
    home, colon, name = named.rpartition(":")
    is_file = home.endswith(".py")
    is_home = is_file or all(part.isidentifier() for part in home.split("."))
    return (str(user_path(home)) if is_file else home, name) if colon and name.isidentifier() and is_home else None


def words_of(command: str) -> list[str]:
    """Program and arguments of a command, files in a home (`~/NAME`) by their whole paths.

    Raises:
        StudyError: a quotation mark that is not closed.
    """
    try:
        return [_in_home(word) for word in shlex.split(command)]
    except ValueError as fault:
        raise StudyError(
            where=f"scorer {command}", found=str(fault).lower(), expected=FORMS, do="see to its quotation marks"
        ) from None


def _in_home(word: str) -> str:
    path = str(user_path(word)) if word.startswith("~") else word
    return path if _is_file(path) else word


def beside(named: str, folder: Path) -> str:
    """A study file's scorer, with those files that lie in its `folder` named as they lie from the working folder."""
    return _renamed(named, lambda home: path_in(folder, home), lambda word: _placed(word, folder))


def from_folder(named: str, folder: Path) -> str:
    """A stored study's scorer, with those files that lie not here, but in the `folder` of its search, in full."""

    def found(file: str) -> str:
        return path_in(folder, file) if not _is_file(file) and _is_file(folder / file) else file

    return _renamed(named, found, found)


def _renamed(named: str, of_function: Callable[[str], str], of_command: Callable[[str], str]) -> str:
    """A scorer with the file of its function, or the words of its command that may be files, by other names."""
    function = function_of(named)
    if function is not None:
        home, name = function
        return f"{of_function(home)}:{name}" if home.endswith(".py") else named
    words = words_of(named)
    # a program without a slash is looked for on PATH, as in a shell
    placed = [of_command(word) if i or "/" in word else word for i, word in enumerate(words)]
    return named if placed == words else shlex.join(placed)


def _placed(word: str, folder: Path) -> str:
    is_there = _is_file(folder / word)
    path = path_in(folder, word) if is_there else word
    return path if "/" in path or not is_there else f"./{path}"


def shortened(named: str) -> str:
    """Without the folders of this machine: files are named `./NAME`."""
    function = function_of(named)
    if function is not None:
        home, name = function
        return f"./{Path(home).name}:{name}" if home.endswith(".py") else named
    words = words_of(named)
    short = [f"./{Path(word).name}" if "/" in word and _is_file(word) else word for word in words]
    return named if short == words else shlex.join(short)


def _is_file(word: str | Path) -> bool:
    return os.path.isfile(word)  # noqa: PTH113  Path.is_file raises for a name that is too long
