"""One process writes a study: a row with its owner and a sign of life. The lock of a dead process is taken over.

A lock of this machine is judged by its process (number and start, so that a number given to another process since is
no obstacle), a lock of another machine by the age of its last sign of life. Taking over compares and swaps in one
statement, and an owner that finds its row changed stops before it writes anything more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from expo_search.errors import StoreError
from expo_search.store.address import sqlite_path
from expo_search.store.database import make_engine, store_faults, study_id_of
from expo_search.store.server import Patience
from expo_search.store.tables import LockRow
from expo_search.text import shown

STALE_S = 180  # a lock of another machine that showed no sign of life for so long
_BEAT_S = 20
_BEATEN = "expo_search lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_Place = tuple[str, int]  # a database and the number of a study in it
# two `Store`s of one process would be one owner to the database, and the first to end would give it back
_held_here: dict[_Place, StudyLock] = {}


@dataclass(frozen=True)
class _Owner:
    """A process, told apart by `started` from an earlier or later one with its number (see `_started`)."""

    host: str
    pid: int
    started: float

    @classmethod
    def this_process(cls) -> _Owner:
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()))


class StudyLock:
    """The lock of one study in one database."""

    def __init__(self, engine: sa.Engine, url: str, study_id: int, name: str, patiently: Patience) -> None:
        self._engine, self._study_id, self._patiently = engine, study_id, patiently
        self._where, self._place = _where(url, name), _place(url, study_id)
        self._mine: _Owner | None = None
        self._taken_over: StoreError | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the study for this process; within it, holding it again changes nothing.

        Raises:
            StoreError: another live process holds it, or another `Store` of this one.
        """
        if self._mine is not None:
            yield
            return
        if _held_here.setdefault(self._place, self) is not self:
            raise _refusal_here(self._where)
        try:
            with self._held_in_database():
                yield
        finally:
            del _held_here[self._place]

    @contextmanager
    def _held_in_database(self) -> Iterator[None]:
        self._take(_Owner.this_process())
        stop = threading.Event()
        heart = threading.Thread(target=self._beat_until, args=(stop,), name="expo-search lock", daemon=True)
        heart.start()
        is_broken_off = True
        try:
            yield
            is_broken_off = False
        finally:
            stop.set()
            heart.join(timeout=1)  # it may be waiting for the database
            mine, self._mine = self._mine, None
            taken_over, self._taken_over = self._taken_over, None
            if mine is not None and taken_over is None:
                if is_broken_off:
                    # whatever ends this has been waited for, or wants no waiting, and is what is told: a lock that is
                    # left is taken over, here at once, from another machine after `STALE_S`
                    with contextlib.suppress(StoreError):
                        self._give_back(mine)
                else:
                    self._patiently(lambda: self._give_back(mine))

    def is_held(self) -> bool:
        """Whether a live process, this one or another, holds the study. Writes nothing."""
        if self._place in _held_here:
            return True
        with Session(self._engine) as session:
            if not sa.inspect(session.connection()).has_table(LockRow.__tablename__):
                return False
            row = session.get(LockRow, self._study_id)
            return row is not None and _holds(row)

    def beat(self, session: Session) -> None:
        """Show a sign of life in the transaction of what is being stored. Does nothing where the lock is not held.

        Raises:
            StoreError: another process has taken the study over; the transaction must not be committed.
        """
        if self._taken_over is not None:  # also where the transaction that found it out was lost, and is made again
            raise self._taken_over
        if self._mine is None or session.info.get(_BEATEN):  # once a transaction is enough: it holds the row
            return
        session.info[_BEATEN] = True
        update = sa.update(LockRow).where(*self._is(self._mine)).values(alive_at=_now())
        if session.execute(update).rowcount == 0:  # type: ignore[attr-defined]
            row = session.get(LockRow, self._study_id)
            self._taken_over = StoreError(
                where=self._where,
                found=f"taken over by process {row.pid} on {row.host} at {row.since}" if row else "no lock any more",
                expected="this process to be the only one",
                do="let the other one go on; nothing that was stored is lost",
            )
            raise self._taken_over

    def _take(self, me: _Owner) -> None:
        now = datetime.now(UTC)
        values = asdict(me) | {"since": now.isoformat(timespec="seconds"), "alive_at": now.timestamp()}
        with Session(self._engine) as session, session.begin():
            row = session.get(LockRow, self._study_id)
            if row is not None and _holds(row):
                raise _refusal(row, self._where)
            held = None if row is None else (_Owner(row.host, row.pid, row.started), row.alive_at)
        change: sa.Insert | sa.Update = sa.insert(LockRow).values(study_id=self._study_id, **values)
        if held is not None:
            stale, alive_at = held
            swap = sa.update(LockRow).where(*self._is(stale), LockRow.alive_at == alive_at)
            change = swap.values(values)
        with contextlib.suppress(IntegrityError), Session(self._engine) as session, session.begin():
            session.execute(change)  # a row that is there now: another process was quicker
        with Session(self._engine) as session:
            row = session.get_one(LockRow, self._study_id)
            if _Owner(row.host, row.pid, row.started) != me:
                raise _refusal(row, self._where)
        self._mine = me

    def _give_back(self, mine: _Owner) -> None:
        with Session(self._engine) as session, session.begin():
            session.execute(sa.delete(LockRow).where(*self._is(mine)))

    def _is(self, owner: _Owner) -> list[sa.ColumnElement[bool]]:
        return [LockRow.study_id == self._study_id, *(getattr(LockRow, k) == v for k, v in asdict(owner).items())]

    def _beat_until(self, stop: threading.Event) -> None:
        """Signs of life while nothing is stored: a long first answer is no reason to lose a study."""
        while not stop.wait(_BEAT_S):
            # a fault here is no news: whoever stores the next answer meets the same one, and says it
            with contextlib.suppress(StoreError, sa.exc.SQLAlchemyError):
                mine = self._mine
                if mine is not None:
                    with Session(self._engine) as session, session.begin():
                        session.execute(sa.update(LockRow).where(*self._is(mine)).values(alive_at=_now()))


