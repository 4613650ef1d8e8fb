"""`expo-search bench` and `--bench` as a user types them, on the real engine; what goes on after a stop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from twins import write_prompts

from expo_search.cli import main as command
from expo_search.cli.signals import same_command
from expo_search.errors import EngineDied

PAIR = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]
SIZES = ["--n-prompts", "6", "--max-tokens", "8", "--max-model-len", "256", "--alpha-max", "2", "--trials", "2"]


def test_what_goes_on_after_a_stop_does_not_forget_what_was_just_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise EngineDied(where="vLLM engine", found="it crashed", expected="an engine", do="look")

    typed = ["bench", "zephyr", "--tasks", "gsm8k,ifeval", "--again"]
    assert same_command(typed) == "expo-search bench zephyr --tasks gsm8k,ifeval"
    monkeypatch.setattr(command, "app", interrupted)
    for words, told in (
        (typed, "the same command goes on, without --again once answers have come"),
        (typed[:-1], "the same command goes on"),
    ):
        monkeypatch.setattr(sys, "argv", ["expo-search", *words])
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == 130
        assert capsys.readouterr().err.endswith(f"what was finished is kept, {told}\n")


@pytest.mark.slow
def test_a_benchmark_goes_on_prints_what_is_there_and_stands_in_show(tiny_home: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_home, tmp_path, dirs_exist_ok=True)
    write_prompts(tmp_path / "prompts.jsonl", 10)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "expo_search", *words], cwd=tmp_path, text=True, capture_output=True, timeout=280,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + (tmp_path / "expo-search.log").read_text()[-3000:]
        return done

    run(*PAIR, *SIZES, "--bench", "basics", "--bench-limit", "4")
    rows = {
        "gsm8k": {"question": "What is 2 + 3?", "answer": "#### 5"},
        "alpaca_eval": {"instruction": "Name a fruit."},
        "mt_bench": {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Shorter."]},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    data = [word for name in rows for word in ("--data", f"{name}={name}.jsonl")]
    tasks = ["bench", "--tasks", ",".join(["basics", *rows]), *data, "--alphas", "1.5", "--limit", "6", "--out", "out"]
    first = run(*tasks, "--json")
    told = json.loads(first.stdout)
    compared = {c["task"]: c for c in told["compared"]}
    assert {name: (c["alpha"], c["items"]) for name, c in compared.items()} == {"basics": (1.5, 6), "gsm8k": (1.5, 1)}
    assert "basics at alpha 1.5: 6 answers in " in first.stderr
    assert "starting vLLM" in first.stderr
    written = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.json*")}
    assert written == {
        f"{place}/custom_a{alpha}.{kind}"
        for place, kind in (("outputs_alpaca", "json"), ("mt_bench/model_answer", "jsonl"))
        for alpha in ("0.0", "1.5")
    }
    again = run(*tasks, "--json")
    assert json.loads(again.stdout) == told
    assert "starting vLLM" not in again.stderr
    shown = run("show").stdout
    assert "alpha = 1.5: basics " in shown
    assert {"AlpacaEval", "MT-Bench", "GSM8K"} <= set(shown.split())
