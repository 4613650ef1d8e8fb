"""Every bad input: one line with where, found, expected, do; exit code 2; nothing written."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from twins import edit, make_pair, make_reward_model, write_prompts

from expo_search import cli, run
from expo_search.store import Store


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good pair, reward model and prompts: each test spoils a copy of one of them."""
    folder = tmp_path_factory.mktemp("parts")
    make_pair(folder, "llama-tied")
    make_reward_model(folder / "reward")
    write_prompts(folder / "prompts.jsonl", 8)
    return folder


@pytest.fixture
def good(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(parts, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(**changed: object) -> list[str]:
    given = {
        "sft": "sft", "aligned": "aligned", "reward-model": "reward", "prompts": "prompts.jsonl", "n-prompts": 4,
        "max-tokens": 8, "max-model-len": 128, "trials": 2,
    } | {k.replace("_", "-"): v for k, v in changed.items()}  # fmt: skip
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command, expect exit code 2 and a single line; the line."""
    capfd.readouterr()  # what making the input printed
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*")}
    monkeypatch.setattr(sys, "argv", ["expo-search", "--quiet", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*")} == before, "something was written"
    assert lines[0].startswith("expo-search: ")
    assert "; expected " in lines[0]
    return lines[0]


def write(name: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()

    return spoil


def configure(folder: str, **values: object) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        file = root / folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def only_pickles(folder: Path) -> None:
    (folder / "sft/model.safetensors").rename(folder / "sft/pytorch_model.bin")


def cut_off(folder: Path) -> None:
    file = folder / "aligned/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def other_shape(folder: Path) -> None:
    edit(folder / "sft", lambda name, t: t[:-1].clone() if "norm" in name else t)


def two_labels(folder: Path) -> None:
    shutil.rmtree(folder / "reward")
    make_reward_model(folder / "reward", labels=2)


def store_named(name: str) -> Callable[[Path], None]:
    def spoil(_: Path) -> None:
        Store("sqlite:///store.db", name).close()

    return spoil


def nothing(_: Path) -> None:
    pass


CASES = {
    "a path that is no folder": (nothing, {"sft": "./missing"}, ["sft ./missing", "no such folder"]),
    "no config": (remove("sft/config.json"), {}, ["sft checkpoint", "no config.json"]),
    "a config that is not JSON": (write("aligned/config.json", "{"), {}, ["config.json", "a JSON object"]),
    "pickled weights only": (only_pickles, {}, ["no safetensors (pytorch_model.bin)", "save_pretrained"]),
    "no weights": (remove("aligned/model.safetensors"), {}, ["aligned checkpoint", "no weights at all"]),
    "a file cut off": (cut_off, {}, ["file model.safetensors", "a whole safetensors file"]),
    "other shapes": (other_shape, {}, ["5 tensors that do not match", "model.norm.weight: aligned [128]"]),
    "another architecture": (
        configure("sft", architectures=["MistralForCausalLM"]), {}, ["architecture Mistral", "LlamaForCausalLM"],
    ),
    "a quantised checkpoint": (
        configure("aligned", quantization_config={"quant_method": "gptq"}), {}, ["a quantised checkpoint (gptq)"],
    ),
    "prompts missing": (nothing, {"prompts": "none.jsonl"}, ["prompts none.jsonl", "no such file"]),
    "prompts empty": (write("prompts.jsonl", "\n"), {}, ["no rows", "at least one prompt"]),
    "prompts not JSON": (write("prompts.jsonl", '{"prompt": "a"}\n{oops\n'), {}, ["line 2", "not JSON"]),
    "prompts without a prompt": (write("prompts.jsonl", '{"text": "a"}\n'), {}, ["line 1", "columns text", "prompt"]),
    "too few prompts": (nothing, {"n_prompts": 9}, ["8 prompts", "at least 9", "--n-prompts 8"]),
    "no trials": (nothing, {"trials": 0}, ["--trials", "at least 1"]),
    "a range upside down": (nothing, {"alpha_min": 2, "alpha_max": 1}, ["alpha_min 2 is not below alpha_max 1"]),
    "a bound that is no number": (nothing, {"alpha_max": "nan"}, ["search.alpha_max", "finite"]),
    "an unknown sampler": (nothing, {"sampler": "magic"}, ["search.sampler", "'gp'"]),
    "no room for a prompt": (nothing, {"max_tokens": 128}, ["max_tokens 128 in a context of 128"]),
    "a reward model with two labels": (two_labels, {}, ["2 labels", "1 (a scalar reward)"]),
    "half a pair": (nothing, {"sft": None}, ["pair", "no sft"]),
    "not a database": (write("other.db", "hello" * 300), {"storage": "sqlite:///other.db"}, ["not a database"]),
    "a read-only database": (
        store_named("x"), {"storage": "sqlite:///file:store.db?mode=ro&uri=true"}, ["readonly"],
    ),
    "a folder that is not there": (nothing, {"storage": "sqlite:///no/where.db"}, ["no folder"]),
    "not a database URL": (nothing, {"storage": "other.db"}, ["not a database URL", "sqlite:///"]),
    "a hub that is not reached": (nothing, {"sft": "nobody/nothing"}, ["nobody/nothing, file config.json", "local"]),
    "a study file that is missing": (nothing, {"study": "none.toml"}, ["none.toml", "no such file"]),
    "an unknown preset": (nothing, {"pair": "zefyr"}, ["unknown preset 'zefyr'", "zephyr", "expo-search pairs"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(
    case: str, good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, changed, expected = CASES[case]
    spoil(good)
    line = refused(options(**changed), capfd, monkeypatch)
    for part in expected:
        assert part in line


def test_a_study_of_the_same_name_under_other_settings_is_refused_by_their_names(
    good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store("sqlite:///expo-search.db", "custom")
    store.pin_settings({"sampling.max_tokens": 99, "search.seed": 7, "prompts.n": 4}, {})
    line = refused(options(), capfd, monkeypatch)
    assert "sampling.max_tokens: 99 there, 8 now" in line
    assert "search.seed: 7 there, 42 now" in line
    assert "prompts.n" not in line
    assert "--study-name" in line


def test_a_pair_that_does_not_fit_in_memory_is_refused_with_figures(
    good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "free_memory", lambda: (1 << 30, 2 << 30, False))
    line = refused(options(), capfd, monkeypatch)
    assert "1.0 GiB free" in line
    assert "sources" in line


def test_a_missing_vllm_is_said_with_the_line_that_installs_it(
    good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    line = refused(options(), capfd, monkeypatch)
    assert "vllm: not installed" in line
    assert "pip install" in line


@pytest.mark.parametrize("command", ["show", "confirm"])
def test_an_unknown_study_is_refused_with_the_known_ones(
    command: str, good: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Store("sqlite:///expo-search.db", "mine")
    line = refused_command([command, "yours"], capfd, monkeypatch)
    assert "no study 'yours'" in line
    assert "mine" in line


def refused_command(arguments: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["expo-search", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    return line
