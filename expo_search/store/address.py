"""A database URL -> the SQLite file that it names, or what is wrong with it.

Apart from `database.py`: SQLAlchemy takes half a second to import, and a mistyped place is said before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from expo_search.errors import StoreError
from expo_search.folders import is_there
from expo_search.text import shown

if TYPE_CHECKING:
    from sqlalchemy import URL

_FILE = re.compile(r"sqlite:///([^?%]+)")  # the URL of nearly everybody; SQLAlchemy decodes a %


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite database, whether it exists or not; None for one in memory or of another kind.

    Raises:
        StoreError: not a database URL.
    """
    plain = _FILE.fullmatch(url)
    database = plain[1] if plain else _sqlite_database(url)
    if not database or database == ":memory:":
        return None
    if database.startswith("~"):  # SQLite would make a folder of that name
        whole = os.path.expanduser(database)  # noqa: PTH111  Path.expanduser raises for an unknown user
        raise StoreError(
            where=f"--storage {shown(url)}",
            found="a ~, which stands for no folder in a URL",
            expected="a path",
            do=f"write sqlite:///{whole}" if whole != database else "write the path in full",
        )
    return Path(database.removeprefix("file:"))


def is_made(url: str, path: Path) -> bool:
    """Whether the SQLite database of a URL, at the path that `sqlite_path` gives, is there.

    Raises:
        StoreError: the system does not look there: a folder that is closed to this user, a name that is too long.
    """
    where, expected = f"--storage {shown(url)}", "a database file in a folder that can be looked into"
    return is_there(path, StoreError, where=where, expected=expected, do="give another path")


def check_can_be_made(url: str, path: Path) -> None:
    """Check that an SQLite database which is not there can be made.

    Raises:
        StoreError: no folder to put it in.
    """
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            where=f"--storage {shown(url)}",
            found=f"the folder {folder} is missing or cannot be written to",
            expected="a database file in a writable folder",
            do="make the folder, or give another path",
        )


def _meant(url: URL) -> str | None:
    """How a URL should begin that is begun as other programs', or with a slash too few; None: it may be right."""
    if url.get_backend_name() == "postgres":
        return "postgresql+psycopg://"
    return "sqlite:///" if url.get_backend_name() == "sqlite" and url.host is not None else None


def _sqlite_database(url: str) -> str | None:
    """What a URL names as SQLite's database; None where it is of another kind, or names none."""
    if "://" in url:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):  # ValueError: a port that is not a number
            pass
        else:
            kind, meant = parsed.get_backend_name(), _meant(parsed)
            if meant is None:
                return parsed.database if kind == "sqlite" else None
            begin, _, rest = shown(url).partition("://")
            raise StoreError(
                where=f"--storage {shown(url)}",
                found=f"a URL that begins with {begin}://",
                expected=meant,
                do=f"write {meant}{rest}",
            )
    raise StoreError(
        where=f"--storage {shown(url)}",
        found="not a database URL",
        expected="a URL such as sqlite:///expo-search.db",
        do=f"write sqlite:///{os.path.expanduser(url)}"  # noqa: PTH111  as above
        if url and ":" not in url
        else "see SQLAlchemy's database URLs",
    )
