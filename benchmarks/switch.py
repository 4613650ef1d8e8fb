"""make bench: one switch of alpha against what it replaces, measured side by side in one process.

Prints seconds and ratios for: a copy of as many bytes (the memory's own speed), a switch and its parts, vLLM's
`load_weights` of a state dict that is in memory already, the same tensor by tensor, and a fresh engine on a
checkpoint. The bytes of a switch: two sources read, the weight written.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from expo_search.engine import ModelSpec
from expo_search.evaluator import VllmModel
from expo_search.pairs import resolve_pair
from expo_search.study import EngineSpec, SamplingSpec, load_study

REPEATS = 7
LOADING: dict[str, float] = {}


def seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of a call, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def register_timed_loader() -> None:
    """A load format that also times `load_weights`, while the model is still in load layout."""
    from vllm.model_executor.model_loader import register_model_loader

    from expo_search.checkpoint import open_checkpoint
    from expo_search.loader import ExpoLoader

    @register_model_loader("expo-timed")
    class TimedLoader(ExpoLoader):
        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            checkpoint = open_checkpoint(Path(model_config.model), role="aligned")
            state = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
            LOADING["whole"] = seconds(lambda: model.load_weights(iter(state.items())), 3)
            LOADING["by tensor"] = seconds(lambda: [model.load_weights(iter([item])) for item in state.items()], 3)


def random_pair(folder: Path) -> tuple[Path, Path]:
    """A random Llama of about a billion weights, twice, without a tokenizer of its own."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    demo = resolve_pair(load_study(preset="demo").pair, trust_remote_code=False, say=print).sft.path
    tokenizer = AutoTokenizer.from_pretrained(demo)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    for seed, name in enumerate(("aligned", "sft")):
        noise = torch.Generator().manual_seed(seed)
        state = {k: torch.empty(v.shape, dtype=v.dtype) for k, v in model.state_dict().items() if k != "lm_head.weight"}
        for tensor in state.values():
            tensor.normal_(0.0, 0.02, generator=noise)
        model.save_pretrained(folder / name, state_dict=state)
        tokenizer.save_pretrained(folder / name)
    return folder / "aligned", folder / "sft"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="demo", help="a preset, or `random-1b`")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if options.pair == "random-1b":
        with tempfile.TemporaryDirectory() as folder:
            measure(options.pair, *random_pair(Path(folder)))
    else:
        pair = resolve_pair(load_study(preset=options.pair).pair, trust_remote_code=False, say=print)
        measure(options.pair, pair.aligned.path, pair.sft.path)


def measure(name: str, aligned: Path, sft: Path) -> None:
    """Start an engine, time a copy and switches, print."""
    engine = EngineSpec(max_model_len=512, max_num_seqs=16, kv_cache_gib=1)
    spec = ModelSpec(aligned, sft, SamplingSpec(max_tokens=64), engine, 0)
    started = time.perf_counter()
    first = VllmModel(spec)  # also warms up imports and page cache
    first.close()
    started = time.perf_counter()
    fresh = VllmModel(spec)
    fresh_s = time.perf_counter() - started - fresh.canary_s
    fresh.close()
    del first, fresh
    register_timed_loader()
    model = VllmModel(ModelSpec(aligned, sft, SamplingSpec(max_tokens=64), engine, 0, load_format="expo-timed"))
    report(name, model, fresh_s)


def report(name: str, model: VllmModel, fresh_s: float) -> None:
    """Time the copy and the switch; print all figures."""
    import torch

    n_bytes = model.sources.n_bytes // 2
    copied_bytes = min(3 * n_bytes // 2, 1 << 30)
    source = torch.empty(copied_bytes // 2, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    rpc = model._llm.collective_rpc
    alphas = iter(0.1 * i for i in range(1, 1000))
    parts: list[dict[str, float]] = []
    copies, switches = [], []
    for _ in range(3):  # in turns, so that a busy moment of the machine hits both
        copies.append(seconds(lambda: target.copy_(source), 3))
        switches.append(seconds(lambda: parts.append(rpc("expo_switch", args=(next(alphas),))[0]["seconds"]), 3))
    # a copy moves its bytes twice, a switch moves the weights' bytes three times
    copy_s = statistics.median(copies) * (3 * n_bytes) / (2 * copied_bytes)
    switch_s = statistics.median(switches)
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(f"{name}: {n_bytes / 1e9:.3f} GB of weights; medians")
    print(f"  copy of as many bytes            {copy_s:8.3f} s   {3 * n_bytes / copy_s / 1e9:6.1f} GB/s")
    print(f"  switch, whole                    {switch_s:8.3f} s   {switch_s / copy_s:6.1f} x the copy")
    for part in parts[0]:
        part_s = statistics.median(p[part] for p in parts)
        print(f"    {part:6}                         {part_s:8.3f} s   {copy_s / part_s:6.0%} of the copy's speed")
    rows = {"load_weights, state dict in memory": LOADING["whole"], "the same, tensor by tensor": LOADING["by tensor"]}
    for label, s in (rows | {"fresh engine": fresh_s}).items():
        print(f"  {label:34}{s:7.3f} s   {s / switch_s:6.1f} x a switch")


if __name__ == "__main__":
    main()
