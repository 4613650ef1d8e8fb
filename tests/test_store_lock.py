"""One process writes: the lock of a study, and when it is taken over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from databases import rows
from fakes import make_prompts
from optuna import Study, Trial
from optuna.trial import TrialState
from sqlalchemy.orm import Session
from twins import write_prompts

from expo_search.config.presets import load_study
from expo_search.contracts import Completion
from expo_search.errors import StoreError
from expo_search.session.preflight import check
from expo_search.store.attributes import StudyAttributes
from expo_search.store.bench_store import Answered, BenchStore, Score
from expo_search.store.check_store import CheckStore
from expo_search.store.lock import refuse_if_held
from expo_search.store.study_store import Store
from expo_search.store.tables import LockRow

ANSWER = Completion(make_prompts(1)[0], "yes", 3, "stop")


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


def test_a_live_process_of_this_machine_keeps_its_study(url: str, other_process: subprocess.Popen[bytes]) -> None:
    store = Store(url, "s")
    lock(url, pid=other_process.pid, started=psutil.Process(other_process.pid).create_time())
    with pytest.raises(StoreError) as fault, store.owned():
        pass
    assert f"process {other_process.pid} on {socket.gethostname()} at work on it since then" in fault.value.found
    assert (fault.value.where, fault.value.expected) == (f"study s in {url}", "one at a time")
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


def test_the_lock_of_this_very_process_is_no_obstacle(url: str) -> None:
    store = Store(url, "s")
    lock(url, pid=os.getpid(), started=psutil.Process().create_time())
    with store.owned():
        pass


def test_a_number_that_another_process_got_since_is_no_lock(url: str, other_process: subprocess.Popen[bytes]) -> None:
    store = Store(url, "s")
    lock(url, pid=other_process.pid, started=psutil.Process(other_process.pid).create_time() - 3600)
    with store.owned():
        pass

    lock(url, pid=other_process.pid, started=-1.0)
    with store.owned():
        pass


def test_a_clock_that_is_set_makes_no_live_process_dead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(url, "s").close()
    search = start_search(url)
    try:
        go(search)
        assert [said(search), said(search)] == ["ready", "mine"]
        started, booted = psutil.Process(search.pid).create_time(), psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
        assert psutil.Process(search.pid).create_time() > started + 3599
        with pytest.raises(StoreError, match=f"process {search.pid} on"), Store(url, "s").owned():
            pass
    finally:
        search.communicate("\n")


def test_the_lock_of_another_machine_holds_while_it_shows_signs_of_life(url: str) -> None:
    store = Store(url, "s")
    now = time.time()
    lock(url, pid=1, started=0, host="elsewhere", alive_at=now - 60)
    with (
        pytest.raises(StoreError, match=r"process 1 on elsewhere .* last sign of life 6\d s ago") as fault,
        store.owned(),
    ):
        pass
    assert "if it is gone: for 180 s" in fault.value.do
    lock(url, pid=1, started=0, host="elsewhere", alive_at=now - 3600)
    with store.owned():
        assert rows(url, "SELECT host FROM expo_locks") == [(socket.gethostname(),)]


def test_stored_work_is_the_sign_of_life(url: str) -> None:
    store = Store(url, "s")
    with store.owned():
        [(before,)] = rows(url, "SELECT alive_at FROM expo_locks")
        store.add_completions(0, "search", {0: ANSWER})
        store.flush()
        [(between,)] = rows(url, "SELECT alive_at FROM expo_locks")
        store.add_rewards(0, "search", {0: 1.0})
        store.flush()
        [(after,)] = rows(url, "SELECT alive_at FROM expo_locks")
    assert before < between < after  # type: ignore[operator]


def test_a_process_that_computes_without_storing_anything_shows_signs_of_life(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expo_search.store.lock._BEAT_S", 0.05)
    store = Store(url, "s")
    with store.owned():
        [(before,)] = rows(url, "SELECT alive_at FROM expo_locks")
        deadline = time.monotonic() + 10
        while rows(url, "SELECT alive_at FROM expo_locks") == [(before,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def set_artifacts(study: Study) -> None:
    study.set_user_attr("expo_artifacts", "mine")


WRITES: dict[str, Callable[[Store, Trial], object]] = {
    "an attribute": lambda store, _: store.keep(StudyAttributes(artifacts="mine")),
    "attributes that are changed later": lambda store, _: store.later(set_artifacts),
    "a trial's attributes": lambda store, trial: store.keep_with_trial(trial, {"gain": 1.0}),
    "a trial's end": lambda store, trial: store.tell(trial, 1.0),
    "a trial's weights": lambda store, trial: store.pin_weights(trial.number, "search", 0.5, "abc"),
    "prompts": lambda store, _: store.put_prompts("search", make_prompts(1)),
    "a confirmation's end": lambda store, _: store.drop("confirm"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_search_whose_study_was_taken_over_writes_nothing_to_it(
    url: str, write: Callable[[Store, Trial], object]
) -> None:
    store = Store(url, "s")

    def go_on_after_a_long_sleep() -> None:
        with store.owned():
            trial = store.study.ask()
            store.flush()
            lock(url, pid=7, started=0, host="elsewhere", alive_at=time.time())
            write(store, trial)

    with pytest.raises(StoreError, match="taken over by process 7 on elsewhere"):
        go_on_after_a_long_sleep()
    [trial] = store.study.trials
    assert (trial.state, trial.user_attrs, store.study.user_attrs) == (TrialState.RUNNING, {}, {})
    assert rows(url, "SELECT host FROM expo_locks") == [("elsewhere",)]
    assert rows(url, "SELECT trial FROM expo_switches") == rows(url, "SELECT text FROM expo_prompts") == []


def test_a_search_whose_study_was_taken_over_stores_nothing_more_and_leaves_the_others_lock(url: str) -> None:
    store = Store(url, "s")
    store.add_completions(0, "search", {0: ANSWER})

    def go_on_after_a_long_sleep() -> None:
        with store.owned():
            lock(url, pid=7, started=0, host="elsewhere", alive_at=time.time())
            store.add_rewards(0, "search", {0: 1.0})

    with pytest.raises(StoreError) as fault:
        go_on_after_a_long_sleep()
    assert fault.value.found == "taken over by process 7 on elsewhere at then"
    assert "nothing that was stored is lost" in fault.value.do
    assert rows(url, "SELECT reward FROM expo_completions") == [(None,)]
    assert rows(url, "SELECT host FROM expo_locks") == [("elsewhere",)]


OF_THE_OTHER: dict[str, Callable[[Store], object]] = {
    "an answer": lambda store: store.add_completions(0, "search", {0: ANSWER}),
    "a judge's reward": lambda store: CheckStore(store).add("judge", 0, "search", {0: 1.0}),
    "a benchmark's answer": lambda store: BenchStore(store).add("t", 0.0, {("i0", 0): Answered("yes", 3, "stop")}),
    "a benchmark's score": lambda store: BenchStore(store).add("t", 0.0, {}, {("i0", 0): {"right": Score(1.0)}}),
}


@pytest.mark.parametrize("write", OF_THE_OTHER.values(), ids=OF_THE_OTHER)
def test_a_search_whose_study_was_taken_over_is_told_so_where_the_other_has_written_the_very_row(
    url: str, write: Callable[[Store], object]
) -> None:
    """It answers the same prompts in the same order, so this is how it usually is."""
    store = Store(url, "s")

    def go_on_after_a_long_sleep() -> None:
        with store.owned():
            write(Store(url, "s"))
            lock(url, pid=7, started=0, host="elsewhere", alive_at=time.time())
            write(store)

    with pytest.raises(StoreError, match="taken over by process 7 on elsewhere"):
        go_on_after_a_long_sleep()
    assert rows(url, "SELECT host FROM expo_locks") == [("elsewhere",)]


RACE = """
import sys, time
from expo_search.errors import StoreError
from expo_search.store.study_store import Store
store = Store(sys.argv[1], "s")
print("ready", flush=True)
input()
try:
    with store.owned():
        print("mine", flush=True)
        input()
