"""The time left of a benchmark: of the answers to come, as far as is known how many they are."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from expo_search.session import bench_progress
from expo_search.session.bench_progress import BenchProgress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that its clock shows."""
    shown = [100.0]
    monkeypatch.setattr(bench_progress, "time", SimpleNamespace(monotonic=lambda: shown[0]))
    return shown


def test_the_time_left_counts_requests_where_they_are_known_and_nothing_that_is_done(now: list[float]) -> None:
    """A task of four choices is asked four times an item; of the first alpha all is done, and it never begins."""
    out = io.StringIO()
    with BenchProgress(Console(file=out, width=200)) as progress:
        progress.planned({("choices", 0.1): 10, ("choices", 0.2): 10, ("basics", 0.2): 6})
        progress.started("choices", "Choices", 0.1, 40, 0)
        for _ in range(40):
            now[0] += 1
            progress.generated(1, 1)
        progress.started("choices", "Choices", 0.2, 40, 30)
        for _ in range(10):
            now[0] += 1
            progress.generated(1, 1)
    first, going_on, second = out.getvalue().splitlines()
    assert first.endswith("40 answers in 40.0 s, 40 tokens, 1/s  left 0:46"), "40 at the other alpha, and 6"
    assert going_on == "Choices at alpha 0.2: going on after 30 stored answers of 40"
    assert second.endswith("10 answers in 10.0 s, 10 tokens, 1/s  left 0:06")


def test_two_kinds_of_requests_of_a_task_are_added_up(now: list[float]) -> None:
    out = io.StringIO()
    with BenchProgress(Console(file=out, width=200)) as progress:
        progress.planned({("group", 0.0): 4, ("group", 1.0): 4})
        for n_requests in (4, 3):
            progress.started("group", "Group", 0.0, n_requests, 0)
            now[0] += n_requests
            progress.generated(n_requests, n_requests)
    assert [line.rpartition("left ")[2] for line in out.getvalue().splitlines()] == ["0:04", "0:07"]


def test_two_tasks_of_one_title_are_counted_apart(now: list[float]) -> None:
    """One task of the harness as plain text and in the chat template: their names differ, their title does not."""
    out = io.StringIO()
    with BenchProgress(Console(file=out, width=200)) as progress:
        progress.planned({("lm_eval:arc", 0.0): 5, ("lm_eval_chat:arc", 0.0): 3})
        for name, n_requests in (("lm_eval:arc", 20), ("lm_eval_chat:arc", 3)):
            progress.started(name, "arc", 0.0, n_requests, 0)
            now[0] += n_requests
            progress.generated(n_requests, n_requests)
    first, second = out.getvalue().splitlines()
    assert first == "arc at alpha 0: 20 answers in 20.0 s, 20 tokens, 1/s  left 0:03"
    assert second.endswith("left 0:00")