def refuse_if_held(url: str, name: str) -> None:
    """Look, without writing, whether a study is free: what is about to load an engine wants to know it before.

    Raises:
        StoreError: a live process, this one or another, holds it.
    """
    study_id = study_id_of(url, name)
    if study_id is None:
        return
    if _place(url, study_id) in _held_here:
        raise _refusal_here(_where(url, name))
    engine = make_engine(url)
    try:
        with store_faults(url), Session(engine) as session:
            has_locks = sa.inspect(session.connection()).has_table(LockRow.__tablename__)
            row = session.get(LockRow, study_id) if has_locks else None
            if row is not None and _holds(row):
                raise _refusal(row, _where(url, name))
    finally:
        engine.dispose()


def _where(url: str, name: str) -> str:
    return f"study {name} in {shown(url)}"


def _place(url: str, study_id: int) -> _Place:
    path = sqlite_path(url)
    return url if path is None else str(path.resolve()), study_id


def _refusal_here(where: str) -> StoreError:
    return StoreError(
        where=where,
        found="another session of this process at work on it",
        expected="one at a time",
        do="wait for it, or search under another --study-name",
    )


def _refusal(row: LockRow, where: str) -> StoreError:
    elsewhere = row.host != socket.gethostname()
    age = f", last sign of life {max(0, round(_now() - row.alive_at))} s ago" if elsewhere else ""
    gone = f" (if it is gone: for {STALE_S} s)" if elsewhere else ""
    return StoreError(
        where=where,
        found=f"process {row.pid} on {row.host} at work on it since {row.since}{age}",  # a search, or any other command
        expected="one at a time",
        do=f"wait for it{gone}, or search under another --study-name",
    )


def _holds(row: LockRow) -> bool:
    """Whether the process that wrote a lock is still there."""
    import psutil

    if row.host != socket.gethostname():
        return _now() - row.alive_at < STALE_S
    if row.pid == os.getpid():
        return False
    try:
        process = psutil.Process(row.pid)
        started = _started(row.pid) if row.started < 0 else process.create_time()
        # killed, but not yet waited for by its parent (in a container, often for ever): gone as well
        return abs(started - row.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _started(pid: int) -> float:
    """What tells a process from others that had its number, whatever is done to the clock.

    Below 0, and made of the boot and the ticks from it to the process's start. Where the system does not tell these,
    seconds since the epoch, as in locks of earlier versions.
    """
    import psutil

    try:
        boot = _BOOT.read_text()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # man 5 proc: (22) starttime
    except OSError:
        return psutil.Process(pid).create_time()
    return -float(int(sha256(f"{boot} {ticks}".encode()).hexdigest()[:12], 16))  # 48 bits, which a double holds


def _now() -> float:
    return datetime.now(UTC).timestamp()
