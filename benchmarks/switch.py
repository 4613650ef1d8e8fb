"""make bench: one switch of alpha against what it replaces, measured side by side in one process.

Prints seconds and ratios for: a copy of as many bytes (the memory's own speed), a switch by its parts, and a fresh
engine on a checkpoint. Bytes of a switch: both sources read, the weight written.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

from expo_search.engine import ModelSpec
from expo_search.evaluator import VllmModel
from expo_search.pairs import resolve_pair
from expo_search.study import load_study

REPEATS = 7


def seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="demo")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    spec = load_study(preset=options.pair)
    pair = resolve_pair(spec.pair, trust_remote_code=False, say=print)
    model_spec = ModelSpec(pair.aligned.path, pair.sft.path, spec.sampling, spec.engine, spec.search.seed)
    started = time.perf_counter()
    model = VllmModel(model_spec)
    fresh_s = time.perf_counter() - started - model.canary_s
    rpc = model._llm.collective_rpc
    n_bytes = model.sources.n_bytes // 2
    source = torch.empty(n_bytes * 3 // 4, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source))  # reads 1.5 and writes 1.5 times the weights: 3, like a switch
    alphas = iter([0.1 * i for i in range(1, 1000)])
    parts: list[dict[str, float]] = []
    switch_s = seconds(lambda: parts.append(rpc("expo_switch", args=(next(alphas),))[0]["seconds"]))
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"{options.pair}: {n_bytes / 1e9:.3f} GB of weights, medians of {REPEATS}")
    print(f"  copy of the same bytes        {copy_s:8.3f} s   {3 * n_bytes / copy_s / 1e9:6.1f} GB/s")
    median = {k: statistics.median(p[k] for p in parts) for k in parts[0]}
    print(f"  switch, whole                 {switch_s:8.3f} s   {switch_s / copy_s:6.1f} x the copy")
    for part, part_s in median.items():
        print(f"    {part:8}                    {part_s:8.3f} s   {part_s / copy_s:6.1f} x the copy")
    print(f"  fresh engine                  {fresh_s:8.3f} s   {fresh_s / switch_s:6.1f} x a switch")


if __name__ == "__main__":
    main()
