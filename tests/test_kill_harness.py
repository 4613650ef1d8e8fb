"""`benchmarks/kill.py` in its long form: real engine, kills at random moments in every stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "benchmarks" / "kill.py"


@pytest.mark.slow
def test_a_search_killed_thirty_times_ends_as_one_that_was_not() -> None:
    found = subprocess.run([sys.executable, str(HARNESS), "--kills", "30"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert "nothing lost, nothing twice" in found.stdout