except StoreError as fault:
    print("refused", flush=True)
"""


def start_search(url: str) -> subprocess.Popen[str]:
    """A process that takes the study once it is ready and gets a line, and gives it back after another."""
    return subprocess.Popen(
        [sys.executable, "-c", RACE, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize("stale", [False, True])
def test_of_searches_that_start_at_the_same_moment_one_gets_the_study(url: str, stale: bool) -> None:
    Store(url, "s").close()
    if stale:
        lock(url, pid=1, started=0, host="elsewhere", alive_at=0)
    searches = [start_search(url) for _ in range(3)]
    try:
        assert [said(s) for s in searches] == ["ready"] * 3
        for s in searches:
            go(s)
        assert sorted(said(s) for s in searches) == ["mine", "refused", "refused"]
    finally:
        for s in searches:
            s.communicate("\n")


def test_a_look_before_an_engine_is_loaded_says_what_taking_the_study_would(
    url: str, other_process: subprocess.Popen[bytes]
) -> None:
    store = Store(url, "s")
    started = psutil.Process(other_process.pid).create_time()
    lock(url, pid=other_process.pid, started=started)
    with pytest.raises(StoreError) as fault, store.owned():
        pass
    with pytest.raises(StoreError) as earlier:
        refuse_if_held(url, "s")
    assert str(earlier.value) == str(fault.value)
    refuse_if_held(url, "another")
    Store(url, "another").close()
    refuse_if_held(url, "another")
    lock(url, pid=other_process.pid, started=started - 3600)
    refuse_if_held(url, "s")
    assert rows(url, "SELECT pid FROM expo_locks") == [(other_process.pid,)], "a look takes nothing over"


def test_a_look_writes_nothing(tmp_path: Path) -> None:
    refuse_if_held(f"sqlite:///{tmp_path / 'none.db'}", "s")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "empty.db").touch()
    refuse_if_held(f"sqlite:///{tmp_path / 'empty.db'}", "s")
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_second_search_is_refused_while_its_input_is_checked_and_a_reader_is_not(
    tiny_home: Path, tmp_path: Path, url: str, other_process: subprocess.Popen[bytes]
) -> None:
    """Before the memory is planned, which comes before the engine."""
    parts = {
        "aligned": str(tiny_home / "aligned"),
        "sft": str(tiny_home / "sft"),
        "reward_model": str(tiny_home / "reward"),
    }
    overrides: dict[str, dict[str, Any]] = {
        "pair": parts,
        "prompts": {"source": str(write_prompts(tmp_path / "prompts.jsonl", 8)), "n": 4},
        "sampling": {"max_tokens": 8},
        "engine": {"max_model_len": 128, "kv_cache_gib": 1, "max_num_seqs": 16},
    }
    spec, said = load_study(overrides=overrides, name="s"), list[str]()
    Store(url, "s").close()
    lock(url, pid=other_process.pid, started=psutil.Process(other_process.pid).create_time())
    with pytest.raises(StoreError, match=f"process {other_process.pid} on"):
        check(spec, url, said.append)
    assert said == []
    assert check(spec, url, said.append, adds=False).search_prompts
    assert len(said) == 1, "the plan of the memory"


def test_a_study_that_is_held_can_be_held_again_within(url: str) -> None:
    store = Store(url, "s")
    with store.owned():
        before = rows(url, "SELECT * FROM expo_locks")
        with store.owned():
            assert rows(url, "SELECT * FROM expo_locks") == before
        assert rows(url, "SELECT * FROM expo_locks") == before, "the inner one gives nothing back"
        store.add_completions(0, "search", {0: ANSWER})
    assert rows(url, "SELECT * FROM expo_locks") == []
    with store.owned():
        assert rows(url, "SELECT pid FROM expo_locks") == [(os.getpid(),)]


def test_of_two_stores_of_one_process_one_gets_the_study(url: str) -> None:
    store, beside = Store(url, "s"), Store(url, "s")
    with store.owned():
        before = rows(url, "SELECT pid FROM expo_locks")
        with pytest.raises(StoreError, match="another session of this process at work on it") as fault, beside.owned():
            pass
        with pytest.raises(StoreError) as earlier:
            refuse_if_held(url, "s")
        assert str(earlier.value) == str(fault.value)
        assert beside.is_owned()
        assert rows(url, "SELECT pid FROM expo_locks") == before == [(os.getpid(),)]
        store.add_completions(0, "search", {0: ANSWER})
        with Store(url, "another").owned():
            pass
    with beside.owned():
        assert rows(url, "SELECT pid FROM expo_locks") == before
    assert not store.is_owned()


def test_the_lock_is_given_back_after_an_error_too(url: str) -> None:
    store = Store(url, "s")
    with pytest.raises(KeyError), store.owned():
        raise KeyError
    assert rows(url, "SELECT * FROM expo_locks") == []
