"""Every database that cannot be used is one clear line, and looking at one writes nothing."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import pytest
from databases import rows

from expo_search.cli.console import known_study
from expo_search.contracts import Prompt
from expo_search.errors import StoreError
from expo_search.search.loop import evaluations
from expo_search.store.attributes import stored_attributes
from expo_search.store.database import check_storage, study_names
from expo_search.store.study_store import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["wal", "delete"])
def others(request: pytest.FixtureRequest, url: str) -> str:
    """The database of another program, closed, in either journal mode."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert connection.execute(f"PRAGMA journal_mode={request.param}").fetchall() == [(request.param,)]
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    return url


def test_checking_a_storage_writes_nothing(others: str, tmp_path: Path) -> None:
    before = (tmp_path / "test.db").read_bytes()
    check_storage(others)
    assert stored_attributes(others, "s") is None
    assert study_names(others) == []
    assert (tmp_path / "test.db").read_bytes() == before
    assert rows(others, "SELECT name FROM sqlite_master") == [("theirs",)]


def test_checking_a_storage_that_is_not_there_does_not_make_it(url: str, tmp_path: Path) -> None:
    check_storage(url)
    assert stored_attributes(url, "s") is None
    assert study_names(url) == []
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_database_is_refused(others: str, tmp_path: Path) -> None:
    read_only = f"sqlite:///file:{tmp_path / 'test.db'}?mode=ro&uri=true"  # holds for root too, as file modes do not
    with pytest.raises(StoreError, match="readonly"):
        check_storage(read_only)
    assert study_names(read_only) == []


@pytest.fixture(params=["writable", "another's"])
def kept(request: pytest.FixtureRequest, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a study and one answer, closed; the second cannot be written to (root may write to any)."""
    store = Store(url, "s")
    store.put_prompts("search", [Prompt("a", "A?")])
    store.close()
    if request.param != "writable":
        file, may = tmp_path / "test.db", os.access
        monkeypatch.setattr(os, "access", lambda path, mode: path != file and may(path, mode))
    return url


def test_looking_into_a_study_writes_nothing(kept: str, tmp_path: Path) -> None:
    before = (tmp_path / "test.db").read_bytes()
    assert known_study(None, kept) == "s"
    store = Store(kept, "s", read_only=True)
    assert evaluations(store.study) == []
    assert store.prompts("search") == [Prompt("a", "A?")]
    with pytest.raises(StoreError, match="readonly"):
        store.put_prompts("confirm", [Prompt("b", "B?")])
    with pytest.raises(StoreError, match="readonly"):
        store.study.set_user_attr("x", 1)
    store.close()
    assert (tmp_path / "test.db").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["test.db"]


def test_looking_into_a_study_waits_for_no_writer_and_sees_what_is_committed(kept: str, tmp_path: Path) -> None:
    writer = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    writer.execute("UPDATE expo_prompts SET text = 'B?'")  # in the log beside the file
    writer.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert known_study("s", kept) == "s"
    store = Store(kept, "s", read_only=True)
    assert store.prompts("search") == [Prompt("a", "B?")]
    store.close()
    assert time.monotonic() - began < 20, "the time-out for a lock is 120 s"
    writer.execute("COMMIT")
    writer.close()


def test_a_file_that_is_no_database_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes, which are long enough to look like a header of some kind\n" * 20)
    before = file.read_bytes()
    with pytest.raises(StoreError) as fault:
        check_storage(f"sqlite:///{file}")
    assert str(fault.value) == (
        f"--storage sqlite:///{file}: file is not a database; expected a database that can be written to; "
        "check the file, its permissions and the room on the disk, or give another --storage"
    )
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{file}", "s")
    assert file.read_bytes() == before


def test_a_database_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as fault:
        check_storage(f"sqlite:///{tmp_path}/none/test.db")
    assert fault.value.found == f"the folder {tmp_path}/none is missing or cannot be written to"
    assert fault.value.do == "make the folder, or give another path"


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open database file"):
        check_storage(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("url", ["", "test.db", "://", "postgresql://host:port/db"])
def test_what_is_no_database_url_is_refused(url: str) -> None:
    with pytest.raises(StoreError) as fault:
        check_storage(url)
    assert fault.value.found == "not a database URL"
    assert "sqlite:///expo-search.db" in fault.value.expected


def test_an_unknown_backend_and_a_missing_driver_are_named() -> None:
    with pytest.raises(StoreError, match="nosuchdb"):
        stored_attributes("nosuchdb://host/db", "s")
    with pytest.raises(StoreError, match="No module named"):
        stored_attributes("mssql+pymssql://host/db", "s")
