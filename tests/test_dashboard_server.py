"""The dashboard as a browser sees it, beside a search that writes, and what stops it from starting."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browser_page
from test_dashboard_updates import Run

from expo_search.cli.inspect import dashboard as served_by_command
from expo_search.errors import StoreError, StudyError
from expo_search.results import dashboard_server as dashboard
from expo_search.results.artifacts import default_place
from expo_search.results.dashboard_server import open_dashboard
from expo_search.search.loop import evaluations
from expo_search.store.study_store import Store


@contextmanager
def served(url: str, study: str | None, host: str = "127.0.0.1") -> Iterator[str]:
    """A dashboard on a free port; yields the address that is printed."""
    with open_dashboard(url, study, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bytes(answer.read())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five trials of fakes with everything that a search writes for the dashboard; one prompt is hostile."""
    return Run(tmp_path_factory.mktemp("dashboard")).go(5)


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    with served(store.url, "s") as url:
        yield url


def test_the_address_is_the_studys_page_on_loopback(store: Store, address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    assert address.endswith(f"/dashboard/studies/{store.study._study_id}")
    with served(store.url, None) as everything:
        assert everything.endswith("/dashboard")
        assert b"<html" in get(everything)


def test_artifacts_of_a_trial_are_served(store: Store, address: str) -> None:
    root, study_id = address.split("/dashboard")[0], store.study._study_id
    detail = json.loads(get(f"{root}/api/studies/{study_id}"))
    trial = detail["trials"][1]
    (samples,) = [a for a in trial["artifacts"] if a["filename"] == "samples.jsonl"]
    table = get(f"{root}/artifacts/{study_id}/{trial['trial_id']}/{samples['artifact_id']}")
    assert len(table.splitlines()) == 6
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(f"{root}/artifacts/{study_id}/{trial['trial_id']}/00000000-0000-0000-0000-000000000000")


def test_a_search_goes_on_while_the_dashboard_reads_and_is_seen(tmp_path: Path, url: str) -> None:
    run = Run(tmp_path, url=url, place=str(tmp_path / "artifacts"))
    store = run.go(1)
    stop, faults, seen = threading.Event(), list[BaseException](), set[int]()
    with served(store.url, "s") as address:
        detail = f"{address.split('/dashboard')[0]}/api/studies/{store.study._study_id}"

        def look() -> None:
            try:
                while not stop.is_set():
                    seen.add(len(json.loads(get(detail))["trials"]))
            except BaseException as fault:
                faults.append(fault)

        readers = [threading.Thread(target=look) for _ in range(2)]
        for reader in readers:
            reader.start()
        store = run.go(5)
        stop.set()
        for reader in readers:
            reader.join()
    assert not faults
    assert len(evaluations(store.study)) == 5
    assert len(seen) > 1
    assert run.said == []


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")
def test_an_ipv6_address_is_served_and_printed_in_brackets(store: Store) -> None:
    with served(store.url, "s", "::1") as url:
        assert url.startswith("http://[::1]:")
        assert b"<html" in get(url)


def test_a_port_that_is_taken_is_one_clear_line(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StudyError, match=f"--port {port}: the port is taken; .* give another --port"):
            open_dashboard(store.url, "s", "127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 65536), ("2001:db8::1", 0), ("x" * 99, 0)])
def test_an_address_that_is_not_this_machines_is_refused(store: Store, host: str, port: int) -> None:
    with pytest.raises(StudyError, match=f"--host {host} --port {port}"):
        open_dashboard(store.url, "s", host, port)


def test_without_the_extra_it_says_what_to_install(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r'pip install "expo-search\[dashboard\]"'):
        open_dashboard(store.url, "s", "127.0.0.1", 0)


def test_an_unknown_study_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no study 'nobody'"):
        open_dashboard(store.url, "nobody", "127.0.0.1", 0)


def test_no_password_is_shown_in_its_errors(store: Store) -> None:
    with pytest.raises(StoreError, match=r"password=\*\*\*: no study 'nobody'"):
        open_dashboard(store.url + "?password=secret", "nobody", "127.0.0.1", 0)


def test_a_database_that_was_renamed_without_its_folder_is_served_and_the_folder_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(url: str, artifacts: str | None = None) -> list[str]:
        with open_dashboard(url, None, "127.0.0.1", 0, artifacts) as server:
            return list(server.lost)

    assert lost(store.url) == []
    renamed = tmp_path / "other.db"
    with sqlite3.connect(store.url.removeprefix("sqlite:///")) as old, sqlite3.connect(renamed) as new:
        old.backup(new)
    url = f"sqlite:///{renamed}"
    assert lost(url) == [f"{renamed}.artifacts"]
    assert lost(url, default_place(store.url)) == []
    monkeypatch.setattr(dashboard.Dashboard, "serve_forever", lambda _: None)
    served_by_command(storage=url, port=0)
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        f"no folder {renamed}.artifacts: the trials' answers and curves are not shown; "
        "move it there with its database, or give --artifacts"
    )
    assert second.startswith("http://")
    Store(f"sqlite:///{tmp_path / 'new.db'}", "s").close()
    assert lost(f"sqlite:///{tmp_path / 'new.db'}") == [], "there never were any"


def test_the_command_serves_until_ctrl_c(store: Store, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "expo_search", "dashboard", "--port", "0", "--storage", store.url],
        cwd=tmp_path, text=True, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    address = process.stderr.readline().split()[0]
    assert b"<html" in get(address)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with browser_page() as page:
        yield page


class TestBrowser:
    def test_it_sees_the_study_and_the_figure(self, page: Any, address: str) -> None:
        page.goto(address)
        figure = page.locator('[id="user-defined-plot:expo-gain"]')
        figure.locator("text=verdict: alpha").first.wait_for()
        assert figure.locator("text=trial, 95 % interval").count() >= 1
        assert figure.locator(".point").count() >= 4
        assert page.locator("text=/^s \\(id=/").count() >= 1

    def test_it_sees_the_note(self, page: Any, address: str) -> None:
        page.goto(f"{address}/note")
        page.locator("h2", has_text="alpha =").wait_for()
        assert page.locator("td", has_text="%").count() >= 5
        assert page.locator("code", has_text="expo-search show s").count() == 1

    def test_it_sees_the_curve_and_the_answers_as_a_table_that_sorts(self, page: Any, address: str) -> None:
        page.goto(f"{address}/trials?numbers=1")
        page.get_by_text("curve.png", exact=True).wait_for()
        assert page.locator("img[src*='/artifacts/']").evaluate("image => image.naturalWidth") == 1200
        page.get_by_label("show artifact table").click()
        heads = page.locator(".MuiModal-root th")
        heads.first.wait_for()
        shown = [text.split()[0] for text in heads.all_inner_texts()]
        assert shown[:5] == ["prompt", "answer", "answer_at_alpha_0", "reward", "difference"]
        assert page.get_by_text("<script>alert(1)</script>").count() == 1  # as text
        orders = []
        for _ in range(2):
            heads.nth(3).locator(".MuiTableSortLabel-root").click()
            rewards = page.locator(".MuiModal-root tbody tr td:nth-child(4)")
            orders.append([float(text) for text in rewards.all_inner_texts()])
        assert sorted(orders[0]) in orders
        assert sorted(orders[0], reverse=True) in orders
        assert len(orders[0]) == 6

    def test_nothing_of_a_hostile_prompt_ran(self, page: Any) -> None:
        assert page.faults == []
