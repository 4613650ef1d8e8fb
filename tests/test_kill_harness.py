"""`benchmarks/kill.py`: real engine, kills at random moments; in its long form in every stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "benchmarks" / "kill.py"


@pytest.mark.parametrize(
    ("database", "n_kills"),
    [
        ("sqlite", 1),
        pytest.param("sqlite", 2, marks=pytest.mark.slow),
        pytest.param("postgresql", 2, marks=pytest.mark.slow),  # test_search.py kills on each kind of database
        pytest.param("sqlite", 30, marks=pytest.mark.slow),
        pytest.param("postgresql", 30, marks=pytest.mark.slow),
    ],
)
def test_a_search_killed_again_and_again_ends_as_one_that_was_not(
    request: pytest.FixtureRequest, n_kills: int, database: str
) -> None:
    if database == "postgresql":
        request.getfixturevalue("postgres")  # skips it where no server is installed
    command = [sys.executable, str(HARNESS), "--kills", str(n_kills), "--database", database]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert "nothing lost, nothing twice" in found.stdout
