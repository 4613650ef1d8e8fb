"""The API in a real notebook kernel, whose event loop runs, on a tiny pair with a real engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from twins import write_prompts

STATE = (
    "import gc, os, signal, warnings\n"
    "def state():\n"
    "    handlers = [signal.getsignal(n) for n in sorted(signal.valid_signals())]\n"
    "    return {'environment': dict(os.environ), 'filters': list(warnings.filters), 'gc': (gc.isenabled(), "
    "gc.get_threshold(), gc.get_freeze_count() == 0), 'handlers': handlers}\n"
)
SEARCH = """
import asyncio
import expo_search as es
before = state()
assert asyncio.get_running_loop().is_running()
pair = {"sft": "sft", "aligned": "aligned", "reward_model": "reward"}
tables = {"pair": pair, "prompts": {"source": "prompts.jsonl", "n": 6}, "sampling": {"max_tokens": 12},
          "engine": {"max_model_len": 128}, "search": {"alpha_max": 2.0, "tolerance": 0.0}}
spec = es.load_study(name="tiny", overrides=tables)
for n_trials in (2, 3):  # two engines, one after the other
    with es.open_session(spec, storage="sqlite:///tiny.db") as session:
        result = session.search(n_trials=n_trials)
after = state()
assert after == before, [(k, before[k], after[k]) for k in before if before[k] != after[k]]
result
"""


@pytest.mark.slow
def test_two_sessions_in_one_kernel_leave_it_as_it_was_and_the_result_is_shown(tiny_home: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 10)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (STATE, SEARCH)])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = notebook.cells[1].outputs
    shown = next(o["data"]["text/html"] for o in outputs if o["output_type"] == "execute_result")
    assert "<svg" in shown
    assert "<table" in shown
    said = json.dumps([o for o in outputs if o["output_type"] != "execute_result"])
    assert "canary passed" in said
    assert "[3/3] alpha" in said
    assert " INFO " not in said


@pytest.mark.slow
def test_the_notebook_of_the_docs_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(Path(__file__).parent.parent / "docs" / "demo.ipynb", as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert '"verified": true' in (tmp_path / "demo-expo" / "expo.json").read_text()
