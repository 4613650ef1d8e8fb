"""The database: what is kept survives, one process writes, and every database that cannot be used is one clear line."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from fakes import make_prompts
from sqlalchemy.orm import Session

from expo_search.errors import SettingsChanged, StoreError
from expo_search.evaluator import Completion
from expo_search.store import (
    SETTINGS,
    SPEC,
    LockRow,
    Store,
    check_storage,
    compare_settings,
    stored_attribute,
    study_names,
)

PROMPTS = make_prompts(4)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


def answer(i: int, text: str = "yes") -> Completion:
    return Completion(PROMPTS[i], text, 3 + i, "stop" if i % 2 else "length")


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """Read beside the package, with Python's own driver."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def lock(url: str, *, pid: int, started: float, host: str | None = None, alive_at: float = 0.0) -> None:
    """Write the lock that a search by this process would have written."""
    with Session(sa.create_engine(url)) as session, session.begin():
        session.merge(
            LockRow(
                study_id=1, host=host or socket.gethostname(), pid=pid, started=started, since="then", alive_at=alive_at
            )
        )


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def test_completions_rewards_and_prompts_survive_reopening(url: str) -> None:
    store = Store(url, "s")
    store.put_prompts("search", PROMPTS)
    store.add_completions(7, "search", {2: answer(2, "two"), 0: answer(0, "zero")})
    store.add_rewards(7, "search", {2: -1.5})
    again = Store(url, "s")
    assert again.prompts("search") == PROMPTS
    found = again.completions(7, "search", PROMPTS)
    assert [(s.position, s.completion, s.reward) for s in found] == [
        (0, answer(0, "zero"), None),
        (2, answer(2, "two"), -1.5),
    ]
    assert again.rewards(7, "search") == {2: -1.5}


def test_trials_parts_and_studies_are_kept_apart(url: str) -> None:
    one, two = Store(url, "one"), Store(url, "two")
    one.add_completions(0, "search", {0: answer(0, "a")})
    one.add_completions(1, "search", {0: answer(0, "b")})
    one.add_completions(0, "confirm", {0: answer(0, "c")})
    two.add_completions(0, "search", {0: answer(0, "d")})
    kept = [(one, 0, "search"), (one, 1, "search"), (one, 0, "confirm"), (two, 0, "search")]
    assert [s.completions(t, p, PROMPTS)[0].completion.text for s, t, p in kept] == ["a", "b", "c", "d"]  # type: ignore[arg-type]
    one.drop("confirm")
    assert [len(s.completions(t, p, PROMPTS)) for s, t, p in kept] == [1, 1, 0, 1]  # type: ignore[arg-type]


def test_a_part_that_is_dropped_can_be_made_anew_with_other_weights_and_prompts(url: str) -> None:
    store = Store(url, "s")
    for prompts, fingerprint in ((PROMPTS, "aaaa"), (PROMPTS[::-1], "bbbb")):
        store.put_prompts("confirm", prompts)
        store.pin_weights(0, "confirm", 0.0, fingerprint)
        store.add_completions(0, "confirm", {0: answer(0)})
        assert store.prompts("confirm") == prompts
        store.drop("confirm")


def test_prompts_can_be_put_again(url: str) -> None:
    store = Store(url, "s")
    store.put_prompts("search", PROMPTS)
    store.put_prompts("search", PROMPTS)
    assert store.prompts("search") == PROMPTS
    assert store.prompts("confirm") == []


