"""The page of a study: whole, by itself, and with nothing in it that came from outside but text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from browser import browser_page
from fakes import make_evaluation, make_prompts
from test_dashboard_updates import HOSTILE, Run

import expo_search
from expo_search.cli.inspect import report_page, show
from expo_search.contracts import Completion
from expo_search.errors import StoreError, StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.results.html_report import _with_code, trial_table, write_report
from expo_search.results.legend import EQUAL_LENGTH
from expo_search.results.trials_csv import trials_csv
from expo_search.results.verdict import verdict
from expo_search.search.loop import evaluations
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store

PACKAGE = Path(expo_search.__file__).parent


class Page(HTMLParser):
    """Tags with their attributes, the text of each table's cells, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "td":
            self.cells[-1] += data
        if self._inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, _: str) -> None:
        self._inside = ""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four trials, of prompts among which one is hostile."""
    return Run(tmp_path_factory.mktemp("report")).go(4, before_tell=None, on_trial=None)


@pytest.fixture(scope="module")
def text(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    write_report(store, out)
    return out.read_text(encoding="utf-8")


def stored_study(url: str, name: str, trials: Sequence[Evaluation], answer: str, n_prompts: int = 2) -> Store:
    """A study of these trials, each with one answer to every prompt."""
    store, prompts = Store(url, name), make_prompts(n_prompts)
    store.put_prompts("search", prompts)
    for e in trials:
        store.add_completions(e.trial, "search", {i: Completion(p, answer, 1, "stop") for i, p in enumerate(prompts)})
        store.add_rewards(e.trial, "search", dict.fromkeys(range(n_prompts), e.reward.mean))
        store.study.add_trial(
            optuna.trial.create_trial(
                params={"alpha": e.alpha},
                distributions={"alpha": optuna.distributions.FloatDistribution(-10, 100)},
                value=e.gain.mean,
                user_attrs=e.attributes(),
            )
        )
    return store


def test_it_holds_verdict_curve_trials_and_answers(store: Store, text: str) -> None:
    page = Page(text)
    for e in evaluations(store.study):
        assert f"{e.reward.mean:.4f}" in page.cells
    assert "Question 0?" in page.cells
    assert [tag for tag, _ in page.tags if tag == "svg"] == ["svg"]
    assert "for the best of 3 alphas" in text


def test_the_trials_have_their_gain_at_equal_length_and_what_that_is() -> None:
    control, trial = make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.5, 0.4, 0.1)
    found = [control, replace(trial, length_controlled=replace(trial.gain, mean=0.125))]
    table = trial_table(found, verdict(found))
    at = table.heads.index("equal length")
    assert [row.cells[at] for row in table.rows] == ["", "+0.1250"]
    assert {len(row.cells) for row in table.rows} == {len(table.heads)}


def test_the_page_says_what_equal_length_is(text: str) -> None:
    assert "<th>equal length</th>" in text
    assert EQUAL_LENGTH in text


def test_the_best_trial_comes_first_and_is_the_one_that_is_open(store: Store, text: str) -> None:
    best = max(evaluations(store.study), key=lambda e: e.gain.mean)
    folded = re.findall(r"<details( open)?><summary>alpha = ([\d.]+)", text)
    assert len(folded) == 3
    assert folded[0] == (" open", f"{best.alpha:.4g}")
    assert [opened for opened, _ in folded[1:]] == ["", ""]


def test_text_of_prompts_and_answers_stays_text(text: str) -> None:
    page = Page(text)
    assert HOSTILE.replace("\x1b", "�") in page.cells
    assert len(page.scripts) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_whatever_comes_from_outside_is_cleaned_and_escaped(tmp_path: Path) -> None:
    """Name of the study, guardrail, setting, prompt and answer; only our own style, script and picture are markup."""
    hostile = f"'\"{HOSTILE}"
    trials = [make_evaluation(0, 0.0, 0.0, 0.0), replace(make_evaluation(1, 0.5, 0.1, 0.1), broken=(hostile,))]
    store = stored_study(f"sqlite:///{tmp_path / 's.db'}", hostile, trials, hostile)
    store.pin_settings(Settings.from_flat({"prompts.hash": hostile}), {"search": {}})
    write_report(store, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(Page(page).scripts) == 1
    assert not any(name.startswith("on") for _, attributes in Page(page).tags for name in attributes)
    assert "\x1b" not in page
    cleaned = hostile.replace("\x1b", "�")
    assert {cleaned, f"broke {cleaned}"} <= set(Page(page).cells)
    marked_safe = set(re.findall(r"(\w+) \| safe", (PACKAGE / "results" / "report.html.j2").read_text("utf-8")))
    assert marked_safe == {"style", "script", "curve", "tax"}


def test_one_trials_answers_are_in_memory_at_a_time(tmp_path: Path) -> None:
    trials = [make_evaluation(i, i / 10, 0.0, 0.1) for i in range(16)]
    n_prompts, n_characters = 40, 20_000
    store = stored_study(f"sqlite:///{tmp_path / 's.db'}", "s", trials, "a" * n_characters, n_prompts)
    write_report(store, tmp_path / "first.html")  # what libraries keep once they are loaded is not the page's
    tracemalloc.start()
    write_report(store, tmp_path / "second.html")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(trials) * n_prompts * n_characters, "less than all answers together"


def test_it_asks_no_network_for_anything(text: str) -> None:
    page = Page(text)
    for _, attributes in page.tags:
        assert not {"src", "srcset", "data"} & attributes.keys()
        assert all(not (value or "").startswith("http") for name, value in attributes.items() if "href" in name)
    assert "url(http" not in text
    assert "@import" not in text


def test_the_policy_lets_only_the_pages_own_script_run(text: str) -> None:
    page = Page(text)
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    (policy,) = [a["content"] or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_in_a_browser_a_click_sorts_and_nothing_from_outside_runs(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    with browser_page(width=390) as page:  # as wide as a phone
        page.on("console", lambda message: page.faults.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        gains = page.locator(".numbers td:nth-child(3)")
        orders = []
        for _ in range(2):
            page.locator(".numbers th", has_text="gain").click()
            orders.append([float(gain) for gain in gains.all_inner_texts()])
        assert orders == [sorted(orders[0], reverse=True), sorted(orders[0])]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.faults == []


def test_a_study_with_one_trial_has_a_page(tmp_path: Path) -> None:
    store = Run(tmp_path).go(1, before_tell=None, on_trial=None)
    write_report(store, tmp_path / "one.html")
    assert "nothing to compare" in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_a_file_is_replaced_only_when_asked_and_whole(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine")
    for force in (False, True):
        with pytest.raises(StudyError, match=r"no page of ours; expected a new file; give another name$"):
            write_report(store, out, force=force)
    assert out.read_text() == "mine"
    out.unlink()
    write_report(store, out)
    with pytest.raises(StudyError, match="exists; expected a new file; give another name, or --force"):
        write_report(store, out)
    write_report(store, out, force=True)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [f.name for f in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("place", ["missing/report.html", ".", "/", "x" * 256, "x" * 255, "x/" * 2048])
def test_a_place_that_cannot_be_written_is_one_clear_line(store: Store, tmp_path: Path, place: str) -> None:
    with pytest.raises(StudyError, match="--out"):
        write_report(store, tmp_path / place, force=True)
    assert not [*tmp_path.iterdir()]


def test_a_folder_without_a_name_is_no_place_for_a_page(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"--out \.: a folder; expected a new file"):
        write_report(store, Path(), force=True)
    assert not [*tmp_path.iterdir()]


def test_what_is_no_file_is_never_replaced(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").write_text("mine")
    for name in ("pipe", "link", "dangling"):
        with pytest.raises(StudyError, match="something that is no file; expected a new file; give another name"):
            write_report(store, tmp_path / name, force=True)
    with pytest.raises(StudyError, match="Not a directory"):
        write_report(store, tmp_path / "file" / "page.html")
    assert {f.name for f in tmp_path.iterdir()} == {"pipe", "link", "dangling", "file"}
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_csv_has_a_row_a_trial_in_full_precision() -> None:
    known = [make_evaluation(0, 0.0, 0.0, 0.0), make_evaluation(1, 0.1 + 0.2, 1 / 3, 0.1)]
    first, second = csv.DictReader(io.StringIO(trials_csv(known)))
    assert (first["trial"], first["alpha"]) == ("0", "0.0")
    assert float(second["alpha"]) == 0.1 + 0.2
    assert float(second["gain"]) == 1 / 3
    assert float(second["gain_low"]) == known[1].gain.low
    assert None not in second
    assert trials_csv([]) == "trial,alpha\r\n"


def test_show_prints_csv(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    show("s", store.url, as_csv=True)
    printed = capsys.readouterr().out
    assert [row["trial"] for row in csv.DictReader(io.StringIO(printed))] == ["0", "1", "2", "3"]


def test_the_command_writes_the_page_once(store: Store, tmp_path: Path) -> None:
    report_page("s", tmp_path / "page.html", storage=store.url)
    again = subprocess.run(
        [sys.executable, "-m", "expo_search", "report", "--out", "page.html", "--storage", store.url],
        cwd=tmp_path, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1), again.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["page.html"]


def test_bad_options_are_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--csv beside --json"):
        show("s", store.url, as_json=True, as_csv=True)
    with pytest.raises(StudyError, match="--out: nothing"):
        report_page("s", None, storage=store.url)
    with pytest.raises(StoreError, match="no study 'nobody'"):
        report_page("nobody", tmp_path / "x.html", storage=store.url)
    assert not (tmp_path / "x.html").exists()


def test_the_csv_has_no_blanks_in_its_header() -> None:
    header = trials_csv([replace(make_evaluation(1, 0.5, 0.1, 0.1), excess={"cut off": 0.1})]).splitlines()[0]
    assert " " not in header
    assert "excess_cut_off" in header


def test_a_sentences_backticks_are_code_and_its_markup_stays_text() -> None:
    assert str(_with_code("see `expo-search <x>` & <b>")) == "see <code>expo-search &lt;x&gt;</code> &amp; &lt;b&gt;"
