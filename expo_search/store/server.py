"""A database server in the place of a file: how it is reached, what its faults say, and patience while it is gone.

A connection that is lost ends no search: the whole transaction is made again on a new one, for up to `PATIENCE_S`. A
commit whose confirmation was lost may have been made or not, so whatever is made again must bear having been done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from expo_search.errors import ConnectionLost, StoreError
from expo_search.text import shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

T = TypeVar("T")

PATIENCE_S = 300.0  # a server that restarts, or another machine that takes its place
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
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
INSTALL = 'pip install "expo-search[postgres]", and name the database postgresql+psycopg://user@host/name'
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
    """Whether a fault means that there is no connection: it broke, or none could be made."""
    return context.dialect.name != "sqlite" and (context.is_disconnect or context.connection is None)


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
        do="check host, port, name and user; a password is taken from PGPASSWORD or ~/.pgpass as well; "
        "the same command goes on where it stopped",
    )


def without_secrets(cause: str, url: str) -> str:
    """A driver's words without the password of a URL, should they repeat it."""
    try:
        password = sa.make_url(url).password
    except Exception:  # what is no URL is shown by `shown` alone
        return cause
    return cause.replace(str(password), "***") if password else cause


def patiently(work: Callable[[], T]) -> T:
    """Do a whole transaction, and again where its connection was lost, until `PATIENCE_S` are over.

    Raises:
        ConnectionLost: it was not back by then.
    """
    deadline, wait = None, _FIRST_WAIT_S
    while True:
        try:
            return work()
        except ConnectionLost:
            deadline = deadline or time.monotonic() + PATIENCE_S
            if time.monotonic() + wait > deadline:
                raise
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT_S)


def patient_storage(storage: BaseStorage) -> BaseStorage:
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