def test_an_answer_is_never_stored_twice(url: str) -> None:
    store = Store(url, "s")
    store.add_completions(0, "search", {0: answer(0, "first")})
    with pytest.raises(StoreError, match="UNIQUE"):
        store.add_completions(0, "search", {0: answer(0, "second"), 1: answer(1)})
    assert [s.completion.text for s in store.completions(0, "search", PROMPTS)] == ["first"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("half \ud83d of a smile", "half ? of a smile"),
        ("nul \0 byte", "nul \ufffd byte"),
        ("", ""),
        (
            "\U0001f600 ü\n\t' \" ; DROP TABLE expo_completions --",
            "\U0001f600 ü\n\t' \" ; DROP TABLE expo_completions --",
        ),
        ("x" * 100_000, "x" * 100_000),
    ],
)
def test_any_text_can_be_stored(url: str, text: str, kept: str) -> None:
    Store(url, "s").add_completions(0, "search", {0: answer(0, text)})
    assert Store(url, "s").completions(0, "search", PROMPTS)[0].completion.text == kept


def test_write_ahead_mode_is_on_so_that_a_dashboards_open_read_ends_no_study(url: str) -> None:
    store = Store(url, "s")
    assert rows(url, "PRAGMA journal_mode") == [("wal",)]
    reader = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM trials").fetchall()
    store.study.tell(store.study.ask(), 1.25)
    store.add_completions(0, "search", {0: answer(0)})
    reader.close()
    assert Store(url, "s").study.best_value == 1.25


def test_weights_are_pinned_to_the_answers_they_made(url: str) -> None:
    store = Store(url, "s")
    store.pin_weights(3, "search", 0.1, "aaaa")
    Store(url, "s").pin_weights(3, "search", 0.1, "aaaa")
    store.pin_weights(3, "confirm", 0.1, "bbbb")
    for alpha, fingerprint in ((0.1, "cccc"), (0.2, "aaaa")):
        with pytest.raises(SettingsChanged) as fault:
            store.pin_weights(3, "search", alpha, fingerprint)
        assert fault.value.where == "study s, trial 3"
        assert fault.value.found == f"weights {fingerprint} at alpha {alpha:g}"
        assert fault.value.expected == "aaaa at alpha 0.1, which made the stored answers"
        assert "--study-name" in fault.value.do


def test_settings_and_spec_are_kept_and_read_again_without_opening_the_study(url: str) -> None:
    assert stored_attribute(url, "s", SETTINGS) is None
    assert Store(url, "s").settings is None
    assert stored_attribute(url, "s", SETTINGS) is None
    settings, spec = {"prompts.n": 5, "sampling.top_p": 0.9}, {"name": "s", "pair": {"sft": "a"}}
    Store(url, "s").pin_settings(settings, spec)
    Store(url, "s").pin_settings(settings, spec)
    assert stored_attribute(url, "s", SETTINGS) == Store(url, "s").settings == settings
    assert stored_attribute(url, "s", SPEC) == spec
    assert stored_attribute(url, "another", SETTINGS) is None
    assert study_names(url) == ["s"]


def test_other_settings_are_refused_and_the_stored_ones_stay(url: str) -> None:
    Store(url, "s").pin_settings({"prompts.n": 5}, {"name": "s"})
    with pytest.raises(SettingsChanged, match="prompts.n: 5 there, 6 now"):
        Store(url, "s").pin_settings({"prompts.n": 6}, {"name": "t"})
    assert stored_attribute(url, "s", SETTINGS) == {"prompts.n": 5}
    assert stored_attribute(url, "s", SPEC) == {"name": "s"}


def test_every_setting_that_differs_is_named_with_both_values() -> None:
    stored = {"a": 1, "b": "x", "c": [1], "only stored": 1}
    compare_settings(stored, {"a": 1, "b": "x", "c": [1], "only now": 2}, name="s")
    with pytest.raises(SettingsChanged) as fault:
        compare_settings(stored, {"a": 2, "b": "y", "c": [1]}, name="s")
    assert str(fault.value) == (
        "study s: other settings (a: 1 there, 2 now; b: 'x' there, 'y' now); expected those it was made under; "
        "drop the differing options, or give another --study-name"
    )


