"""What a terminal gets to see: of an error one line, at any point of a run; of the libraries nothing, ever."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ended
from pseudo_terminal import on_a_terminal
from twins import edit, make_reward_model, write_prompts

SEARCH = [
    "--sft", "sft", "--aligned", "aligned", "--prompts", "prompts.jsonl", "--n-prompts", "4", "--max-tokens", "6",
    "--trials", "1", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tiny_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny_home, folder, dirs_exist_ok=True)
    make_reward_model(folder / "not-a-number")
    edit(folder / "not-a-number", lambda name, t: t.fill_(float("nan")) if name == "score.weight" else t)
    write_prompts(folder / "prompts.jsonl", 8)
    return folder


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ended(home, *SEARCH, *arguments)


@pytest.mark.slow  # test_end_to_end.py has a quiet confirmation
def test_a_quiet_search_that_succeeds_says_nothing_but_its_result(home: Path) -> None:
    done = run(home, "--reward-model", "reward")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nanobind" not in done.stdout
    assert done.stdout.lstrip().startswith("trial")
    assert "vllm" in (home / "expo-search.log").read_text().lower()


def test_an_error_after_the_engine_was_at_work_is_one_line(home: Path) -> None:
    done = run(home, "--reward-model", "not-a-number", "--study-name", "nan")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("expo-search: reward of prompt p")
    assert done.stdout == ""


@pytest.mark.slow  # a weight that is not finite: test_materializer.py
def test_an_error_at_the_start_of_the_engine_is_one_line(home: Path) -> None:
    """A weight that is not finite is found while the engine loads it."""
    whole = (home / "sft" / "model.safetensors").read_bytes()
    edit(home / "sft", lambda name, t: t.fill_(float("inf")) if name == "model.norm.weight" else t)
    try:
        done = run(home, "--reward-model", "reward", "--study-name", "infinite")
    finally:
        (home / "sft" / "model.safetensors").write_bytes(whole)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("expo-search: sft checkpoint, tensor model.norm.weight")
    assert done.stdout == ""


def test_an_error_before_the_engine_is_one_line(home: Path) -> None:
    done = run(home, "--reward-model", "nowhere")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("expo-search: ")
    assert done.stdout == ""


def test_on_a_terminal_its_lines_end_between_words(tmp_path: Path) -> None:
    """The terminal, of 80 columns, would break a word where the line happens to be full."""
    in_a_file = ended(tmp_path, "serach").stderr
    assert in_a_file.count("\n") == 1
    code, shown = on_a_terminal(tmp_path, "serach", before=dict)
    assert code == 2
    lines = shown.splitlines()
    assert len(in_a_file) > 80 >= max(map(len, lines)), shown
    assert " ".join(line.strip() for line in lines) == in_a_file.rstrip()


@pytest.mark.parametrize(
    "spoilt",
    [
        ["--max-model-len", "100000"],
        ["--tensor-parallel", "4096"],
        ["--reward-model", "sft"],
        ["--prompts", "."],
        ["--prompts", "equal.jsonl"],
        ["--storage", "foo.db"],
    ],
    ids=" ".join,
)
def test_what_a_file_can_tell_is_told_before_a_library_that_takes_seconds_is_imported(
    home: Path, spoilt: list[str]
) -> None:
    (home / "equal.jsonl").write_text('{"prompt": "hi"}\n' * 40)
    code = (
        "import sys\n"
        "from expo_search.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print({'torch', 'transformers', 'vllm', 'datasets'} & sys.modules.keys())\n"
    )
    given = [*SEARCH, "--reward-model", "reward", *spoilt]  # of two equal options the last one counts
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "set()\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback(home: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from expo_search.cli.log_file import library_output_to\n"
        "with library_output_to(Path('ours.log')):\n"
        "    import os; os.write(2, b'of a library')\n"
        "raise ZeroDivisionError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError"
    assert "of a library" not in done.stderr
    assert (home / "ours.log").read_text() == "of a library"


def test_a_log_that_is_removed_meanwhile_hides_no_fault(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from expo_search.cli.log_file import library_output_to\n"
        "with library_output_to(Path('ours.log')):\n"
        "    Path('ours.log').unlink()\n"
        "    raise ZeroDivisionError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError"
