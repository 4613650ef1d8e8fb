"""Driver, disks, database and Hub as `doctor` finds them, on a folder and a server of the test's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from expo_search.session import surroundings
from expo_search.session.fact import Fact

GIB = 1 << 30
VERSION = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:  gcc 12.2.0\n"
)


class Answering(BaseHTTPRequestHandler):
    """Answers the header of a page as its path says."""

    def do_HEAD(self) -> None:
        if self.path == "/slow":
            time.sleep(20)
        self.send_response({"/": 200, "/gone": 404, "/broken": 503}.get(self.path, 200))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    found.daemon_threads = True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


def hub_at(monkeypatch: pytest.MonkeyPatch, address: str) -> Fact:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    return surroundings.hub()


def test_a_hub_that_answers_whatever_it_says_was_reached(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_at(monkeypatch, server) == Fact("Hub", f"{server} answers")
    assert hub_at(monkeypatch, f"{server}/gone").status == "ok"


def test_one_that_is_broken_or_away_is_a_remark(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, away = hub_at(monkeypatch, f"{server}/broken"), hub_at(monkeypatch, "http://127.0.0.1:9")
    assert (broken.status, away.status) == ("remark", "remark")
    assert "503" in broken.text
    assert "refused" in away.text


@pytest.mark.parametrize("user", ["me:hunter2", "hunter2", "me:hun/ter2@", "me:hunter 2"])
def test_who_one_is_at_a_mirror_is_not_told_and_no_reason_to_take_it_for_away(
    user: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub_at(monkeypatch, server.replace("://", f"://{user}@")) == Fact("Hub", f"{server} answers")
    away = hub_at(monkeypatch, f"http://{user}@127.0.0.1:9/?token=hunter2")
    assert away.text.startswith("http://127.0.0.1:9/?token=*** does not answer (")


def test_an_address_that_is_none_is_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://mirror:port", "http://mirror/a b", "mirror", "me:hunter2@mirror"):
        found = hub_at(monkeypatch, address)
        assert found.status == "remark"
        assert "hunter" not in found.text
        assert "nothing within" not in found.text, "the thread that asks has ended in an error of its own"


def test_one_that_does_not_answer_is_waited_for_three_seconds(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    found = hub_at(monkeypatch, f"{server}/slow")
    assert time.monotonic() - started < 6
    assert found.status == "remark"


def test_offline_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(surroundings, "_hub_fault", lambda _: pytest.fail("asked"))
    assert surroundings.hub().status == "ok"


def test_the_drivers_version_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_NVIDIA_DRIVER", tmp_path / "version")
    assert surroundings.driver() is None
    (tmp_path / "version").write_text(VERSION)
    assert surroundings.driver() == "570.86.15"
    (tmp_path / "version").write_text("of another make")
    assert surroundings.driver() == ""


def test_little_disk_is_a_remark_and_a_cache_that_is_not_there_yet_is_measured_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {tmp_path: 4 * GIB}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "not" / "there"))
    usage = lambda folder: SimpleNamespace(free=free.get(folder, 100 * GIB))  # noqa: E731
    monkeypatch.setattr("shutil.disk_usage", usage)
    found = surroundings.disk()
    assert found.status == "remark"
    assert found.text.startswith("100.0 GiB free in the working folder, 4.0 GiB free in the Hub's cache: less than")
    free[tmp_path] = 5 * GIB
    assert surroundings.disk().status == "ok"


def test_a_database_is_read_and_its_studies_counted_and_one_that_is_none_is_missing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    assert surroundings.database(url).text == f"none yet at {url}"
    assert not (tmp_path / "s.db").exists()
    optuna.create_study(storage=url, study_name="a")
    assert surroundings.database(url) == Fact("database", f"{url}, 1 study")
    assert surroundings.database("sqlite://").status == "missing"
    assert "secret" not in surroundings.database("nonsense://user:secret@host/db").text
