"""A database server in the place of a file: how it is reached, what its faults say, and patience while it is gone.

A connection that is lost ends no search: the whole transaction is made again on a new one, for up to `PATIENCE_S`. A
commit whose confirmation was lost may have been made or not, so whatever is made again must bear having been done. A
server that takes a request and does not answer is cut off after `HUNG_S`, and its connection is then a lost one.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from expo_search.errors import ConnectionLost, StoreError
from expo_search.text import is_secret, shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

T = TypeVar("T")

PATIENCE_S = 300.0  # a server that restarts, or another machine that takes its place
HUNG_S = 60.0  # of one transaction; the longest of ours, a thousand answers, takes a second
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_SAID_AFTER_S = 1.0  # a connection that is back sooner is no news
# SQLSTATEs (https://www.postgresql.org/docs/current/errcodes-appendix.html): the server goes down, comes up or is
# full, or has ended a transaction so that another one could go on
_PASSING = ("08", "57P", "53300", "40001", "40P01")
# a table, or its type, was made by another process at this moment
_ALREADY_THERE = ("42P07", "42710", "23505")
_LIBPQ = {"postgresql", "postgresql+psycopg", "postgresql+psycopg2"}  # drivers that hand options to libpq
_LIBPQ_OPTIONS = {
    "connect_timeout": 10,
    # a network that swallows everything is noticed within a minute, not within libpq's two hours
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 50_000,  # ms
    "application_name": "expo-search",
}
_TIMER = "expo_search timer"
# by SQLAlchemy's name of the kind
INSTALL = {
    "postgresql": 'pip install "expo-search[postgres]", and name the database postgresql+psycopg://user@host/name',
    "mysql": 'pip install "expo-search[mysql]", and name the database mysql+pymysql://user@host/name',
    "mariadb": 'pip install "expo-search[mysql]", and name the database mariadb+pymysql://user@host/name',
}
_PASSWORD = "; a password is taken from PGPASSWORD or ~/.pgpass as well"
_READ_ONLY = {
    "sqlite": "PRAGMA query_only=ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def server_args(url: sa.URL) -> dict[str, Any]:
    """What SQLAlchemy passes to a server's driver, but for what the URL itself says."""
    if url.drivername not in _LIBPQ:
        return {}
    return {key: value for key, value in _LIBPQ_OPTIONS.items() if key not in url.query}


