"""What importing costs, and that imports run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import expo_search

PACKAGE = Path(expo_search.__file__).parent
HEAVY = {"torch", "vllm", "transformers", "optuna", "datasets", "scipy", "plotext", "matplotlib", "plotly"}


def imports_of(file: Path) -> set[str]:
    """The package's modules that a file names in any import: at the top, inside a function, or for types only."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "expo_search":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("expo_search."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[1] for a in node.names if a.name.startswith("expo_search."))
    return found & {f.stem for f in PACKAGE.glob("*.py")}


def loaded_after(code: str) -> set[str]:
    """Top-level modules of a new interpreter after it ran `code`."""
    shown = "\nimport sys; print('LOADED', *{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run(
        [sys.executable, "-c", code + shown], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return set(output[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert HEAVY & loaded_after("import expo_search; print(expo_search.__version__)") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--pair", "no-such-pair"]])
def test_help_and_a_wrong_option_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['expo-search', *{arguments}]\n"
        "from expo_search.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
    )
    assert HEAVY & loaded_after(code) == set()


def test_imports_between_modules_run_one_way() -> None:
    graph = {file.stem: imports_of(file) - {file.stem} for file in PACKAGE.glob("*.py") if file.stem != "__init__"}
    assert graph["search"] >= {"objective", "store"}  # the reader of imports works
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as fault:
        pytest.fail(f"a cycle of imports: {' -> '.join(fault.args[1])}")


def test_errors_stand_on_nothing_and_only_the_command_line_wires_everything() -> None:
    assert imports_of(PACKAGE / "errors.py") == set()
    assert imports_of(PACKAGE / "objective.py") & {"reward", "engine", "materializer", "loader"} == set()
    importers = {file.stem for file in PACKAGE.glob("*.py") if "cli" in imports_of(file)}
    assert importers == {"__main__"}


def test_nothing_but_the_command_line_prints_or_exits() -> None:
    for file in PACKAGE.glob("*.py"):
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        }
        if file.stem != "cli":
            assert called & {"print", "exit", "sys.exit", "os._exit"} == set(), file.name