def test_a_live_process_of_this_machine_keeps_its_study(url: str, other_process: subprocess.Popen[bytes]) -> None:
    store = Store(url, "s")
    lock(url, pid=other_process.pid, started=psutil.Process(other_process.pid).create_time())
    with pytest.raises(StoreError) as fault, store.owned():
        pass
    assert f"process {other_process.pid} on {socket.gethostname()} since then" in fault.value.found
    assert (fault.value.where, fault.value.expected) == (f"study s in {url}", "one search at a time")
    with Store(url, "another").owned():
        pass


def test_the_lock_of_a_process_that_is_gone_is_taken_over(url: str, other_process: subprocess.Popen[bytes]) -> None:
    store = Store(url, "s")
    started = psutil.Process(other_process.pid).create_time()
    lock(url, pid=other_process.pid, started=started)
    other_process.kill()
    while psutil.Process(other_process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with store.owned():  # killed, not yet waited for
        assert rows(url, "SELECT pid FROM expo_locks") == [(os.getpid(),)]
    lock(url, pid=other_process.pid, started=started)
    other_process.wait()
    with store.owned():
        assert rows(url, "SELECT pid FROM expo_locks") == [(os.getpid(),)]
    assert rows(url, "SELECT * FROM expo_locks") == []


def test_a_number_that_another_process_got_since_is_no_lock(url: str, other_process: subprocess.Popen[bytes]) -> None:
    store = Store(url, "s")
    lock(url, pid=other_process.pid, started=psutil.Process(other_process.pid).create_time() - 3600)
    with store.owned():
        pass


def test_the_lock_of_another_machine_holds_while_it_shows_signs_of_life(url: str) -> None:
    store = Store(url, "s")
    now = time.time()
    lock(url, pid=1, started=0, host="elsewhere", alive_at=now - 60)
    with pytest.raises(StoreError, match="process 1 on elsewhere"), store.owned():
        pass
    lock(url, pid=1, started=0, host="elsewhere", alive_at=now - 3600)
    with store.owned():
        assert rows(url, "SELECT host FROM expo_locks") == [(socket.gethostname(),)]


def test_stored_work_is_the_sign_of_life(url: str) -> None:
    store = Store(url, "s")
    with store.owned():
        [(before,)] = rows(url, "SELECT alive_at FROM expo_locks")
        store.add_completions(0, "search", {0: answer(0)})
        [(between,)] = rows(url, "SELECT alive_at FROM expo_locks")
        store.add_rewards(0, "search", {0: 1.0})
        [(after,)] = rows(url, "SELECT alive_at FROM expo_locks")
    assert before < between < after  # type: ignore[operator]


def test_the_lock_is_given_back_after_an_error_too(url: str) -> None:
    store = Store(url, "s")
    with pytest.raises(KeyError), store.owned():
        raise KeyError
    assert rows(url, "SELECT * FROM expo_locks") == []


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
    assert stored_attribute(others, "s", SETTINGS) is None
    assert study_names(others) == []
    assert (tmp_path / "test.db").read_bytes() == before
    assert rows(others, "SELECT name FROM sqlite_master") == [("theirs",)]


def test_checking_a_storage_that_is_not_there_does_not_make_it(url: str, tmp_path: Path) -> None:
    check_storage(url)
    assert stored_attribute(url, "s", SETTINGS) is None
    assert study_names(url) == []
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_database_is_refused(others: str, tmp_path: Path) -> None:
    read_only = f"sqlite:///file:{tmp_path / 'test.db'}?mode=ro&uri=true"  # holds for root too, as file modes do not
    with pytest.raises(StoreError, match="readonly"):
        check_storage(read_only)
    assert study_names(read_only) == []


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
    assert fault.value.found == f"no folder {tmp_path}/none that can be written to"
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
        stored_attribute("nosuchdb://host/db", "s", SETTINGS)
    with pytest.raises(StoreError, match="No module named"):
        stored_attribute("mssql+pymssql://host/db", "s", SETTINGS)
