"""What an SQLite URL names, told without SQLAlchemy, is what SQLAlchemy opens."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from expo_search.errors import StoreError
from expo_search.store.address import sqlite_path

URLS = (
    "x.db",
    "./a b.db",
    "/abs/x.db",
    "a%20b.db",
    "%41.db",
    "a%2520b.db",
    "ü/#1@x.db",
    "x.db?timeout=5",
    "/",
    "../x;y",
)


@pytest.mark.parametrize("path", URLS)
def test_a_file_is_the_one_that_is_opened(path: str) -> None:
    url = f"sqlite:///{path}"
    assert sqlite_path(url) == Path(str(make_url(url).database))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql+psycopg://host/name"])
def test_what_is_no_file_has_no_path(url: str) -> None:
    assert sqlite_path(url) is None


def test_a_file_uri_is_its_file() -> None:
    assert sqlite_path("sqlite:///file:x.db?uri=true") == Path("x.db")


@pytest.mark.parametrize(
    ("url", "do"),
    [
        ("x.db", "write sqlite:///x.db"),
        ("postgresql://host:port/x", "see SQLAlchemy's database URLs"),
        ("", "see SQLAlchemy's database URLs"),
        ("sqlite://x.db", "write sqlite:///x.db"),
        ("postgres://me@host/x", "write postgresql+psycopg://me@host/x"),
        ("postgres://me:hunter2@host/x", "write postgresql+psycopg://me:***@host/x"),
        ("sqlite:///~/x.db", f"write sqlite:///{Path.home()}/x.db"),
    ],
)
def test_what_is_no_place_is_one_line(url: str, do: str) -> None:
    with pytest.raises(StoreError) as fault:
        sqlite_path(url)
    assert fault.value.do == do
