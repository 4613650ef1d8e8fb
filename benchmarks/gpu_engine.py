"""The parts of `benchmarks/gpu.py` that need vLLM, one a process: each starts what a search starts, and proves a claim.

Pairs come from what the repository makes: the demo's, or where its package is not installed a tiny random one. Every
part runs on a CPU engine too, where it shows that the part works, and nothing of a GPU: an engine there is eager, and
has one memory for its sources.

A part gives its figures, and raises where a claim does not hold.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from barriers import LookByLook, Silent
from twins import make_pair, make_reward_model, write_prompts

from expo_search.config.presets import load_study
from expo_search.config.spec import StudySpec
from expo_search.contracts import Completion, Model, Prompt
from expo_search.engine.machine import has_gpu
from expo_search.engine.model import VllmModel
from expo_search.errors import EngineDied, ExpoError
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import CONTROL
from expo_search.session.preflight import Checked, check
from expo_search.session.running import start_model
from expo_search.store.study_store import Store

Figures = dict[str, Any]
TEXT = "Name three rivers, then say why the second one is the longest of them all."
N_TOKENS = 12
_TWINS_SHARE = 0.1  # of the GPU's memory


class Wrong(Exception):
    """A claim that does not hold."""


def expect(holds: bool, claim: str) -> None:
    if not holds:
        raise Wrong(claim)


def checked(folder: Path, *, small: bool, family: str | None = None, n_prompts: int = 512, **engine: Any) -> Checked:
    """A study that was checked and planned as a search's; of the demo pair, or of a random twin of a family."""
    sizes: dict[str, Any] = {"prompts": {"n": 32 if small else n_prompts}, "engine": engine}
    sizes["sampling"] = {"max_tokens": 16 if small else 64}
    storage = f"sqlite:///{tempfile.mkdtemp(dir=folder)}/gpu.db"
    if family is None:
        try:
            return check(load_study(preset="demo", overrides=sizes), storage, quiet)
        except ExpoError as fault:
            if "not installed" not in str(fault):
                raise
            print(f"no demo pair ({fault}): a random twin", file=sys.stderr)
    found = check(twin(folder / (family or "llama-untied"), family or "llama-untied", sizes), storage, quiet)
    if found.memory is None or found.memory.gpu_memory_utilization is None:
        return found
    # of such small blocks a whole GPU holds millions, and vLLM looks at each of them whenever it empties its cache
    small_cache = min(found.memory.gpu_memory_utilization, _TWINS_SHARE)
    return replace(found, memory=replace(found.memory, gpu_memory_utilization=small_cache))


def twin(folder: Path, family: str, overrides: dict[str, Any]) -> StudySpec:
    """A tiny random pair of a family with a reward model and prompts of its own, made where it is not there yet."""
    if not (folder / "reward").exists():
        folder.mkdir(exist_ok=True)
        make_pair(folder, family)
        write_prompts(folder / "prompts.jsonl", 600)
        make_reward_model(folder / "reward")
    paths = {role: str(folder / role) for role in ("aligned", "sft")} | {"reward_model": str(folder / "reward")}
    engine = {"max_model_len": 512, "kv_cache_gib": 1} | overrides["engine"]
    prompts = overrides["prompts"] | {"source": str(folder / "prompts.jsonl")}
    return load_study(overrides=overrides | {"pair": paths, "prompts": prompts, "engine": engine})


def quiet(_: str) -> None:
    """Say nothing."""


def answers_at(model: VllmModel, *alphas: float) -> list[tuple[str, list[tuple[int, float]]]]:
    """Fingerprint, greedy tokens and log-probabilities at each alpha, one after the other."""
    return [
        (model.materialize(a).fingerprint, model.log_probabilities(TEXT, N_TOKENS, salt="uncached")) for a in alphas
    ]


def switching(folder: Path, *, small: bool, family: str | None = None, **engine: Any) -> Figures:
    """The canary; then A -> B -> A: the formula's weights, answers that follow them and come back."""
    found = checked(folder, small=small, family=family, **engine)
    started = time.perf_counter()
    with closing(start_model(found, quiet)) as model:
        start_s = time.perf_counter() - started
        first, other, again = answers_at(model, 0.7, -0.4, 0.7)
        expected = model.expected_fingerprint(-0.4), model.expected_fingerprint(0.7)
        expect((other[0], first[0]) == expected, "the formula's weights")
        expect(first[0] == again[0], "the same weights at the same alpha")
        expect(model.noise.same(first[1], again[1]), "the same answer at the same alpha")
        expect(not model.noise.same(first[1], other[1]), "another answer at another alpha")
        seconds = sorted(model.materialize(0.1 * i).seconds for i in range(5))
        graphs = model._engine._llm.collective_rpc("expo_graphs")[0]  # as the worker has it, which resolves it
        return {
            "start_s": start_s,
            "canary_s": model.canary_s,
            "repeats_itself": model.noise.exact,
            "switch_s": seconds[2],
            "sources": found.memory.sources if found.memory else "",
            "graphs": graphs,
            "weights_at_0.7": first[0],
        }


def sources_on_device(folder: Path, *, small: bool) -> Figures:
    """As `switching`, with both sources in the GPU's memory, and captured graphs whose results follow the weights."""
    figures = switching(folder, small=small, **({"sources": "gpu"} if has_gpu() else {}))
    if has_gpu():
        expect("NONE" not in figures["graphs"].upper(), "an engine with captured graphs")
    (folder / "weights").write_text(figures["weights_at_0.7"])
    return figures


def sources_on_host(folder: Path, *, small: bool) -> Figures:
    """As `switching`, with sources that every switch streams; on a CPU they lie in its one memory anyway."""
    figures = switching(folder, small=small, **({"sources": "host"} if has_gpu() else {}))
    if (folder / "weights").exists():
        expect((folder / "weights").read_text() == figures["weights_at_0.7"], "the weights of sources on the device")
    return figures


