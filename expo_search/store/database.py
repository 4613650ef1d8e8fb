"""A database URL -> an engine that waits for locks, errors in our words, and a look inside without writing.

A URL may hold a password: messages and commands show it through `shown` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError, NoSuchModuleError

from expo_search.errors import StoreError
from expo_search.store.address import check_can_be_made, is_made, sqlite_path
from expo_search.store.server import (
    INSTALL,
    cut_off_where_hung,
    is_lost,
    only_read,
    server_args,
    server_fault,
    without_secrets,
)
from expo_search.text import one_line, shown

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))  # Optuna's
PREFIX = "expo_"  # of our attributes of Optuna's studies, which other programs may add to
_LOCK_TIMEOUT_S = 120  # a reader that keeps its transaction open for a minute ends no search
_LONGEST_CAUSE = 300  # characters of a driver's own words
# revisions of Optuna's tables that the installed one has accepted: to find out it reads all of its migrations
_compatible: set[str | None] = set()


def check_storage(url: str) -> None:
    """Find out, without writing, whether a database can be used.

    Raises:
        StoreError: not a database URL, not a database, in memory, read-only, locked, or no folder to put it in; a
            server that cannot be reached or does not let this user in; no driver for it.
    """
    path = _kept(url)
    if path is not None and not is_made(url, path):
        check_can_be_made(url, path)
        return
    engine = make_engine(url)
    with store_faults(url), engine.connect() as connection:
        if path is None:
            _check_server(connection)
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            # on a read-only database BEGIN IMMEDIATE quietly begins to read: only a write tells, and it is taken back
            connection.exec_driver_sql("CREATE TABLE expo_probe (x INTEGER)")
            connection.rollback()
    engine.dispose()


def _check_server(connection: sa.Connection) -> None:
    """That this user may make tables, or write to those that another one made. Taken back."""
    from expo_search.store.tables import LockRow  # SQLAlchemy's mapping of classes takes long to import

    if sa.inspect(connection).has_table(LockRow.__tablename__):
        connection.execute(sa.delete(LockRow).where(LockRow.study_id == -1))
        connection.rollback()
        return
    connection.exec_driver_sql("CREATE TABLE expo_probe (x INTEGER)")
    connection.rollback()
    if connection.dialect.name in ("mysql", "mariadb"):  # which commit a new table at once
        connection.exec_driver_sql("DROP TABLE expo_probe")


def check_readable(url: str) -> None:
    """Find out whether the studies of a database can be looked at: it may be read-only, or held by a writer.

    Raises:
        StoreError: not a database URL, not a database, in memory; tables of another version of Optuna.
    """
    _kept(url)
    storage = reading_storage(url)
    if storage is not None:
        storage.engine.dispose()


def _kept(url: str) -> Path | None:
    """SQLite's file; None for a database server.

    Raises:
        StoreError: a database in memory.
    """
    path = sqlite_path(url)
    if path is None and sa.make_url(url).get_backend_name() == "sqlite":
        raise StoreError(
            where=f"--storage {shown(url)}",
            found="a database in memory",
            expected="a file, or a database server: what is finished is kept",
            do="give a path, as in sqlite:///expo-search.db",
        )
    return path


def reading_storage(url: str) -> RDBStorage | None:
    """Optuna's view of a database, which only reads; None where there is none yet, or it has no tables of Optuna's."""
    path = sqlite_path(url)
    if path is not None and not is_made(url, path):
        return None
    from optuna.storages import RDBStorage

    revision = sa.select(sa.table("alembic_version", sa.column("version_num")))
    engine = reading_engine(url)
    try:
        with store_faults(url), engine.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            tables = connection.scalar(revision)
    finally:
        engine.dispose()
    with store_faults(url):
        storage = RDBStorage(
            reading_url(url),
            engine_kwargs={"connect_args": connect_args(url)},
            skip_compatibility_check=tables in _compatible,
            skip_table_creation=True,
        )
    _compatible.add(tables)
    guard(storage.engine, url)
    storage.engine.dispose()  # the connections to come only read
    only_read(storage.engine)
    return storage


def study_id_of(url: str, name: str) -> int | None:
    """Optuna's number of a study, read without writing; None where there is no such study."""
    numbers = _of_studies(url, sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == name))
    return int(numbers[0]) if numbers else None


def study_names(url: str) -> list[str]:
    """Names of the studies in a database but those of shapes, without writing; empty where there is none."""
    attributes = sa.table("study_user_attributes", sa.column("study_id"), sa.column("key"))
    of_shapes = attributes.c.key == f"{PREFIX}shapes"
    is_of_shapes = sa.exists().where(attributes.c.study_id == _STUDIES.c.study_id, of_shapes)
    return sorted(_of_studies(url, sa.select(_STUDIES.c.study_name).where(~is_of_shapes)))


def _of_studies(url: str, query: sa.Select[Any]) -> Sequence[Any]:
    """The first column of what is asked of Optuna's table of studies; nothing where there is none yet.

    Without Optuna, whose storage takes longer to import than to ask: a name that is not there is said at once.
    """
    path = sqlite_path(url)
    if path is not None and not is_made(url, path):
        return []
    engine = reading_engine(url)
    try:
        with store_faults(url), engine.connect() as connection:
            return connection.scalars(query).all() if sa.inspect(connection).has_table(_STUDIES.name) else []
    finally:
        engine.dispose()


