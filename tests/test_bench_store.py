"""Benchmarks in the database, of each kind: kept apart, pinned, readable where they never were."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from expo_search.errors import SettingsChanged
from expo_search.store.bench_store import Answered, BenchStore, Score
from expo_search.store.study_store import Store

ANSWER = Answered("yes\0", 3, "stop")
RIGHT, WRONG = {"right": Score(1.0)}, {"right": Score(0.0), "part": Score(0.25, 4)}


def test_answers_and_scores_survive_reopening_by_task_alpha_and_item(url: str) -> None:
    bench = BenchStore(Store(url, "s"))
    bench.pin("a", {"data": "x"})
    bench.add("a", 0.1, {("i2", 0): ANSWER, ("i1", 1): Answered("", 0, "stop", -1.5, True)}, {("i2", 1): WRONG})
    bench.add("a", 0.1, {("i1", 0): ANSWER}, {("i1", 0): RIGHT})
    bench.add("a", 0.0, {("i1", 0): ANSWER})
    again = BenchStore(Store(url, "s", read_only=True))
    assert again.answers("a", 0.1) == {
        "i1": [Answered("yes�", 3, "stop"), Answered("", 0, "stop", -1.5, True)],
        "i2": [Answered("yes�", 3, "stop")],
    }
    assert list(again.scores("a", 0.1).items()) == [("i1", RIGHT), ("i2", WRONG)]
    assert again.scores("a", 0.0) == again.scores("b", 0.1) == {}
    assert again.answers("a", 0.2) == {}
    assert again.tasks() == {"a": [0.1]}
    assert again.settings("a") == {"data": "x"}
    assert BenchStore(Store(url, "another")).tasks() == {}


def test_other_settings_of_a_task_are_refused_by_name_until_it_is_forgotten(url: str) -> None:
    bench = BenchStore(Store(url, "s"))
    bench.check("a", {"data": "x"})
    bench.pin("a", {"data": "x", "shots": 5})
    bench.pin("a", {"shots": 5, "data": "x"})
    with pytest.raises(SettingsChanged, match=r"task a: .*data: 'x' there, 'y' now.*--again"):
        bench.check("a", {"data": "y", "shots": 5})
    bench.add("a", 0.0, {("i", 0): ANSWER}, {("i", 0): RIGHT})
    bench.add("b", 0.0, {("i", 0): ANSWER}, {("i", 0): RIGHT})
    bench.forget("a")
    bench.pin("a", {"data": "y"})
    assert bench.tasks() == {"b": [0.0]}


@pytest.mark.parametrize("kept", [{"scorer": "lines"}, {"scorer_file": "file"}])
def test_a_scorer_is_compared_by_what_the_version_kept_that_began_and_from_then_on_by_all(
    kept: dict[str, str], url: str
) -> None:
    bench, now = BenchStore(Store(url, "s")), {"data": "x", "scorer": "lines", "scorer_file": "file"}
    bench.pin("a", {"data": "x", **kept})
    (key,) = kept
    with pytest.raises(SettingsChanged, match=rf"\({key}: '{kept[key]}' there, 'other' now\)"):
        bench.check("a", now | {key: "other"})
    bench.check("a", now)
    bench.pin("a", now)
    for key in ("scorer", "scorer_file"):
        with pytest.raises(SettingsChanged, match=rf"\({key}: '{now[key]}' there, 'other' now\)"):
            bench.check("a", now | {key: "other"})


def test_a_task_that_was_begun_before_its_rules_were_kept_is_refused_in_one_line(url: str) -> None:
    bench = BenchStore(Store(url, "s"))
    bench.pin("lm_eval:arc", {"data": "x"})
    told = r"task lm_eval:arc: .*\(the rules of an earlier version, which asked and scored otherwise\); .* --again"
    for look in (bench.check, bench.pin):
        with pytest.raises(SettingsChanged, match=told) as fault:
            look("lm_eval:arc", {"data": "x", "definition": "abc"})
        assert "\n" not in str(fault.value)
    assert bench.settings("lm_eval:arc") == {"data": "x"}


def test_other_weights_at_an_alpha_are_refused(url: str) -> None:
    bench = BenchStore(Store(url, "s"))
    bench.pin_weights(0.1, "aa-bb")
    bench.pin_weights(0.1, "aa-bb")
    bench.pin_weights(0.2, "cc-dd")
    with pytest.raises(SettingsChanged, match=r"alpha 0.1: weights ee; expected aa-bb"):
        bench.pin_weights(0.1, "ee")


def test_a_database_older_than_benchmarks_is_read_as_one_without_any(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    Store(url, "s").close()
    with sqlite3.connect(tmp_path / "old.db") as connection:
        for table in ("tasks", "alphas", "answers", "scores"):
            connection.execute(f"DROP TABLE expo_bench_{table}")
    bench = BenchStore(Store(url, "s", read_only=True))
    assert (bench.tasks(), bench.scores("a", 0.0), bench.answers("a", 0.0)) == ({}, {}, {})
    bench.check("a", {"data": "x"})
    BenchStore(Store(url, "s")).add("a", 0.0, {("i", 0): ANSWER}, {("i", 0): RIGHT})
    assert bench.tasks() == {"a": [0.0]}
