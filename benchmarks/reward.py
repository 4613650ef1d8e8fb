"""The two ways to run a reward model, side by side in one process: tokens a second, and how far their rewards differ.

    python benchmarks/reward.py --storage sqlite:///expo-search.db --study demo

rates the stored answers of a study's trial 0 to its search's prompts; without a database, made-up conversations: the
pair's prompts, each answered by another one. The reward model's own noise is transformers in bfloat16 against
transformers in float32; tokens are those of the conversations, without padding. Ways take turns, and the best of the
rounds counts.
"""

from __future__ import annotations

import argparse
import platform
import time
from contextlib import closing
from datetime import date

import numpy as np

from expo_search.config.presets import load_study, studies_folder
from expo_search.contracts import Completion
from expo_search.evaluation.conversation_scorer import ConversationScorer
from expo_search.evaluation.reward_model import SequenceRewardModel
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.prompts import load_prompts
from expo_search.session.process_state import process_left_as_it_was
from expo_search.session.reward_engine import start_reward_engine
from expo_search.store.study_store import Store


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--n", type=int, default=128, help="conversations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", help="database of a study whose answers are rated")
    parser.add_argument("--study", default="demo")
    options = parser.parse_args()
    spec = load_study(preset=options.pair)
    pair = resolve_pair(spec.pair, trust_remote_code=False, say=print, own_model=False)
    if options.storage:
        conversations = stored(options.storage, options.study)[: options.n]
    else:
        prompts = load_prompts(str(studies_folder() / spec.prompts.source), spec.prompts.split, 0, print)[: options.n]
        answers = [*prompts[1:], prompts[0]]
        conversations = [Completion(p, a.text, 0, "stop") for p, a in zip(prompts, answers, strict=True)]
    path = pair.reward_source.path

    def in_transformers(arithmetic: str) -> SequenceRewardModel:
        return SequenceRewardModel(path, spec.reward.model_copy(update={"arithmetic": arithmetic}))

    with process_left_as_it_was():
        started = time.perf_counter()
        served_spec = spec.model_copy(
            update={"reward": spec.reward.model_copy(update={"arithmetic": "bfloat16", "backend": "vllm"})}
        )
        with closing(start_reward_engine(served_spec, path, None)) as served:
            start_s = time.perf_counter() - started
            ways: dict[str, ConversationScorer] = {
                "transformers float32": in_transformers("float32"),
                "transformers bfloat16": in_transformers("bfloat16"),
                "vllm bfloat16": served,
            }
            n_tokens = sum(min(len(served._encode(c)), served._cap) for c in conversations)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            rewards: dict[str, np.ndarray] = {}
            for _ in range(options.rounds):
                for name, scorer in ways.items():
                    started = time.perf_counter()
                    values, _ = scorer.score(conversations, lambda _: None)
                    seconds[name].append(time.perf_counter() - started)
                    rewards[name] = np.array(values)
    report(n_tokens, seconds, rewards, start_s)


def report(n_tokens: int, seconds: dict[str, list[float]], rewards: dict[str, np.ndarray], start_s: float) -> None:
    import torch

    cpu = torch.cpu.get_capabilities()
    has_bf16 = "AVX512-BF16" if cpu.get("avx512_bf16") else "no AVX512-BF16"
    print(f"{date.today()}  {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {has_bf16}, ", end="")
    print(f"{torch.get_num_threads()} threads; vLLM's engine started in {start_s:.0f} s")
    exact, rounded, served = rewards.values()
    print(f"{len(exact)} conversations, {n_tokens} tokens; rewards' standard deviation {exact.std():.3f}")
    for name, took in seconds.items():
        print(f"  {name:22}{n_tokens / min(took):6.0f} tokens/s   (rounds: {', '.join(f'{s:.1f} s' for s in took)})")
    print("  differences of rewards, a - b:                     mean      sd  largest")
    show("transformers bfloat16 - float32 (its own noise)", rounded - exact)
    show("vllm bfloat16 - transformers float32", served - exact)
    show("vllm bfloat16 - transformers bfloat16", served - rounded)


def show(name: str, difference: np.ndarray) -> None:
    print(f"    {name:48}{difference.mean():+7.4f} {difference.std():7.4f} {np.abs(difference).max():8.4f}")


def stored(storage: str, study: str) -> list[Completion]:
    store = Store(storage, study, read_only=True)
    try:
        return [s.completion for s in store.completions(0, "search", store.prompts("search"))]
    finally:
        store.close()


if __name__ == "__main__":
    main()