def only_read(engine: sa.Engine) -> None:
    """Let the database refuse to write on connections to come."""
    statement = _READ_ONLY.get(engine.dialect.name)
    if statement is None:
        return

    @sa.event.listens_for(engine, "connect")
    def refuse(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()  # of PostgreSQL's setting, which a rollback would take back


def is_lost(context: sa.engine.ExceptionContext) -> bool:
    """Whether a fault means that there is no connection, or none for now: it broke, or none could be made."""
    if context.dialect.name == "sqlite":
        return False
    return (
        context.is_disconnect or context.connection is None or _state(context.original_exception).startswith(_PASSING)
    )


def was_made_meanwhile(fault: BaseException | None) -> bool:
    """Whether a table could not be made since another process has just made it.

    `fault` is SQLAlchemy's error or the driver's own, which is the cause where an event's handler raised another error.
    PostgreSQL says so in its user's language, with a code; SQLite, which has no code for it, always in English.
    """
    told = fault.orig if isinstance(fault, DBAPIError) else fault
    return _state(told).startswith(_ALREADY_THERE) or "already exists" in str(told)


def _state(fault: BaseException | None) -> str:
    """The SQLSTATE of a driver's error: `sqlstate` of psycopg, `pgcode` of psycopg2; empty where there is none."""
    return getattr(fault, "sqlstate", None) or getattr(fault, "pgcode", None) or ""


def cut_off_where_hung(engine: sa.Engine) -> None:
    """End each use of a connection that takes longer than `HUNG_S`: whoever waits for the server finds it broken.

    Keep-alives notice a network or a machine that is gone, not a process that is stopped or waits for its disk. A
    server's own limit for statements cannot either, and some poolers refuse connections that set one.
    """

    @sa.event.listens_for(engine, "checkout")
    def begin(connection: Any, record: Any, _: object) -> None:
        record.info[_TIMER] = timer = threading.Timer(HUNG_S, _break, (connection,))
        timer.daemon = True
        timer.start()

    @sa.event.listens_for(engine, "checkin")
    def end(_: object, record: Any) -> None:
        timer = record.info.pop(_TIMER, None)
        if timer is not None:
            timer.cancel()


def _break(connection: Any) -> None:
    """Shut a connection's socket, on which another thread waits. A driver that does not show it is left alone."""
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as its_socket:
        its_socket.shutdown(socket.SHUT_RDWR)


def server_fault(url: str, cause: str, *, lost: bool) -> StoreError:
    """A server's fault in our words."""
    where = f"--storage {shown(url)}"
    if not lost:
        return StoreError(
            where=where,
            found=cause,
            expected="a database that can be written to",
            do="check its server and what this user may do there, or give another --storage",
        )
    return ConnectionLost(
        where=where,
        found=cause,
        expected="a database server that lets this user in",
        do=f"check host, port, name and user{_PASSWORD if url.startswith('postgresql') else ''}; "
        "the same command goes on where it stopped",
    )


def without_secrets(cause: str, url: str) -> str:
    """A driver's words without the password of a URL, or what else in its query is secret, should they repeat it."""
    try:
        parsed = sa.make_url(url)
    except Exception:  # what is no URL is shown by `shown` alone
        return cause
    secrets = [str(parsed.password)] if parsed.password else []
    for key, values in parsed.normalized_query.items():
        secrets += values if is_secret(key) else ()
    written = {way(secret) for secret in secrets if secret for way in (str, quote, quote_plus)}
    for secret in sorted(written, key=len, reverse=True):
        cause = cause.replace(secret, "***")
    return cause


class Patience:
    """Does whole transactions, and again where their connection was lost, until `PATIENCE_S` are over.

    Several threads may use one; `say` gets a line when it has to wait, and one when the server is back.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say, self._lock = say, threading.Lock()
        self._lost_at: float | None = None  # and said

    def __call__(self, work: Callable[[], T]) -> T:
        """Do a transaction.

        Raises:
            ConnectionLost: the server was not back in time.
        """
        since, wait = None, _FIRST_WAIT_S
        while True:
            try:
                result = work()
            except ConnectionLost as fault:
                now = time.monotonic()
                since = since or now
                if now + wait > since + PATIENCE_S:
                    raise
                if now - since > _SAID_AFTER_S:
                    self._lost(fault, since)
            else:
                if since is not None:
                    self._back()
                return result
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _lost(self, fault: ConnectionLost, since: float) -> None:
        with self._lock:
            if self._lost_at is None:
                self._lost_at = since
                self._say(f"{fault.where}: {fault.found}; waiting up to {PATIENCE_S:.0f} s for the database")

    def _back(self) -> None:
        with self._lock:
            if self._lost_at is not None:
                self._say(f"the database is back after {time.monotonic() - self._lost_at:.0f} s")
            self._lost_at = None


def patient_storage(storage: BaseStorage, patiently: Patience) -> BaseStorage:
    """Optuna's storage whose every method, which is a transaction each, is done `patiently`."""
    from optuna.storages import BaseStorage as Base
    from optuna.trial import TrialState

    def create_new_trial(study_id: int, template_trial: FrozenTrial | None = None) -> int:
        state = TrialState.RUNNING if template_trial is None else template_trial.state
        tried = False

        def create() -> int:
            nonlocal tried
            # one process adds trials, one at a time: what is there in this state was added by the attempt before
            there = storage.get_all_trials(study_id, deepcopy=False, states=(state,)) if tried else []
            tried = True
            return there[-1]._trial_id if there else storage.create_new_trial(study_id, template_trial)

        return patiently(create)

    def set_trial_state_values(trial_id: int, state: TrialState, values: Any = None) -> bool:
        tried = False

        def change() -> bool:
            nonlocal tried
            if tried and storage.get_trial(trial_id).state == state:
                return True
            tried = True
            return storage.set_trial_state_values(trial_id, state, values)

        return patiently(change)

    def patient(method: Callable[..., T]) -> Any:
        return staticmethod(lambda *args, **options: patiently(lambda: method(*args, **options)))

    names = [name for name, member in vars(Base).items() if callable(member) and not name.startswith("_")]
    methods = {name: patient(getattr(storage, name)) for name in names}
    methods |= {f.__name__: staticmethod(f) for f in (create_new_trial, set_trial_state_values)}
    made: BaseStorage = type("PatientStorage", (Base,), methods)()
    return made
