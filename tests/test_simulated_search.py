"""`benchmarks/search.py`, which makes the figures of docs/search.md: its store in memory gives what a database does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_a_search_in_memory_is_that_of_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    search = import_module("search")
    fast, true = (search.one("expo", "smooth", 7, 64, 6, Path("none"), on_disk=on_disk) for on_disk in (False, True))
    assert fast == true
