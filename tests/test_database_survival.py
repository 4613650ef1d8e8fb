"""A database that others hold, that fills up or cannot be written: the search waits, or stops with the reason.

With fakes of model and scorer. Whatever stops a search, the same command afterwards ends as an unbroken one, and
nothing that was stored is generated again.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts, outcome

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import StoreError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.search.loop import search
from expo_search.store.database import check_storage
from expo_search.store.study_store import Store
from expo_search.text import shown

PROMPTS = make_prompts(4)
SPEC = SearchSpec(sampler="random", seed=5, alpha_min=0.0, alpha_max=1.0)
N_TRIALS = 3
LONGER_THAN_SQLITE_WAITS_S = 5.5  # its own default is 5 s, after which a search used to end


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


def run(store: Store, model: FakeModel | None = None) -> list[Evaluation]:
    objective = Objective(model or FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    return search(store, objective, SPEC, N_TRIALS)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    return outcome(run(Store(f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}", "s")))


def hold(url: str, statements: list[str], seconds: float, over: threading.Event | None = None) -> threading.Thread:
    """Another program's connection, in a transaction for so long, or until it is over. Returns once it is in it."""
    inside = threading.Event()

    def keep() -> None:
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, uri=True)
        for statement in statements:
            connection.execute(statement).fetchall()
        inside.set()
        (over or threading.Event()).wait(seconds)
        connection.close()

    thread = threading.Thread(target=keep)
    thread.start()
    assert inside.wait(10)
    return thread


READS = ["BEGIN", "SELECT count(*) FROM trials"]
WRITES = ["BEGIN IMMEDIATE"]


def test_a_reader_with_an_open_transaction_stops_and_slows_nothing(
    file: Path, unbroken: list[tuple[object, ...]]
) -> None:
    store = Store(f"sqlite:///{file}", "s")
    assert store.note is None
    over = threading.Event()
    reader = hold(store.url, READS, 60, over)
    assert outcome(run(store)) == unbroken
    assert reader.is_alive(), "the search waited for a reader"
    over.set()
    reader.join()


@pytest.mark.parametrize(
    ("query", "held"),
    [
        pytest.param("", WRITES, id="a second writer"),
        # a VFS without shared memory, as a file system without a write-ahead log is to SQLite
        pytest.param("?vfs=unix-dotfile&uri=true", READS, id="a reader, where there is no write-ahead log"),
    ],
)
def test_a_search_waits_for_who_holds_the_database(
    file: Path, unbroken: list[tuple[object, ...]], query: str, held: list[str]
) -> None:
    url = f"sqlite:///file:{file}{query}" if query else f"sqlite:///{file}"
    store = Store(url, "s")
    started = time.monotonic()
    other = hold(url, held, LONGER_THAN_SQLITE_WAITS_S)
    assert outcome(run(store)) == unbroken
    assert time.monotonic() - started >= LONGER_THAN_SQLITE_WAITS_S
    other.join()


def test_a_file_system_without_a_write_ahead_log_is_said_in_one_line(file: Path) -> None:
    store = Store(f"sqlite:///file:{file}?vfs=unix-dotfile&uri=true", "s")
    assert store.note is not None
    assert "no write-ahead log: SQLite uses journal mode 'delete'" in store.note
    assert "waits for a dashboard" in store.note
    assert "\n" not in store.note


@pytest.mark.slow
@pytest.mark.parametrize(("held", "seconds"), [(READS, 60), (WRITES, 10)])
def test_a_reader_for_a_minute_and_a_writer_for_ten_seconds_without_a_write_ahead_log(
    file: Path, unbroken: list[tuple[object, ...]], held: list[str], seconds: float
) -> None:
    store = Store(f"sqlite:///file:{file}?vfs=unix-dotfile&uri=true", "s")
    other = hold(store.url, held, seconds)
    assert outcome(run(store)) == unbroken
    other.join()


