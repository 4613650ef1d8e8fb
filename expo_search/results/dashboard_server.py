"""a database of studies -> optuna-dashboard on a local port, with the trials' artifacts, beside a running search."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from expo_search.errors import StoreError, StudyError
from expo_search.results.artifacts import default_place, given_place, open_artifacts
from expo_search.store.attributes import stored_attributes
from expo_search.store.database import connect_args, store_faults, study_names
from expo_search.text import shown

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from optuna.storages import RDBStorage


class Dashboard(ThreadingMixIn, WSGIServer):
    """The server, bound to its port; `serve_forever` answers until Ctrl-C.

    Attributes:
        url: the page to open.
        lost: folders of trials' artifacts that are not there: of a database that was moved or renamed without its own.
    """

    daemon_threads = True  # a browser that keeps a connection open does not keep the command alive
    url: str
    lost: Sequence[str] = ()

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET  # of the socket to be made
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As WSGIServer's, but without asking a name server for this machine's name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """A line a request would hide everything else."""


def open_dashboard(storage: str, study: str | None, host: str, port: int, artifacts: str | None = None) -> Dashboard:
    """Bind a server for a database that exists; port 0 takes a free one.

    The database is opened as a search opens it: it waits for locks, and readers do not hold up the one writer.
    `artifacts`: where they are, in the place of what the studies keep.

    Raises:
        StudyError: optuna-dashboard is not installed; the address cannot be used.
        StoreError: not a database of this Optuna, or no such study in it.
    """
    if find_spec("optuna_dashboard") is None:
        raise StudyError(
            where="dashboard",
            found="optuna-dashboard is not installed",
            expected="the extra `dashboard`",
            do='pip install "expo-search[dashboard]"',
        )
    import optuna
    import optuna_dashboard

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with store_faults(storage):
        # it may be left open for days, over which a server restarts: each connection is tried before it is used
        options = {"connect_args": connect_args(storage), "pool_pre_ping": True}
        database = optuna.storages.RDBStorage(storage, engine_kwargs=options)
        try:
            page = "" if study is None else f"/studies/{database.get_study_id_from_name(study)}"
        except KeyError:
            raise StoreError(
                where=f"--storage {shown(storage)}",
                found=f"no study {study!r}",
                expected="a study of this database",
                do="see its studies with `expo-search show`",
            ) from None
    names = study_names(storage) if study is None else [study]
    places = [given_place(artifacts)] if artifacts is not None else _places(storage, names)
    app = optuna_dashboard.wsgi(database, artifact_store=open_artifacts(places))
    server = _bind(app, host, port)
    address = f"[{host}]" if ":" in host else host
    server.url = f"http://{address}:{server.server_port}/dashboard{page}"
    missing = [place for place in places if not place.startswith("s3://") and not Path(place).is_dir()]
    if missing and any(_has_artifacts(database, name) for name in names):
        server.lost = missing
    return server


def _has_artifacts(database: RDBStorage, study: str) -> bool:
    """Whether a trial of a study notes an artifact, wherever its file is."""
    from optuna.artifacts import get_all_artifact_meta

    trials = database.get_all_trials(database.get_study_id_from_name(study), deepcopy=False)
    return any(get_all_artifact_meta(trial, storage=database) for trial in trials)


def _places(storage: str, studies: Sequence[str]) -> list[str]:
    """Where the artifacts of some studies are, without one twice."""
    kept = [attributes.artifacts for name in studies if (attributes := stored_attributes(storage, name)) is not None]
    return list(dict.fromkeys(place or default_place(storage) for place in kept)) or [default_place(storage)]


def _bind(app: WSGIApplication, host: str, port: int) -> Dashboard:
    try:
        return make_server(host, port, app, server_class=Dashboard, handler_class=_Quiet)
    except (OSError, OverflowError, UnicodeError) as fault:  # a port above 65535; a host that can be no name
        taken = isinstance(fault, OSError) and fault.errno == errno.EADDRINUSE
        raise StudyError(
            where=f"--host {host} --port {port}",
            found="the port is taken" if taken else str(fault),
            expected="an address of this machine and a free port",
            do="give another --port, or 0 for any free one",
        ) from None