def barriers(folder: Path, *, small: bool) -> Figures:
    """A whole trial of all prompts, waiting at each look and at once, with a real reward model."""
    from expo_search.evaluation.reward_model import SequenceRewardModel

    found = checked(folder, small=small)
    scorer = SequenceRewardModel(found.pair.reward_source.path, found.spec.reward)
    prompts = found.search_prompts
    seconds, tokens = dict[str, float](), dict[str, int]()
    with closing(start_model(found, quiet)) as model:
        ways: dict[str, Model] = {"waiting": LookByLook(model, prompts), "at_once": model}
        for name, answering in ways.items():
            store = Store(f"sqlite:///{tempfile.mkdtemp(dir=folder)}/{name}.db", "barriers")
            store.put_prompts("search", prompts)
            beside = has_gpu() and name == "at_once"
            objective = Objective(answering, scorer, store, prompts, Silent(), scores_beside=beside)
            objective.evaluate(CONTROL, 0.0)
            started = time.perf_counter()
            trial = objective.evaluate(1, 0.3, best=None)
            seconds[name], tokens[name] = time.perf_counter() - started, trial.n_generated
            store.close()
    return {
        "prompts": len(prompts),
        **{f"{name}_s": s for name, s in seconds.items()},
        "tokens_s": tokens["at_once"] / seconds["at_once"],
        "ratio": seconds["waiting"] / seconds["at_once"],
    }


def reward_model(folder: Path, *, small: bool) -> Figures:
    """A batch of 16,384 tokens within what the memory plan gives it; the same conversations in a vLLM engine."""
    import numpy as np
    import torch

    from expo_search.evaluation.reward_model import SequenceRewardModel
    from expo_search.session.reward_engine import start_reward_engine

    budget = 2048 if small else 16_384
    found = checked(folder, small=small)
    reward = found.spec.reward.model_copy(update={"batch_tokens": budget, "max_tokens": 512})
    spec = found.spec.model_copy(update={"reward": reward})
    path = found.pair.reward_source.path
    found = check(spec, found.storage, quiet)
    planned = found.memory.device["reward model"] if found.memory else 0
    long = [
        Completion(Prompt(str(i), "Go on. " * 40), f"{i} and more. " * 400, 1, "stop") for i in range(budget // 128)
    ]
    before = torch.cuda.memory_allocated() if has_gpu() else 0
    scorer = SequenceRewardModel(path, reward)
    scorer.score(long[:2], lambda _: None)
    started = time.perf_counter()
    rewards, _ = scorer.score(long, lambda _: None)
    score_s = time.perf_counter() - started
    n_tokens = sum(min(len(scorer._encode(c)), scorer._cap) for c in long)
    expect(scorer._budget == budget, "room for whole batches")
    figures: Figures = {"batch_tokens": budget, "tokens_s": n_tokens / score_s, "planned_gb": planned / 1e9}
    if has_gpu():
        peak = torch.cuda.max_memory_allocated() - before
        figures["peak_gb"] = peak / 1e9
        expect(peak <= planned, "no more memory than was planned")
    with closing(start_reward_engine(spec, path, found.memory)) as served:
        served.score(long[:2], lambda _: None)
        started = time.perf_counter()
        others, _ = served.score(long, lambda _: None)
        figures["vllm_tokens_s"] = n_tokens / (time.perf_counter() - started)
    apart = np.abs(np.array(rewards) - np.array(others))
    figures["vllm_differs_by"] = float(apart.max())
    expect(bool(apart.max() < 0.5), "rewards in vLLM as in transformers, within the rounding of bfloat16")
    return figures


def kill_and_restart(folder: Path, *, small: bool) -> Figures:
    """The engine's process is killed in the middle of answers; a new one has the same weights and answers."""
    found = checked(folder, small=small, own_process=not has_gpu())  # a GPU's engine has one anyway
    with closing(start_model(found, quiet)) as model:
        [before] = answers_at(model, 0.7)
        ours = [pid for pid in model._engine._watchdog.processes if pid != os.getpid()]
        expect(bool(ours), "an engine in a process of its own")
        died = False
        try:
            for i, _ in enumerate(model.generate(found.search_prompts, 0)):
                if i == 5:
                    os.kill(ours[-1], signal.SIGKILL)
        except EngineDied:
            died = True
        expect(died, "a kill that is noticed")
        started = time.perf_counter()
        model.restart()
        restart_s = time.perf_counter() - started
        [after] = answers_at(model, 0.7)
        expect(after[0] == before[0], "the same weights")
        expect(model.noise.same(after[1], before[1]), "the same answer")
        n = sum(isinstance(c, Completion) for c in model.generate(found.search_prompts, 0))
        expect(n == len(found.search_prompts), "an answer to every prompt")
    return {"restart_s": restart_s}


def _of_family(family: str) -> Callable[..., Figures]:
    def part(folder: Path, *, small: bool) -> Figures:
        return switching(folder, small=small, family=family)

    return part


# name -> the part, and its time limit in seconds
PARTS: dict[str, tuple[Callable[..., Figures], float]] = {
    "sources on the device": (sources_on_device, 120),
    "sources on the host": (sources_on_host, 120),
    # what no CPU can show comes first
    "twin mixtral": (_of_family("mixtral"), 120),
    "twin deepseek-v2": (_of_family("deepseek-v2"), 120),
    "twin glm4-moe": (_of_family("glm4-moe"), 120),
    "kill and restart": (kill_and_restart, 180),
    "reward model": (reward_model, 120),
    "barriers": (barriers, 120),
}
