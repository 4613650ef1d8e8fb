"""The databases that the store is tested on: SQLite files, and servers started from installed binaries."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

PASSWORD = "pass-of-the-tests"  # which no message may show
_READY_S = 60


def postgres_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, on PATH or where Debian puts them; None where there is no server."""
    on_path = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    found = [Path(on_path).resolve()] if on_path else versions[-1:]
    return found[0].parent if found else None


class PostgresServer:
    """A server in a temporary folder. Over its Unix socket everybody is let in, over TCP who knows the password."""

    def __init__(self, *, durable: bool = False) -> None:
        """`durable`: with fsync, as a real one; tests kill clients, not machines."""
        binaries = postgres_binaries()
        assert binaries is not None
        self.folder = Path(tempfile.mkdtemp(prefix="expo-pg-"))  # short, as a socket's path must be
        self._binaries, self._durable, self._numbers = binaries, durable, itertools.count()
        # the server refuses to run as root
        self._user = next((u for u in ("postgres", "nobody") if _is_user(u)), None) if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        for path in (self.folder, password):
            shutil.chown(path, self._user or os.getuid())
        words = ["-D", "data", "-U", "searcher", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync"]
        self._run("initdb", *words, "--pwfile=password", "--encoding=UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        """Start it, on its port and its data; returns once it answers."""
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}"]
        if not self._durable:
            options += ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options],
                cwd=self.folder, stdout=log, stderr=log, user=self._user,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_S
        while subprocess.run(
            [self._binaries / "pg_isready", "-h", self.folder, "-p", str(self.port)], capture_output=True, check=False
        ).returncode:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it: connections are cut off, what was committed is kept."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # its "fast shutdown"
        self._process.wait()

    def close(self) -> None:
        """Stop it and remove what it stored."""
        self.stop()
        shutil.rmtree(self.folder)

    def database(self) -> str:
        """A new, empty database; its URL, over the Unix socket."""
        name = f"test{next(self._numbers)}"
        self._run("createdb", "-h", str(self.folder), "-p", str(self.port), "-U", "searcher", name)
        return f"postgresql+psycopg://searcher@/{name}?host={self.folder}&port={self.port}"

    def over_tcp(self, url: str, *, password: str | None = PASSWORD, port: int | None = None) -> str:
        """The URL of the same database where a password is asked for."""
        tcp = sa.make_url(url).set(host="127.0.0.1", port=port or self.port, password=password, query={})
        return tcp.render_as_string(hide_password=False)

    def _run(self, program: str, *words: str) -> None:
        found = subprocess.run(
            [self._binaries / program, *words],
            cwd=self.folder,
            user=self._user,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr


def has_mariadb() -> bool:
    """Whether a server of MariaDB is installed."""
    return all(shutil.which(name) for name in ("mariadbd", "mariadb-install-db", "mariadb"))


class MariaDbServer:
    """A server of MariaDB in a temporary folder, which lets everybody in over its Unix socket."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="expo-my-"))
        self._user = "nobody" if os.getuid() == 0 else None
        self._numbers, self._socket = itertools.count(), self.folder / "s"
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        data = f"--datadir={self.folder / 'data'}"
        # a folder of its own for temporary tables too: two servers that are made at once would share their names
        words = [
            "--no-defaults",
            data,
            f"--tmpdir={self.folder}",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ]
        self._run("mariadb-install-db", *words)
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(shutil.which("mariadbd")), "--no-defaults", data, f"--socket={self._socket}",
                    f"--pid-file={self.folder / 'pid'}", f"--tmpdir={self.folder}",
                    "--skip-networking", "--skip-grant-tables",
                    "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M",
                ],
                cwd=self.folder, stdout=log, stderr=log, user=self._user,
            )  # fmt: skip
        deadline = time.monotonic() + _READY_S
        while not self._socket.exists():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def database(self) -> str:
        """A new, empty database; its URL."""
        name = f"test{next(self._numbers)}"
        self._run("mariadb", "--no-defaults", f"--socket={self._socket}", "-e", f"CREATE DATABASE {name}")
        return f"mysql+pymysql://root@localhost/{name}?unix_socket={self._socket}"

    def close(self) -> None:
        """Stop it and remove what it stored."""
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> None:
        found = subprocess.run(
            [program, *words], cwd=self.folder, user=self._user, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr + found.stdout


def _is_user(name: str) -> bool:
    import pwd

    return any(user.pw_name == name for user in pwd.getpwall())


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """Read beside the package, with the database's own driver."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(query).fetchall()
    if url.startswith("mysql"):
        import pymysql

        parsed = sa.make_url(url)
        there = pymysql.connect(user=parsed.username, database=parsed.database, unix_socket=parsed.query["unix_socket"])
        with closing(there) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "")) as server:
        return server.execute(query.encode()).fetchall()
