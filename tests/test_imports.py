"""What importing costs, and which folder may import what: `MAY_IMPORT` is the contract."""

from __future__ import annotations

import ast
import sqlite3
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import expo_search

PACKAGE = Path(expo_search.__file__).parent
HEAVY = {"torch", "vllm", "transformers", "optuna", "datasets", "ray", "scipy", "plotext", "matplotlib", "plotly"}

# files at the top, which import each other alone
ROOT = ("contracts", "dtypes", "errors", "folders", "owner", "text", "version")
FLOW = (
    "weights", "config", "checkpoint", "inputs", "engine", "pool", "stats", "store", "evaluation", "search", "bench",
    "session",
    "results", "exporting", "api", "cli",
)  # fmt: skip
MAY_IMPORT: dict[str, tuple[str, ...]] = {  # beside itself and ROOT
    "config": (),
    "weights": (),
    "checkpoint": ("weights",),
    "inputs": ("config", "checkpoint"),
    "engine.worker": ("weights", "checkpoint"),
    "engine": ("config", "weights", "checkpoint", "inputs", "engine.worker"),
    "pool": (),
    "stats": (),
    "store": (),
    "evaluation": ("config", "inputs", "stats", "store"),
    "search": ("config", "weights", "inputs", "stats", "store", "evaluation"),
    "bench": ("config", "inputs", "stats", "store", "evaluation"),
    "session": FLOW[: FLOW.index("session")],
    "results": ("config", "stats", "store", "evaluation", "search", "bench"),
    "exporting": FLOW[: FLOW.index("exporting")],
    "api": FLOW[: FLOW.index("api")],
    "cli": FLOW[: FLOW.index("cli")],
}


def modules() -> dict[str, Path]:
    """Dotted names below the package -> files; a folder's `__init__.py` is the folder."""
    parts = {file: file.relative_to(PACKAGE).with_suffix("").parts for file in PACKAGE.rglob("*.py")}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def imports_of(file: Path) -> set[str]:
    """The package's modules that a file names in any import: at the top, inside a function, or for types only."""
    there, named = modules(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "expo_search":
            module = str(node.module).partition(".")[2]
            names = {f"{module}.{alias.name}".strip(".") for alias in node.names}
            named |= {name if name in there else module for name in names}
        elif isinstance(node, ast.Import):
            named |= {a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "expo_search"}
    return named - {""}


def folder_of(module: str) -> str:
    """Of a module: its folder, `engine.worker` apart from `engine`; or itself, at the top."""
    return "engine.worker" if module.startswith("engine.worker") else module.split(".")[0]


def loaded_after(code: str, cwd: Path | None = None) -> set[str]:
    """Modules of a new interpreter after it ran `code`."""
    shown = "\nimport sys; print('LOADED', *sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code + shown], capture_output=True, text=True, check=True, cwd=cwd
    ).stdout.splitlines()
    return set(output[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert HEAVY & loaded_after("import expo_search; print(expo_search.__version__)") == set()


@pytest.mark.parametrize(
    ("arguments", "neither"),
    [
        (["--help"], ["sqlalchemy", "numpy"]),
        (["--pair", "no-such-pair"], ["sqlalchemy", "numpy"]),
        (["--pair", "demo", "--prompts", "."], ["sqlalchemy", "numpy"]),
        (["compare", "-n", "0"], ["sqlalchemy", "numpy"]),
        (["show", "nothing"], ["numpy"]),
        *(([c, "--storage", "sqlite:///none.db"], ["sqlalchemy", "numpy"]) for c in ("confirm", "bench", "dashboard")),
        *((["--pair", "demo", "--storage", url], ["sqlalchemy"]) for url in ("none.db", "sqlite:///none/x.db")),
    ],
    ids=" ".join,
)
def test_help_and_what_is_wrong_at_first_sight_load_nothing_heavy(
    arguments: list[str], neither: list[str], tmp_path: Path
) -> None:
    """So they are said within a second."""
    code = (
        f"import sys; sys.argv = ['expo-search', *{arguments}]\n"
        "from expo_search.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
    )
    with sqlite3.connect(tmp_path / "expo-search.db") as database:
        database.execute("CREATE TABLE studies (study_id INTEGER, study_name TEXT)")
        database.execute("CREATE TABLE study_user_attributes (study_id INTEGER, key TEXT)")
    assert loaded_after(code, tmp_path).isdisjoint({*HEAVY, *neither})


@pytest.mark.parametrize("module", ["contracts", "evaluation.objective", "search.loop"])
def test_the_search_knows_a_model_and_a_scorer_only_through_the_contracts(module: str) -> None:
    loaded = loaded_after(f"import expo_search.{module}")
    mine = {name for name in loaded if name.startswith("expo_search.")}
    assert f"expo_search.{module}" in mine
    assert not [name for name in mine if name.startswith(("expo_search.engine", "expo_search.weights"))]
    assert {"torch", "vllm", "transformers"} & loaded == set()
    if module == "contracts":
        assert mine == {"expo_search.contracts", "expo_search.version"}


@pytest.mark.parametrize("module", sorted(set(modules()) - {"", "__main__"}))
def test_a_module_imports_only_what_its_folder_may(module: str) -> None:
    folder = folder_of(module)
    may = {folder, *ROOT, *MAY_IMPORT.get(folder, ())} if folder not in ROOT else set(ROOT)
    assert {name for name in imports_of(modules()[module]) if folder_of(name) not in may} == set()


def test_every_folder_is_in_the_contract_and_says_what_it_is() -> None:
    folders = {folder_of(name) for name in modules()} - {"", "__main__", *ROOT}
    assert folders == set(MAY_IMPORT)
    for folder in folders - {"api"}:
        told = ast.get_docstring(ast.parse((PACKAGE / folder.replace(".", "/") / "__init__.py").read_text()))
        assert told is not None
        listed = told.partition("May import: ")[2].removesuffix(".").split()
        assert {name.strip(",") for name in listed} == {"root", *MAY_IMPORT[folder]}


def test_imports_between_modules_run_one_way() -> None:
    graph = {name: imports_of(file) - {name} for name, file in modules().items() if name not in ("", "__main__")}
    assert graph["search.loop"] >= {"evaluation.objective", "store.study_store"}  # the reader of imports works
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as fault:
        pytest.fail(f"a cycle of imports: {' -> '.join(fault.args[1])}")


def test_nothing_but_the_command_line_prints_or_exits() -> None:
    for name, file in modules().items():
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
        }
        if folder_of(name) != "cli":
            assert called & {"print", "exit", "sys.exit", "os._exit"} == set(), name


def test_the_insides_of_vllm_are_imported_in_one_module() -> None:
    """Beside what its users import; a module that is missing in another version is then named in one line."""
    importing = {
        name
        for name, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("vllm.")
        and node.module != "vllm.sampling_params"
    }
    assert importing == {"engine.worker.vllm_names"}
