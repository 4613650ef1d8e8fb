"""What `pip install` of the built wheel gives: the presets from any folder, the demo's parts, a light command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_presets_and_the_demo_ship_inside_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("expo_search/studies/") for name in names if name.startswith("expo_search/studies/")}
    tracked = {p.name for p in (ROOT / "studies").glob("*.toml")}
    assert tracked <= shipped
    assert {"expo_search/weights/cpu_switch.c", "expo_search/weights/cpu_stream.c"} <= set(names)
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
