"""`lm_eval:openllm` from a Hub of our own, with made-up rows: its six members, their shots, and the whole command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hub_server import hub_environment, hub_server
from leaderboard import write_leaderboard
from twins import make_pair, make_reward_model, write_prompts

HERE = Path(__file__).parent
PREFIX = "lm_eval:openllm/"
SHOTS = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu": 5, "winogrande": 5, "gsm8k": 5}
FROM = {"mmlu": "dev"} | {name: "train" for name in SHOTS if name not in ("mmlu", "truthfulqa_mc2")}
N_SUBJECTS = 57
DECIDES = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "gsm8k": "exact_match,strict-match"}  # else acc
SIZES = ["--n-prompts", "6", "--max-tokens", "8", "--max-model-len", "4096", "--alpha-max", "2", "--trials", "2"]
PAIR = ["--sft", "sft", "--aligned", "aligned", "--reward-model", "reward", "--prompts", "prompts.jsonl"]

pytestmark = pytest.mark.slow


class Hub(NamedTuple):
    """A server that has the group's data sets, what it was asked, and a folder to work in."""

    address: str
    asked: list[str]
    work: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = hub_environment(self.address, self.work / "home")
        done = subprocess.run(
            [sys.executable, *words], cwd=self.work, env=env, text=True, capture_output=True, timeout=580, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root, work = (tmp_path_factory.mktemp(name) for name in ("hub", "work"))
    write_leaderboard(root / "datasets", subjects())
    with hub_server(root) as (address, asked):
        yield Hub(address, asked, work)


def subjects() -> list[str]:
    """MMLU's, as the harness's own files name them."""
    import lm_eval

    files = (Path(str(lm_eval.__file__)).parent / "tasks" / "mmlu" / "default").glob("mmlu_*.yaml")
    found = [re.search(r'^"dataset_name": "(\w+)"', file.read_text(), re.MULTILINE) for file in files]
    return sorted(match.group(1) for match in found if match)


def member(prompt: str) -> str:
    """Whose question a prompt is, by the words that our rows have."""
    words = {
        "Which is it?": "arc_challenge", "Boats": "hellaswag", "How many is it?": "truthfulqa_mc2", "Pick one": "mmlu",
        "The cup": "winogrande", "What is": "gsm8k",
    }  # fmt: skip
    return next(name for said, name in words.items() if said in prompt)


def test_each_member_is_asked_with_its_shots_and_compared_alone(hub: Hub) -> None:
    program = [str(HERE / "leaderboard.py"), "fakes.db", "2", "0,1"]
    told: dict[str, Any] = json.loads(hub.run(*program).stdout)
    n_items = {PREFIX + name: 2 * (N_SUBJECTS if name == "mmlu" else 1) for name in SHOTS}
    assert {name: len(items) for name, items in told["items"].items()} == n_items
    assert told["remarks"] == []
    counted: dict[str, set[int]] = {name: set() for name in SHOTS}
    for _, prompt in told["asked"]:
        name = member(prompt)
        shots = re.findall(rf"\({FROM.get(name, 'train')} \d+\)", prompt)
        assert len(set(shots)) == len(shots), "no shot twice"
        counted[name].add(len(shots))
    assert counted == {name: {n} for name, n in SHOTS.items()}
    at = [{prompt for alpha, prompt in told["asked"] if alpha == wanted} for wanted in (0.0, 1.0)]
    assert at[0] == at[1], "the same items, with the same shots"
    compared = [c for c in told["compared"] if c["metric"] == DECIDES.get(c["task"].removeprefix(PREFIX), "acc")]
    assert {c["task"]: c["items"] for c in compared} == n_items
    n_requests = Counter(task for task, *_ in told["starts"])
    assert n_requests == dict.fromkeys(n_items, 2)
    again = json.loads(hub.run(*program).stdout)
    assert (again["asked"], again["starts"], again["compared"]) == ([], [], told["compared"])


def test_the_command_compares_the_group_on_a_real_engine(hub: Hub) -> None:
    make_pair(hub.work, "llama-tied", delta=0.2)
    for name in ("aligned", "sft"):
        config = hub.work / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    make_reward_model(hub.work / "reward")
    write_prompts(hub.work / "prompts.jsonl", 10)
    search = hub.run("-m", "expo_search", *PAIR, *SIZES)
    assert "2 finished trials" in search.stderr
    bench = ["-m", "expo_search", "bench", "custom", "--tasks", "lm_eval:openllm", "--alphas", "1.5", "--limit", "1"]
    first = hub.run(*bench, "--json")
    told = json.loads(first.stdout)
    deciding = [c for c in told["compared"] if c["metric"] == DECIDES.get(c["task"].removeprefix(PREFIX), "acc")]
    n_items = {PREFIX + name: N_SUBJECTS if name == "mmlu" else 1 for name in SHOTS}
    assert {c["task"]: (c["alpha"], c["items"]) for c in deciding} == {name: (1.5, n) for name, n in n_items.items()}
    assert {t["task"]: [a["items"] for a in t["alphas"]] for t in told["tasks"]} == {
        name: [n, n] for name, n in n_items.items()
    }
    shots = {t["task"]: set(t["settings"].get("shots", {}).values()) for t in told["tasks"]}
    assert shots == {PREFIX + name: {n} if n else set() for name, n in SHOTS.items()}
    again = hub.run(*bench, "--json")
    assert json.loads(again.stdout) == told
    assert "starting vLLM" not in again.stderr
    assert "alpha = 1.5: openllm/mmlu " in hub.run("-m", "expo_search", "show").stdout
