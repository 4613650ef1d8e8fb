"""A database URL -> an engine that waits for locks, errors in our words, and a look inside without writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from expo_search.errors import StoreError

_LOCK_TIMEOUT_S = 60


def check_storage(url: str) -> None:
    """Find out, without writing, whether a database can be used.

    Raises:
        StoreError: not a database URL, not a database, read-only, locked, or no folder to put it in.
    """
    path = sqlite_path(url)
    if path is None:
        return
    if not path.exists():
        folder = path.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise StoreError(
                where=f"--storage {url}",
                found=f"no folder {folder} that can be written to",
                expected="a database file in a writable folder",
                do="make the folder, or give another path",
            )
        return
    engine = make_engine(url)
    with store_faults(url), engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # on a read-only database BEGIN IMMEDIATE quietly begins to read: only a write tells, and it is taken back
        connection.exec_driver_sql("CREATE TABLE expo_probe (x)")
        connection.rollback()
    engine.dispose()


def stored_attribute(url: str, name: str, key: str) -> dict[str, Any] | None:
    """A study's attribute, read without writing anything; None where there is no such study or attribute yet."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None
    engine = make_engine(url)
    query = sa.text(
        "SELECT a.value_json FROM studies s JOIN study_user_attributes a ON a.study_id = s.study_id "
        "WHERE s.study_name = :name AND a.key = :key"
    )
    try:
        with store_faults(url), engine.connect() as connection:
            if not sa.inspect(connection).has_table("studies"):
                return None
            value = connection.execute(query, {"name": name, "key": key}).scalar()
    finally:
        engine.dispose()
    return None if value is None else dict(json.loads(value))


def study_names(url: str) -> list[str]:
    """Names of the studies in a database, without writing; empty where there is none."""
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return []
    engine = make_engine(url)
    try:
        with store_faults(url), engine.connect() as connection:
            if not sa.inspect(connection).has_table("studies"):
                return []
            return sorted(connection.execute(sa.text("SELECT study_name FROM studies")).scalars())
    finally:
        engine.dispose()


def sqlite_path(url: str) -> Path | None:
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is not a number
        raise StoreError(
            where=f"--storage {url}",
            found="not a database URL",
            expected="a URL such as sqlite:///expo-search.db",
            do="see SQLAlchemy's database URLs",
        ) from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return None
    return Path(parsed.database.removeprefix("file:"))


def connect_args(url: str) -> dict[str, Any]:
    return {"timeout": _LOCK_TIMEOUT_S} if url.startswith("sqlite") else {}


def make_engine(url: str) -> sa.Engine:
    with store_faults(url):
        return sa.create_engine(url, connect_args=connect_args(url))


@contextmanager
def store_faults(url: str) -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except (DatabaseError, NoSuchModuleError, ModuleNotFoundError) as fault:
        cause = str(getattr(fault, "orig", None) or fault)
        raise StoreError(
            where=f"--storage {url}",
            found=" ".join(cause.split())[:200],
            expected="a database that can be written to",
            do="check the file, its permissions and the room on the disk, or give another --storage",
        ) from fault
    except RuntimeError as fault:
        if "schema version" not in str(fault) and "alembic" not in str(fault):
            raise
        raise StoreError(
            where=f"--storage {url}",
            found=" ".join(str(fault).split())[:200],
            expected="tables of this Optuna version",
            do=f"run: optuna storage upgrade --storage {url}",
        ) from fault
