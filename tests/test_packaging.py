"""What the built packages give: presets from any folder, the demo's parts, a light command; a source tree to set up."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from expo_search.version import __version__

ROOT = Path(__file__).parent.parent
# triton: torch's own build of it, another one could not compile for that torch; markupsafe: what jinja2 escapes with
BROUGHT_BY = {"triton": "torch", "markupsafe": "jinja2"}


def imported() -> dict[str, set[str]]:
    """Top-level names of other projects' packages that any file of the package imports, lazily too -> those files."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "expo_search").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.append(str(node.module))
            for name in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"expo_search"}:
                found.setdefault(name, set()).add(str(file.relative_to(ROOT)))
    return found


def canonical(distribution: str) -> str:
    """A name as package indexes compare it (PEP 503), without version and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", distribution, maxsplit=1)[0]).lower()


def test_whatever_the_package_imports_is_a_dependency_or_in_an_extra_for_users() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {canonical(d) for d in project["dependencies"]}
    for_users = ("cpu", "gpu", "dashboard", "ray", "demo", "bench", "judge", "track")
    declared |= {canonical(d) for extra in for_users for d in extras[extra]}
    installed = packages_distributions()  # what is not installed here goes by the name that is imported
    undeclared = {
        name: files
        for name, files in imported().items()
        if not {canonical(d) for d in installed.get(BROUGHT_BY.get(name, name), [name])} & declared
    }
    assert undeclared == {}
    assert {"jinja2", "pyarrow", "plotly", "vllm", "triton"} <= imported().keys(), (
        "imports are read inside functions too"
    )


def test_version_and_date_are_the_same_in_the_package_the_changelog_and_the_citation() -> None:
    versions = re.findall(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    cited = re.findall(r"^(version|date-released): (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == (__version__, dict(cited)["date-released"])
    assert dict(cited)["version"] == __version__
    assert [date for _, date in versions] == sorted((date for _, date in versions), reverse=True)


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [d for d in project["dependencies"] if ">=" not in d] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the source distribution unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / file.name.removesuffix(".tar.gz")


def test_the_source_distribution_has_every_file_that_it_names(source: Path) -> None:
    texts = [ROOT / name for name in ("Makefile", "README.md", "CONTRIBUTING.md", "pyproject.toml", ".ci/run")]
    words = {w.lstrip("/") for file in texts for w in re.findall(r"[\w./-]*\w", file.read_text(encoding="utf-8"))}
    for file in (ROOT / "tests").glob("*.py"):
        paths = re.findall(r'(?:ROOT|parent\.parent)((?: / "[^"]+")+)', file.read_text(encoding="utf-8"))
        words |= {"/".join(re.findall(r'"([^"]+)"', path)) for path in paths}
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    named = {
        word for word in words if (ROOT / word).exists() and word.split("/")[0] not in {*ignored, "", "..", ".git"}
    }
    assert named >= {".ci/setup", ".ci/run", "docs/demo.md", "LICENSE", "tests/avx2"}
    assert {word for word in named if not (source / word).exists()} == set()


def test_make_in_the_source_distribution_comes_to_the_set_up(source: Path, tmp_path: Path) -> None:
    (tmp_path / "uname").write_text("#!/bin/sh\necho Plan9\n")  # where it ends before it downloads anything
    (tmp_path / "uname").chmod(0o755)
    done = subprocess.run(
        ["make", "demo"], cwd=source, env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expo-search: this is Plan9 on Plan9; expected Linux" in done.stderr


def test_the_presets_and_the_demo_ship_inside_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("expo_search/studies/") for name in names if name.startswith("expo_search/studies/")}
    tracked = {p.name for p in (ROOT / "studies").glob("*.toml")}
    assert tracked <= shipped
    assert {"expo_search/weights/cpu_switch.c", "expo_search/weights/cpu_stream.c"} <= set(names)
    assert {f"expo_search/results/report.{kind}" for kind in ("html.j2", "css", "js")} <= set(names)
    assert {"demo/prompts.jsonl", "demo/aligned/adapter_config.json", "demo/reward/adapter_config.json"} <= shipped
    assert not [name for name in names if "/tests/" in name or name.startswith("tests/")]


def test_an_installed_wheel_lists_the_presets_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listed = subprocess.run(
        [sys.executable, "-m", "expo_search", "pairs", "--json"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(site)},  # before the editable install
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"zephyr"' in listed.stdout
    assert '"demo"' in listed.stdout
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("system", "machine", "libc", "found"),
    [
        ("Darwin", "arm64", "", "this is Darwin on arm64"),
        ("Darwin", "x86_64", "", "this is Darwin on x86_64"),
        ("Linux", "riscv64", "", "this is Linux on riscv64"),
        ("Linux", "aarch64", "musl libc (aarch64)", "this Linux has musl"),
    ],
)
def test_set_up_says_in_one_line_what_it_cannot_work_on_before_it_downloads_anything(
    system: str, machine: str, libc: str, found: str, tmp_path: Path
) -> None:
    for name, text in {"uname": f'[ "$1" = -s ] && echo {system} || echo {machine}', "ldd": f"echo '{libc}'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "setup", tmp_path / ".ci" / "setup")
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci" / "setup"), "no-python-is-asked"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"expo-search: {found}; expected Linux")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.slow
def test_wheel_and_sdist_are_sound_and_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, env=environment)
    run([sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")], cwd=ROOT)
    files = sorted((tmp_path / "dist").iterdir())
    assert sorted(f.suffix for f in files) == [".gz", ".whl"]
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
    run([sys.executable, "-m", "venv", str(tmp_path / "env")])
    python = tmp_path / "env" / "bin" / "python"
    wheel = next(f for f in files if f.suffix == ".whl")
    # the wheel alone is installed: what it depends on lies here already, and is a matter of gigabytes
    run([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)])
    site = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    dependencies = Path(sysconfig.get_path("purelib"))
    (Path(site) / "dependencies.pth").write_text(f"{dependencies}\n")  # after site itself, so the wheel comes first
    where = run([str(python), "-c", "import expo_search; print(expo_search.__file__)"], cwd=tmp_path).stdout
    assert where.startswith(site)
    search = [str(tmp_path / "env" / "bin" / "expo-search"), "--pair", "demo", "--trials", "2"]
    small = ["--n-prompts", "8", "--max-tokens", "8", "--quiet", "--json"]
    found = json.loads(run([*search, *small], cwd=tmp_path, timeout=600).stdout)
    assert len(found["trials"]) == 2


def test_the_demos_locked_environment_is_one_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        Requirement(line) for line in (*project["dependencies"], *extras["cpu"], *extras["demo"], *extras["dashboard"])
    ]
    locked = (ROOT / "studies" / "demo" / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in locked if not line.startswith("#"))
    for wanted in asked:
        assert wanted.specifier.contains(pins[canonical(wanted.name)]), f"make studies/demo/lock.txt anew: {wanted}"
