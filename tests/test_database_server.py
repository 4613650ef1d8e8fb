"""A study on a PostgreSQL server: it is lost and comes back, it lets nobody in, it is looked at without a trace."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from databases import PASSWORD, PostgresServer, rows
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts, outcome
from proxy import Proxy

from expo_search.cli import main as cli
from expo_search.cli.console import known_study
from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import ConnectionLost, StoreError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.search.loop import evaluations, search
from expo_search.store import server
from expo_search.store.attributes import stored_attributes
from expo_search.store.database import check_readable, check_storage, make_engine, study_names
from expo_search.store.study_store import Store

PROMPTS = make_prompts(24)
SPEC = SearchSpec(sampler="random", seed=5, alpha_min=0.0, alpha_max=1.0, racing=False)
N_TRIALS = 3
TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.database()


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    between = Proxy(postgres.port)
    yield between
    between.close()


def run(store: Store, model: FakeModel | None = None) -> list[Evaluation]:
    objective = Objective(model or FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    return search(store, objective, SPEC, N_TRIALS)


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """The search that nothing disturbs, in a file."""
    return outcome(run(Store(f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}", "s")))


def test_a_search_ends_as_in_a_file(url: str, on_sqlite: list[tuple[object, ...]]) -> None:
    assert outcome(run(Store(url, "s"))) == on_sqlite
    assert outcome(evaluations(Store(url, "s", read_only=True).study)) == on_sqlite


def test_what_is_shown_of_it_is_what_is_shown_of_a_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`show`, its JSON and CSV, the report: everything but the name of the database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    shown: dict[int, list[str]] = {}
    for storage in (f"sqlite:///{tmp_path / 'file.db'}", url):
        store = Store(storage, "s")
        store.put_prompts("search", PROMPTS)
        run(store)
        commands = (["show"], ["show", "--json"], ["show", "--csv"], ["report", "--out", "s.html"])
        for number, (name, *options) in enumerate(commands):
            monkeypatch.setattr(sys, "argv", ["expo-search", name, "s", *options, "--storage", storage])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code
            out = capfd.readouterr().out if name == "show" else Path("s.html").read_text()
            out = re.sub(r"\b[mp][0-9a-f]{10}\b", "ID", out)  # of parts of a picture, drawn at random
            text = html.unescape(out).replace(shlex.quote(storage), "URL").split()
            assert shown.setdefault(number, text) == text
        Path("s.html").unlink()
    assert len(shown) == 4


@dataclass
class Disturbed(FakeModel):
    """Something happens between its answers, each time this many of them were given."""

    every: int = 5
    disturb: Callable[[], None] = lambda: None

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        for item in super().generate(prompts, seed):
            yield item
            if len(self.asked) % self.every == 0 and not isinstance(item, int):
                self.disturb()


def end_of_silence(proxy: Proxy) -> None:
    """What was swallowed never comes: who waits for it has to be cut off by then."""
    proxy.is_silent = False


class TestLost:
    """Connections that break, and a server that goes away and comes back."""

    def test_connections_that_break_again_and_again_change_nothing(
        self, postgres: PostgresServer, proxy: Proxy, url: str, on_sqlite: list[tuple[object, ...]]
    ) -> None:
        store = Store(postgres.over_tcp(url, port=proxy.port), "s")
        model = Disturbed(disturb=proxy.cut)
        assert outcome(run(store, model)) == on_sqlite
        assert len(model.asked) == len(set(model.asked)) == N_TRIALS * len(PROMPTS)
        assert rows(url, "SELECT count(*) FROM expo_locks") == [(0,)], "it was kept, and given back"

    @pytest.mark.parametrize(
        "words",
        [
            pytest.param(b"INSERT INTO trials ", id="ask"),
            pytest.param(b"INSERT INTO expo_completions", id="an answer"),
            pytest.param(b"INSERT INTO trial_user_attributes", id="a trial's attributes"),
            pytest.param(b"UPDATE trials ", id="tell"),
        ],
    )
    def test_a_commit_whose_confirmation_is_lost_is_not_made_twice(
        self, postgres: PostgresServer, proxy: Proxy, url: str, on_sqlite: list[tuple[object, ...]], words: bytes
    ) -> None:
        store = Store(postgres.over_tcp(url, port=proxy.port), "s")
        proxy.lost_words, proxy.lost_commits = words, 3
        assert outcome(run(store)) == on_sqlite
        assert proxy.lost_commits == 0, "three were lost"
        assert rows(url, "SELECT count(*) FROM expo_completions") == [(N_TRIALS * len(PROMPTS),)]
        assert rows(url, "SELECT state::text, count(*) FROM trials GROUP BY 1") == [("COMPLETE", N_TRIALS)]

    @pytest.mark.usefixtures("postgres")  # which skips it where no server is installed
    def test_a_server_that_restarts_is_waited_for_and_the_lock_is_kept(
        self, on_sqlite: list[tuple[object, ...]]
    ) -> None:
        own = PostgresServer(durable=True)
        try:
            store = Store(own.database(), "s")
            restarts: list[threading.Timer] = []

            def restart() -> None:
                own.stop()
                restarts.append(threading.Timer(1.0, own.start))
                restarts[-1].start()

            began = time.monotonic()
            assert outcome(run(store, Disturbed(every=40, disturb=restart))) == on_sqlite
            assert len(restarts) == 1
            assert time.monotonic() - began > 1.0
        finally:
            own.close()

    def test_a_server_that_does_not_come_back_stops_the_search_in_one_line_and_loses_nothing(
        self, postgres: PostgresServer, url: str, on_sqlite: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "PATIENCE_S", 6.0)  # of which waits that double take up 3.1
        between, gone_at = Proxy(postgres.port), list[float]()
        store = Store(postgres.over_tcp(url, port=between.port), "s")

        def go_away() -> None:
            between.close()
            gone_at.append(time.monotonic())

        with pytest.raises(ConnectionLost) as fault:
            run(store, Disturbed(every=40, disturb=go_away))
        assert 3.1 <= time.monotonic() - gone_at[0] < server.PATIENCE_S, "it is waited for once, not for the lock too"
        assert "the same command goes on where it stopped" in fault.value.do
        assert "\n" not in str(fault.value)
        stored = set(rows(url, "SELECT trial, text FROM expo_completions"))
        model = FakeModel()
        assert outcome(run(Store(url, "s"), model)) == on_sqlite
        assert stored <= set(rows(url, "SELECT trial, text FROM expo_completions"))
        assert len(model.asked) == N_TRIALS * len(PROMPTS) - len(stored)

    def test_who_is_interrupted_while_the_server_is_away_does_not_wait_for_it_to_take_the_lock_back(
        self, postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "PATIENCE_S", 0.5)  # after which a lost connection would be the fault that is told
        between = Proxy(postgres.port)
        store = Store(postgres.over_tcp(url, port=between.port), "s")

        def interrupted() -> None:
            with store.owned():
                between.close()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()

    def test_a_server_that_is_waited_for_is_said_once_and_that_it_is_back_too(
        self, postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "_SAID_AFTER_S", 0.3)
        said, proxies = list[str](), [Proxy(postgres.port)]
        store = Store(postgres.over_tcp(url, port=proxies[0].port), "s", say=said.append)

        def go_away() -> None:
            proxies[0].close()
            threading.Timer(1.5, lambda: proxies.append(Proxy(postgres.port, port=proxies[0].port))).start()

        run(store, Disturbed(every=40, disturb=go_away))
        assert len(said) == 2
        assert said[0].startswith(f"--storage postgresql+psycopg://searcher:***@127.0.0.1:{proxies[0].port}/")
        assert said[0].endswith("; waiting up to 300 s for the database")
        assert PASSWORD not in said[0]
        assert re.fullmatch(r"the database is back after \d s", said[1])
        proxies[1].close()

    def test_a_server_that_takes_requests_and_answers_none_is_cut_off_and_waited_for(
        self, postgres: PostgresServer, proxy: Proxy, url: str, on_sqlite: list[tuple[object, ...]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(server, "HUNG_S", 0.3)
        store = Store(postgres.over_tcp(url, port=proxy.port) + "?connect_timeout=2", "s")

        def hang() -> None:
            proxy.is_silent = True
            threading.Timer(1.0, end_of_silence, (proxy,)).start()

        began = time.monotonic()
        assert outcome(run(store, Disturbed(every=40, disturb=hang))) == on_sqlite
        assert time.monotonic() - began > 1.0

    def test_a_look_at_a_server_that_answers_nothing_ends_in_one_line(
        self, postgres: PostgresServer, proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server, "HUNG_S", 0.3)
        engine = make_engine(postgres.over_tcp(url, port=proxy.port))
        with engine.connect() as connection:
            proxy.is_silent = True
            with pytest.raises(ConnectionLost, match=r"--storage .*expected a database server"):
                connection.exec_driver_sql("SELECT 1")
        engine.dispose()

    def test_a_server_that_goes_down_or_has_no_room_is_waited_for_whatever_language_it_speaks(self) -> None:
        def context(state: str) -> sa.engine.ExceptionContext:
            fault = Exception("zu viele Verbindungen")
            fault.sqlstate = state  # type: ignore[attr-defined]
            found = {"dialect": sa.make_url("postgresql://").get_dialect()(), "original_exception": fault}
            return SimpleNamespace(**found, is_disconnect=False, connection=object())  # type: ignore[return-value]

        assert all(server.is_lost(context(state)) for state in ("53300", "57P01", "57P03", "08006", "40001", "40P01"))
        assert not any(server.is_lost(context(state)) for state in ("42501", "23505", "25006", "53100"))

    def test_who_is_cut_off_for_so_long_that_another_takes_the_study_over_stores_nothing_more(
        self, postgres: PostgresServer, proxy: Proxy, url: str
    ) -> None:
        store = Store(postgres.over_tcp(url, port=proxy.port), "s")

        def be_taken_over() -> None:
            proxy.cut()
            change = "UPDATE expo_locks SET host = 'elsewhere', pid = 7"
            with make_engine(url).begin() as connection:
                connection.execute(sa.text(change))

        with pytest.raises(StoreError, match="taken over by process 7 on elsewhere"):
            run(store, Disturbed(every=5, disturb=be_taken_over))
        assert rows(url, "SELECT host FROM expo_locks") == [("elsewhere",)]


CREATE = """
import sys
from expo_search.store.study_store import Store
print("ready", flush=True)
input()
Store(sys.argv[1], "s")
"""


def test_searches_that_make_a_databases_tables_at_the_same_moment_all_get_them(url: str) -> None:
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    for maker in makers:
        _, err = maker.communicate()
        assert maker.returncode == 0, err
    assert study_names(url) == ["s"]


@pytest.mark.parametrize(
    ("state", "words", "expected"),
    [
        ("42P07", "Relation »expo_locks« existiert bereits", True),
        ("23505", "doppelter Schlüsselwert verletzt Unique-Constraint", True),
        ("42501", "keine Berechtigung für Schema public", False),
        (None, "table expo_locks already exists", True),
        (None, "no such table", False),
    ],
)
def test_a_table_that_another_one_has_just_made_is_known_by_its_code(
    state: str | None, words: str, expected: bool
) -> None:
    fault = Exception(words)
    fault.sqlstate = state  # type: ignore[attr-defined]
    assert server.was_made_meanwhile(sa.exc.ProgrammingError("CREATE TABLE", {}, fault)) is expected
    assert not server.was_made_meanwhile(None)


@pytest.mark.parametrize("where", ["server", "file"])
def test_a_table_that_is_there_when_it_is_made_is_known_in_a_fault_of_ours(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage = request.getfixturevalue("url") if where == "server" else f"sqlite:///{tmp_path / 'file.db'}"
    engine = make_engine(storage)
    table = sa.Table("expo_locks", sa.MetaData(), sa.Column("id", sa.Integer))
    table.create(engine)
    with pytest.raises(StoreError) as told:
        table.create(engine, checkfirst=False)
    assert server.was_made_meanwhile(told.value.__cause__)
    engine.dispose()


class TestCheck:
    """What is found out before an engine starts."""

    def test_checking_writes_nothing(self, url: str) -> None:
        check_storage(url)
        check_readable(url)
        assert stored_attributes(url, "s") is None
        assert study_names(url) == []
        assert rows(url, TABLES) == [(0,)]
        Store(url, "s").close()
        check_storage(url)
        assert rows(url, "SELECT count(*) FROM pg_tables WHERE tablename = 'expo_probe'") == [(0,)]

    def test_a_look_at_a_study_cannot_write(self, url: str) -> None:
        store = Store(url, "s")
        store.put_prompts("search", PROMPTS)
        store.close()
        assert known_study(None, url) == "s"
        look = Store(url, "s", read_only=True)
        assert look.prompts("search") == PROMPTS
        with pytest.raises(StoreError, match="read-only transaction"):
            look.put_prompts("confirm", PROMPTS)
        with pytest.raises(StoreError, match="read-only transaction"):
            look.study.set_user_attr("x", 1)
        look.close()

    def test_a_user_who_may_not_write_is_refused_and_one_who_may_not_make_tables_is_not(self, url: str) -> None:
        statements = {
            "reader": "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}",
            "writer": "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {};"
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}",
        }
        name = sa.make_url(url).database

        def of(role: str) -> str:
            return url.replace("searcher@", f"{name}_{role}@")

        with make_engine(url).begin() as connection:
            for role in statements:
                connection.exec_driver_sql(f"CREATE ROLE {name}_{role} LOGIN")
        for role in statements:  # no tables yet, and no right to make any
            with pytest.raises(StoreError, match="permission denied for schema public"):
                check_storage(of(role))
        Store(url, "s").close()
        with make_engine(url).begin() as connection:
            for role, statement in statements.items():
                connection.exec_driver_sql(statement.format(*[f"{name}_{role}"] * 2))
        with pytest.raises(StoreError, match="permission denied for table expo_locks"):
            check_storage(of("reader"))
        assert study_names(of("reader")) == ["s"]
        check_storage(of("writer"))
        assert len(run(Store(of("writer"), "s"))) == N_TRIALS

    def test_a_missing_driver_is_said_with_the_line_that_installs_it(self) -> None:
        with pytest.raises(StoreError) as fault:
            check_storage("postgresql+pg8000://me:hunter2@host/db")
        assert fault.value.where == "--storage postgresql+pg8000://me:***@host/db"
        assert fault.value.found == "no driver for it (No module named 'pg8000')"
        assert 'pip install "expo-search[postgres]"' in fault.value.do


@pytest.mark.parametrize(
    "written",
    ["postgresql+psycopg://me:{}@host/db", "postgresql+psycopg://host/db?user=me&password={}&sslpassword={}"],
)
def test_no_driver_that_repeats_a_password_gives_it_away(written: str) -> None:
    url = written.replace("{}", "p%40ss%2Fword")
    for repeated in ("p@ss/word", "p%40ss/word", "p%40ss%2Fword"):
        assert server.without_secrets(f"invalid: {repeated}!", url) == "invalid: ***!"
    assert server.without_secrets("me at host", url) == "me at host"


class TestPasswords:
    """The server asks for one (SCRAM) over TCP."""

    def test_it_is_taken_from_the_environment_and_from_pgpass(
        self, postgres: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bare = postgres.over_tcp(url, password=None)
        assert PASSWORD not in bare
        with pytest.raises(ConnectionLost, match="no password supplied"):
            check_storage(bare)
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        check_storage(bare)
        monkeypatch.delenv("PGPASSWORD")
        file = tmp_path / "pgpass"
        file.write_text(f"127.0.0.1:{postgres.port}:*:searcher:{PASSWORD}\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
        assert len(run(Store(bare, "s"))) == N_TRIALS
