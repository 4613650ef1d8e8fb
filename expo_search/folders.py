"""What is there: of paths that a user names, and in this package's folders outside a project.

The latter hold what is built or compiled once, for every study of a user.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from expo_search.errors import ExpoError, PairError


def is_there(path: Path, error: type[ExpoError], *, where: str, expected: str, do: str = "check the path") -> bool:
    """Whether there is something at a path, links followed.

    After it `path.is_dir()` and the like raise nothing: of themselves they do where the system does not look.

    Raises:
        ExpoError: an `error`, where the system does not look: a folder that is closed to this user, a name that is too
            long, links in a circle.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in it
        return False
    except OSError as fault:
        raise error(where=where, found=fault.strerror or str(fault), expected=expected, do=do) from None
    return True


def user_path(text: str | Path) -> Path:
    """A path as people type it, with ~ for a home; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser raises for an unknown user


def path_in(folder: Path, path: str) -> str:
    """A path as seen from a folder, as it is from the working folder; without `..` in it where that is the same."""
    whole = folder / path
    short, real = os.path.normpath(whole), os.path.realpath
    # `link/..` is the folder above the one that the link leads to
    return real(whole) if os.path.exists(whole) and real(whole) != real(short) else short  # noqa: PTH110


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists, as far as this user can tell."""
    above = (path, *path.absolute().parents)
    return next(p for p in above if os.path.exists(p))  # noqa: PTH110  Path.exists raises where it may not look


def cache_folder() -> Path:
    """Where built checkpoints are kept: $EXPO_SEARCH_CACHE, else expo-search in the user's cache folder."""
    if given := os.environ.get("EXPO_SEARCH_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expo-search"


def is_built(folder: Path) -> bool:
    """Whether a folder of the cache is there, which is built where it is not.

    Raises:
        PairError: the system does not look there.
    """
    do = "free room, or set EXPO_SEARCH_CACHE to another folder"
    return is_there(folder, PairError, where=str(folder), expected="a folder that can be written to", do=do)


def build_once(folder: Path, build: Callable[[], None]) -> None:
    """Build a folder of the cache where it is not there; another process may do the same at the same moment.

    Raises:
        PairError: it cannot be built.
    """
    if is_built(folder):
        return
    try:
        build()
    except PairError:
        if not is_built(folder):  # by the other process, since it was looked for
            raise
