"""make bench: tokens a second of the live engine, as a share of what this machine's own matrix products allow.

A token costs 2 x parameters operations in matrix products (a prompt's token none in the vocabulary's matrix), so a
machine whose products run at P operations a second allows a certain time if all else were free. P is measured here, in
the engine's own process and on its own shapes: float32 products by torch, of as many rows as the engine has sequences.
The share counts prompts and new tokens; that of the new tokens alone, as if prompts were free, is given beside it.

Each way runs to its end in a process of its own, one after the other: an arithmetic multiplied in vLLM's own way
(oneDNN's blocks, packed anew at each switch), or with `/plain` by products from load layout, which a switch could write
for good. All answer at alpha = 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from typing import Any

from expo_search.config.presets import load_study, studies_folder
from expo_search.contracts import Completion
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.prompts import load_prompts


def main() -> None:
    """Measure every way in a process of its own, print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="demo")
    parser.add_argument("--n-prompts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2, help="of all prompts, after a few that warm up")
    parser.add_argument("--ways", default="float32,bfloat16", help="arithmetics, each with /plain for plain products")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.pair, options.n_prompts, options.rounds, options.one)))
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    results = {}
    for way in options.ways.split(","):
        same = ["--pair", options.pair, "--n-prompts", str(options.n_prompts), "--rounds", str(options.rounds)]
        command = [sys.executable, __file__, "--one", way, *same]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[way] = json.loads(run.stdout.splitlines()[-1])
    report(options.pair, options.n_prompts, results)


def report(pair: str, n_prompts: int, results: dict[str, dict[str, Any]]) -> None:
    import torch

    first = next(iter(results.values()))
    print(f"{date.today()}  {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores")
    print(f"{pair}: {first['n_parameters'] / 1e6:.0f} M parameters, {n_prompts} prompts at a time")
    products = statistics.median(r["products"] for r in results.values())
    print(f"  float32 products: {products / 1e9:.0f} GFLOP/s; for new tokens alone they allow", end=" ")
    print(f"{products / (2 * first['n_parameters']):.0f} tokens/s")
    for way, r in results.items():
        alone = 2 * r["n_parameters"] * r["tokens_s"] / products
        print(
            f"  {way:15}{r['tokens_s']:5.0f} tokens/s   {r['operations_s'] / products:4.0%} of the products' speed "
            f"({alone:.0%} by new tokens alone)   {r['tokens_s'] / first['tokens_s']:.2f} x the first   "
            f"switch {r['switch_s']:.3f} s"
        )


def measure(preset: str, n_prompts: int, rounds: int, way: str) -> dict[str, Any]:
    """Tokens a second in the median of the rounds, seconds of a switch, operations a second of float32 products."""
    arithmetic, _, product = way.partition("/")
    spec = load_study(preset=preset)
    pair = resolve_pair(spec.pair, trust_remote_code=False, say=lambda _: None)
    prompts = load_prompts(str(studies_folder() / spec.prompts.source), spec.prompts.split, 0, print)[:n_prompts]
    engine = spec.engine.model_copy(update={"arithmetic": arithmetic, "max_num_seqs": n_prompts})
    model = VllmModel(ModelSpec(pair.aligned.path, pair.sft.path, spec.sampling, engine, 0))
    llm = model._engine._llm
    seconds, switches, n = [], [], 0
    [(body, head, products)] = llm.collective_rpc(_products, args=(n_prompts,))
    for i in range(1 + rounds):  # the first, of a few, warms up
        switches.append(model.materialize(0.1 * (1 + i)).seconds)
        model.materialize(0.0)  # whose weights plain products have: the same answers in every way
        if product == "plain":
            llm.collective_rpc(_multiply_plainly)
        started = time.perf_counter()
        n = sum(c.n_tokens for c in model.generate(prompts if i else prompts[:8], 0) if isinstance(c, Completion))
        seconds.append(time.perf_counter() - started)
    took, n_prompt_tokens = statistics.median(seconds[1:]), sum(len(model._fitting(p)) for p in prompts)
    return {
        "tokens_s": n / took,
        "operations_s": 2 * ((n + n_prompt_tokens) * body + n * head) / took,
        "switch_s": statistics.median(switches[1:]),
        "n_parameters": body + head,
        "products": products,
    }


def _multiply_plainly(worker: Any) -> None:
    """Every linear layer's product from a copy of aligned in load layout, by torch."""
    import torch

    weights = {(id(w.module), w.attribute): w for w in worker._expo()[0]._weights}
    tied = {id(w.tensor): w for w in weights.values()}
    for module in worker.model_runner.get_model().modules():
        if hasattr(module, "cpu_linear"):
            weight = weights.get((id(module), "weight")) or tied[id(module.weight)]
            matrix = weight.aligned.to(weight.live_dtype)
            module.cpu_linear = lambda x, _, bias, matrix=matrix: torch.nn.functional.linear(x, matrix, bias)


def _products(worker: Any, rows: int) -> tuple[int, int, float]:
    """(parameters of the layers, of the vocabulary, operations a second of float32 products of both)."""
    import torch

    vocabulary = worker.model_config.get_vocab_size()
    shapes = [w.shape for w in worker._expo()[0]._weights if len(w.shape) == 2]
    layers, [head, *_] = [s for s in shapes if s[0] < vocabulary], [s for s in shapes if s[0] >= vocabulary]
    matrices = [torch.randn(shape) for shape in (*layers, head)]
    inputs = {shape[1]: torch.randn(rows, shape[1]) for shape in layers}
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for matrix in matrices:
            torch.nn.functional.linear(inputs[matrix.shape[1]], matrix)
        best = min(best, time.perf_counter() - started)
    body = sum(shape.numel() for shape in layers)
    return body, head.numel(), 2 * (body + head.numel()) * rows / best


if __name__ == "__main__":
    main()
