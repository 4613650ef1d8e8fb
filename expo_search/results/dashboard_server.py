"""a database of studies -> optuna-dashboard on a local port, with the trials' artifacts, beside a running search."""

from __future__ import annotations

import errno
import socket
from importlib.util import find_spec
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from expo_search.errors import StoreError, StudyError
from expo_search.results.dashboard_updates import artifact_folder, artifact_store
from expo_search.store.database import connect_args, store_faults
from expo_search.text import shown

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication


class Dashboard(ThreadingMixIn, WSGIServer):
    """The server, bound to its port; `serve_forever` answers until Ctrl-C. `url` is the page to open."""

    daemon_threads = True  # a browser that keeps a connection open does not keep the command alive
    url: str

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


def open_dashboard(storage: str, study: str | None, host: str, port: int) -> Dashboard:
    """Bind a server for a database that exists; port 0 takes a free one.

    The database is opened as a search opens it: it waits for locks, and readers do not hold up the one writer.

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
    app = optuna_dashboard.wsgi(database, artifact_store=artifact_store(artifact_folder(storage)))
    server = _bind(app, host, port)
    address = f"[{host}]" if ":" in host else host
    server.url = f"http://{address}:{server.server_port}/dashboard{page}"
    return server


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
