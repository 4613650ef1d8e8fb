"""The reward model in a vLLM engine of its own, against the same one in transformers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file
from test_engine_faults import orphans
from test_reward_model import COMPLETIONS
from twins import make_pair, make_reward_model, write_prompts

from expo_search.config.presets import load_study
from expo_search.config.spec import RewardSpec, StudySpec
from expo_search.contracts import Completion, Prompt
from expo_search.engine.pooling import PoolingEngine, PoolingSpec
from expo_search.errors import RewardError
from expo_search.evaluation.reward_model import SequenceRewardModel
from expo_search.evaluation.reward_model_vllm import VllmRewardModel
from expo_search.session import reward_engine
from expo_search.session.reward_engine import start_reward_engine


def test_its_cores_are_not_those_of_a_rank_of_the_engine_that_answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[PoolingSpec] = []
    monkeypatch.setattr(reward_engine, "PoolingEngine", lambda spec, _: started.append(spec))
    monkeypatch.setattr(reward_engine, "VllmRewardModel", lambda *args, **_: args[2]("float32", 128))
    spec = spec_of(folder)
    for ranks in (1, 2):
        start_reward_engine(
            spec.model_copy(update={"engine": spec.engine.model_copy(update={"tensor_parallel": ranks})}),
            folder / "reward",
            None,
        )
    # with one rank the answering engine sets none, and a user's own choice stays
    assert [s.environment.get("VLLM_CPU_OMP_THREADS_BIND") for s in started] == [None, "auto"]


LONG = Completion(Prompt("long", "x" * 5000), "y", 1, "stop")  # the tiny model has a context of 512
EMPTY = Completion(Prompt("empty", "Hello?"), "", 0, "stop")


def spec_of(folder: Path, **reward: object) -> StudySpec:
    overrides: dict[str, dict[str, Any]] = {
        "pair": {
            "aligned": str(folder / "aligned"),
            "sft": str(folder / "sft"),
            "reward_model": str(folder / "reward"),
        },
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "sampling": {"max_tokens": 8},
        "engine": {"max_model_len": 128},
        "reward": reward,
    }
    return load_study(overrides=overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served")
    make_reward_model(out / "reward")
    make_pair(out, "llama-tied")
    write_prompts(out / "prompts.jsonl", 20)
    return out


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[VllmRewardModel]:
    spec = spec_of(folder, backend="vllm", arithmetic="bfloat16", batch_tokens=1024)
    before = dict(os.environ)
    served = start_reward_engine(spec, folder / "reward", None)
    assert dict(os.environ) == before
    yield served
    served.close()


@pytest.mark.slow  # an engine in a process of its own starts slowly
class TestServed:
    def test_rewards_are_those_of_transformers_within_its_own_noise_and_in_the_order_given(
        self, folder: Path, scorer: VllmRewardModel
    ) -> None:
        def in_transformers(arithmetic: str) -> np.ndarray:
            spec = RewardSpec.model_validate({"arithmetic": arithmetic})
            return np.array(SequenceRewardModel(folder / "reward", spec).score(completions, lambda _: None)[0])

        completions = [*COMPLETIONS, EMPTY, LONG]
        seen: list[int] = []
        rewards, n_cut = scorer.score(completions, seen.append)
        exact, rounded = in_transformers("float32"), in_transformers("bfloat16")
        noise = (rounded - exact).std()
        assert noise > 0
        # two roundings of the same numbers: sqrt(2) of one's deviation, and a margin for eleven of them
        assert (np.array(rewards) - rounded).std() < 3 * noise
        assert np.abs(np.array(rewards) - exact).max() < 5 * noise
        assert exact.std() > 10 * noise, "another order would not pass"
        assert sum(seen) == len(completions)
        assert n_cut == 1
        assert scorer.score([], lambda _: None) == ([], 0)

    def test_a_conversation_that_ends_in_padding_is_read_where_transformers_reads_it(
        self, folder: Path, scorer: VllmRewardModel
    ) -> None:
        plain = SequenceRewardModel(folder / "reward", RewardSpec(arithmetic="bfloat16"))
        assert plain.tokenizer.pad_token is not None
        pads = plain.tokenizer.pad_token_id
        [(_, [expected])] = plain._rate([[5, 6, 7, pads, pads]])
        [(_, [value])] = scorer._rate([[5, 6, 7, pads, pads]])
        [(_, [elsewhere])] = scorer._rate([[5, 6, 7, 8]])
        assert value == pytest.approx(expected, abs=0.03)  # of bfloat16
        assert value != pytest.approx(elsewhere, abs=0.03)

    def test_an_engine_that_was_killed_is_one_line_and_can_be_closed(self, folder: Path) -> None:
        spec = spec_of(folder, backend="vllm", batch_tokens=1024)
        served = start_reward_engine(spec, folder / "reward", None)
        assert isinstance(served._engine, PoolingEngine)
        processes = served._engine.processes
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RewardError, match=r"reward model in vLLM: .*; expected an engine that answers; ") as fault:
            served.score(COMPLETIONS, lambda _: None)
        assert "\n" not in str(fault.value)
        served.close()
        assert not any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in processes)


ORPHAN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_reward_model_vllm import spec_of
from expo_search.session.reward_engine import start_reward_engine
if __name__ == "__main__":
    folder = Path({folder!r})
    served = start_reward_engine(spec_of(folder, backend="vllm"), folder / "reward", None)
    print("processes", *served._engine.processes, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow  # as above
def test_its_process_ends_with_the_one_that_started_it_also_where_it_is_killed(folder: Path, tmp_path: Path) -> None:
    assert orphans(ORPHAN.format(tests=str(Path(__file__).parent), folder=str(folder)), tmp_path) == []


def test_a_model_whose_head_is_not_in_its_file_is_refused_before_an_engine_starts(folder: Path, tmp_path: Path) -> None:
    """Since vLLM would start, and rate at random."""
    headless = shutil.copytree(folder / "reward", tmp_path / "headless")
    state = load_file(headless / "model.safetensors")
    del state["score.weight"]
    save_file(state, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match=r"no weights for score\.weight"):
        start_reward_engine(spec_of(folder, backend="vllm"), headless, None)


def test_a_further_file_of_weights_is_refused_before_an_engine_starts(folder: Path, tmp_path: Path) -> None:
    """Since vLLM would load it over the other."""
    stale = shutil.copytree(folder / "reward", tmp_path / "stale")
    shutil.copyfile(stale / "model.safetensors", stale / "old.safetensors")
    with pytest.raises(RewardError, match=r"old\.safetensors beside model\.safetensors, which vLLM would read too"):
        start_reward_engine(spec_of(folder, backend="vllm"), stale, None)