def on_connections(store: Store, pragma: Callable[[sqlite3.Cursor], str]) -> None:
    """Run a pragma on every connection of this store, ours and Optuna's."""
    for engine in (store._engine, store.storage.engine):

        def limit(connection: sqlite3.Connection, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute(pragma(cursor))
            cursor.close()

        sa.event.listen(engine, "connect", limit)
        engine.dispose()


def full_after(more_pages: int) -> Callable[[sqlite3.Cursor], str]:
    def pragma(cursor: sqlite3.Cursor) -> str:
        [n_pages] = cursor.execute("PRAGMA page_count").fetchone()
        return f"PRAGMA max_page_count={n_pages + more_pages}"

    return pragma


def integrity(file: Path) -> str:
    connection = sqlite3.connect(file)
    [answer] = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()
    return str(answer)


class Talkative(FakeModel):
    """Half a page of the database an answer, so that the pages run out in different places."""

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        for item in super().generate(prompts, seed):
            yield item if isinstance(item, int) else replace(item, text=item.text + " " * 2000)


@pytest.mark.parametrize("more_pages", [0, 1, 2, 3, 5, 8])
def test_a_full_disk_stops_the_search_with_the_reason_and_loses_nothing(
    file: Path, unbroken: list[tuple[object, ...]], more_pages: int
) -> None:
    store = Store(f"sqlite:///{file}", "s")
    on_connections(store, full_after(more_pages))
    with pytest.raises(StoreError) as fault:
        run(store, Talkative())
    assert fault.value.found == "database or disk is full"
    assert fault.value.do.startswith("free room on the disk, then run the same command again")
    store.close()
    model, before = Talkative(), answers(file)
    assert outcome(run(Store(f"sqlite:///{file}", "s"), model)) == unbroken
    assert before.isdisjoint(model.asked)
    assert integrity(file) == "ok"


def answers(file: Path) -> set[tuple[float, str]]:
    """(alpha, prompt id) of every stored answer, which its text says."""
    connection = sqlite3.connect(file)
    found = [json.loads(text) for (text,) in connection.execute("SELECT text FROM expo_completions")]
    connection.close()
    return {(alpha, prompt) for alpha, prompt in found}


def test_a_database_that_becomes_read_only_stops_the_search_with_the_reason(
    file: Path, unbroken: list[tuple[object, ...]]
) -> None:
    store = Store(f"sqlite:///{file}", "s")
    on_connections(store, lambda _: "PRAGMA query_only=ON")
    with pytest.raises(StoreError, match="readonly database"):
        run(store)
    store.close()
    assert outcome(run(Store(f"sqlite:///{file}", "s"))) == unbroken


LIMITED = """
import resource, sys
sys.path.insert(0, {tests!r})
import test_database_survival as t
from expo_search.errors import StoreError
store = t.Store({url!r}, "s")
size = max(p.stat().st_size for p in t.Path({folder!r}).iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size + {more}, size + {more}))
try:
    t.run(store)
except StoreError as fault:
    print(fault)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("more", [20_000, 60_000])
def test_a_write_that_the_system_refuses_stops_the_search_with_the_reason_and_loses_nothing(
    file: Path, unbroken: list[tuple[object, ...]], more: int
) -> None:
    url = f"sqlite:///{file}"
    code = LIMITED.format(tests=str(Path(__file__).parent), url=url, folder=str(file.parent), more=more)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout
    assert said.startswith(f"--storage {url}: disk I/O error; expected a database that can be written to; free room")
    model = FakeModel()
    before = answers(file)
    assert outcome(run(Store(url, "s"), model)) == unbroken
    assert before.isdisjoint(model.asked)
    assert integrity(file) == "ok"


def test_a_lock_that_is_not_given_back_is_said_with_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expo_search.store.database._LOCK_TIMEOUT_S", 0.2)
    store = Store(f"sqlite:///{file}", "s")
    other = hold(store.url, WRITES, 1.5)
    with pytest.raises(StoreError) as fault:
        run(store)
    assert fault.value.found == "locked by another program for over 0.2 s"
    assert fault.value.do.startswith("close that program, then run the same command again")
    other.join()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StoreError) as fault:
        check_storage(url)
    assert fault.value.found == "a database in memory"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("sqlite:///expo-search.db", "sqlite:///expo-search.db"),
        ("sqlite:///file:a.db?mode=ro&uri=true", "sqlite:///file:a.db?mode=ro&uri=true"),
        ("postgresql://me:hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("mysql://host/db?user=me&password=hunter2", "mysql://host/db?user=me&password=***"),
        ("postgresql://host/db?sslpassword=hunter2", "postgresql://host/db?sslpassword=***"),
        ("postgresql://me:hunter2@host:port/db", "postgresql://me:***@host:port/db"),
    ],
)
def test_passwords_are_not_shown(url: str, masked: str) -> None:
    assert shown(url) == masked


def test_no_message_about_a_database_shows_its_password() -> None:
    for url in ("nosuchdb://me:hunter2@host/db", "postgresql://me:hunter2@host:port/db", "mssql+pymssql://a:hunter2@b"):
        with pytest.raises(StoreError) as fault:
            Store(url, "s")
        assert "hunter2" not in str(fault.value)
        assert "***" in fault.value.where