def reading_url(url: str) -> str:
    """A URL that reads the same database where nothing can be written: a read-only disk, somebody else's folder.

    To read in write-ahead mode SQLite makes files beside the database, which would then be this user's in a folder that
    may be another's. Where they are not there, nobody has it open, and it is read as a file that does not change.
    """
    path = sqlite_path(url)
    if path is None or "file:" in url or not (is_made(url, path) and path.is_file()):
        return url
    if os.access(path, os.W_OK) and os.access(path.absolute().parent, os.W_OK):
        return url
    log, index = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    logged = log.is_file() and log.stat().st_size > 0
    with path.open("rb") as file:
        write_ahead = file.read(20)[18:] == b"\2\2"  # https://www.sqlite.org/fileformat.html, 1.3.3
    fixed = {"immutable": "1"} if write_ahead and not logged and not index.exists() else {}
    query = {"mode": "ro", "uri": "true"} | fixed
    name = f"file:{quote(str(path.absolute()))}"
    return sa.URL.create("sqlite", database=name, query=query).render_as_string(hide_password=False)


def reading_engine(url: str) -> sa.Engine:
    """An engine that writes nothing, not even by mistake."""
    sqlite_path(url)
    with store_faults(url):
        engine = sa.create_engine(reading_url(url), connect_args=connect_args(url))
    guard(engine, url)
    only_read(engine)
    return engine


def connect_args(url: str) -> dict[str, Any]:
    """What SQLAlchemy passes to the driver: how long SQLite waits for another's lock; how a server is reached."""
    return {"timeout": _LOCK_TIMEOUT_S} if url.startswith("sqlite") else server_args(sa.make_url(url))


def make_engine(url: str) -> sa.Engine:
    """SQLAlchemy's engine for a database, whose faults are `StoreError`s. Does not connect yet.

    Raises:
        StoreError: not a database URL, or its driver is not installed.
    """
    sqlite_path(url)  # says what is wrong with a URL that is none
    with store_faults(url):
        engine = sa.create_engine(url, connect_args=connect_args(url))
    guard(engine, url)
    return engine


def guard(engine: sa.Engine, url: str) -> None:
    """Make every fault of this engine a `StoreError`, also where Optuna uses it, and a server that hangs one of them.

    Optuna hides the cause ("an exception is raised during the commit") and tries some statements five times over.
    It needs integrity errors as they are.
    """

    @sa.event.listens_for(engine, "handle_error")
    def handle(context: sa.engine.ExceptionContext) -> None:
        fault = context.sqlalchemy_exception
        if (context.statement or "").startswith("DESCRIBE "):
            return  # how SQLAlchemy looks for a table of MySQL; an error is its answer
        if isinstance(fault, DatabaseError) and not isinstance(fault, IntegrityError):
            raise _store_error(fault, url, lost=is_lost(context)) from fault

    if engine.dialect.name != "sqlite":
        cut_off_where_hung(engine)


def use_write_ahead_log(engine: sa.Engine) -> str:
    """Ask SQLite for journal mode "wal"; the mode that it uses, another one where the file system cannot have it."""
    with engine.connect() as connection:
        return str(connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar())


@contextmanager
def store_faults(url: str) -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except ImportError as fault:  # the driver, or the library that it is made on
        server = sa.make_url(url)
        raise StoreError(
            where=f"--storage {shown(url)}",
            found=f"no driver for it ({fault})",
            expected=f"the driver of {server.drivername}",
            do=INSTALL.get(server.get_backend_name(), "install it, or give another --storage"),
        ) from None
    except (DatabaseError, NoSuchModuleError) as fault:
        raise _store_error(fault, url) from fault
    except RuntimeError as fault:
        if "compatible with the table schema" not in str(fault):
            raise
        newer = "updating optuna" in str(fault)
        raise StoreError(
            where=f"--storage {shown(url)}",
            found=f"tables of {'a newer' if newer else 'an older'} Optuna",
            expected="tables of the installed one",
            do="run: pip install -U optuna" if newer else f"run: optuna storage upgrade --storage {shown(url)}",
        ) from fault


def _store_error(fault: Exception, url: str, *, lost: bool = False) -> StoreError:
    cause = without_secrets(one_line(str(getattr(fault, "orig", None) or fault)), url)[:_LONGEST_CAUSE]
    if not url.startswith("sqlite") and not isinstance(fault, NoSuchModuleError):
        return server_fault(url, cause, lost=lost)
    expected = "a database that can be written to"
    do = "check the file, its permissions and the room on the disk, or give another --storage"
    if "is locked" in cause:
        cause, expected = f"locked by another program for over {_LOCK_TIMEOUT_S} s", "a lock that is given back"
        do = "close that program, then run the same command again: it goes on where it stopped"
    elif "is full" in cause or "disk I/O" in cause:
        do = "free room on the disk, then run the same command again: it goes on where it stopped"
    return StoreError(where=f"--storage {shown(url)}", found=cause, expected=expected, do=do)
