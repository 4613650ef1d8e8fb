"""The README's Python runs as it stands there, and its table of modules is the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import optuna

import expo_search as es

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SEARCH, SAMPLER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_search_on_the_demo_pair_runs_and_its_export_is_verified(tmp_path: Path) -> None:
    # without what the command line, run by another test in this process, has set for vLLM
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    done = subprocess.run(
        [sys.executable, "-c", SEARCH], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert '"verified": true' in (tmp_path / "model" / "expo.json").read_text()
    result = es.open_study(f"sqlite:///{tmp_path / 'demo.db'}", "demo")
    assert len(result.evaluations) == 4
    assert result.verdict.confirmed is not None
    assert result.verdict.confirmed.n == 24
    assert " INFO " not in done.stdout + done.stderr, "vLLM's log is not for a notebook"


def test_the_sampler_in_a_study_of_ones_own_runs() -> None:
    names = {"evaluate": lambda alpha: es.Estimate(1 - (alpha - 0.8) ** 2 - (1 - 0.8**2), 0.02, 200)}
    exec(SAMPLER, names)
    study = names["study"]
    assert isinstance(study, optuna.Study)
    assert abs(study.best_trial.params["alpha"] - 0.8) < 0.15


def test_the_table_of_modules_is_the_tree() -> None:
    package = Path(es.__file__).parent
    table = README[README.index("| `expo_search/` |") : README.index("`make test` runs the suite")]
    named = set(re.findall(r"`([a-z_]+)/?`", table))
    there = {p.stem for p in package.rglob("*.py")} - {"__init__", "__main__"}
    assert there - named == set()
