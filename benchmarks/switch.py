"""make bench: one switch of alpha against what it replaces, measured side by side in one process.

Prints seconds and ratios for: a copy (the memory's own speed), the weights written in load layout (the kernel's part
of a switch, in bfloat16 and widened to float32), a switch and the part of it that is vLLM's packing, vLLM's
`reload_weights` from a checkpoint on disk (its own way to new weights in a running engine), the same with the export
that makes such a checkpoint, `load_weights` alone, from there and of a state dict in memory, after which the weights
must still be processed, the same tensor by tensor, and a fresh engine: plain vLLM on one folder.

Copy, writing and switch take turns, so that a busy moment of the machine hits all.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.config.presets import load_study
from expo_search.config.spec import EngineSpec, RewardSpec, SamplingSpec
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec, attention_settings, dtypes_of, engine_settings
from expo_search.exporting.checkpoint import Format, export
from expo_search.inputs.pair import resolve_pair

ROUNDS = 15
ENGINE = EngineSpec(max_model_len=512, max_num_seqs=16, kv_cache_gib=1)
LOADING: dict[str, float] = {}


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median(call: Callable[[], Any], repeats: int = 3) -> float:
    """Median time of a call, after one to warm up."""
    call()
    return statistics.median(timed(call) for _ in range(repeats))


def register_timed_loader() -> None:
    """A load format that also times `load_weights`, while the model is still in load layout."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    from expo_search.engine.worker.loader import ExpoLoader

    @register_model_loader("expo-timed")
    class TimedLoader(ExpoLoader):
        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            LOADING["from disk"] = median(lambda: DefaultModelLoader.load_weights(self, model, model_config))
            checkpoint = open_checkpoint(Path(model_config.model), role="aligned")
            state = {name: checkpoint.read(name).clone() for name in checkpoint.tensors}
            LOADING["from memory"] = median(lambda: model.load_weights(iter(state.items())))
            LOADING["by tensor"] = median(lambda: [model.load_weights(iter([item])) for item in state.items()])


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
    parser.add_argument("--fresh", type=Path, help="only start plain vLLM on this folder and print the seconds")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if options.fresh:
        print(plain_vllm(options.fresh))
    elif options.pair == "random-1b":
        with tempfile.TemporaryDirectory() as folder:
            measure(options.pair, *random_pair(Path(folder)))
    else:
        pair = resolve_pair(load_study(preset=options.pair).pair, trust_remote_code=False, say=print)
        measure(options.pair, pair.aligned.path, pair.sft.path)


def plain_vllm(folder: Path) -> float:
    """Seconds in which vLLM, without anything of ours, starts on a checkpoint, with our engine's own settings."""
    environment, settings = engine_settings(ENGINE, cuda=False, gpu_memory_utilization=None)
    os.environ.update(environment)
    from vllm import LLM  # its import is not the engine's time

    aligned = open_checkpoint(folder, role="aligned")
    dtype = dtypes_of(ENGINE, RewardSpec(), aligned).engine
    settings |= attention_settings(aligned.config, dtype, cuda=False)
    settings |= {"dtype": dtype, "max_model_len": ENGINE.max_model_len, "disable_log_stats": True}
    engines = []  # its end is not its start
    return timed(lambda: engines.append(LLM(str(folder), **settings)))


def measure(name: str, aligned: Path, sft: Path) -> None:
    """Start engines, time them, switches and loads, print."""
    alone = [sys.executable, __file__, "--fresh", str(aligned)]  # in a process of its own: memory for one
    fresh = [subprocess.run(alone, stdout=subprocess.PIPE, text=True, check=True).stdout for _ in range(1 + 3)]
    fresh_s = statistics.median(float(out.split()[-1]) for out in fresh[1:])  # the first one fills the page cache
    register_timed_loader()
    model = VllmModel(ModelSpec(aligned, sft, SamplingSpec(max_tokens=64), ENGINE, 0, load_format="expo-timed"))
    report(name, model, fresh_s, aligned, sft)


class Switches:
    """A switch, its weights written in load layout only, and a copy; in this process, where the engine is too."""

    def __init__(self, model: VllmModel) -> None:
        import torch

        from expo_search.weights.cpu_kernel import Kernel, load_kernel

        self._rpc = model._engine._llm.collective_rpc
        [weights] = self._rpc(lambda worker: worker._expo()[0]._weights)
        kernel = load_kernel()
        if kernel is None:
            raise SystemExit("no C compiler: nothing to compare")
        self.kernel = kernel
        self.n_bytes = sum(w.aligned.nbytes for w in weights)
        self.derive_s = list[float]()
        self._weights = [w for w in weights if Kernel.takes(w.aligned, w.aligned, w.sft)]
        self._outs = {d: [w.aligned.to(d) for w in self._weights] for d in (torch.bfloat16, torch.float32)}
        self._source = torch.empty(min(3 * self.n_bytes, 2 << 30) // 4, dtype=torch.bfloat16).normal_()
        self._target = torch.zeros_like(self._source)
        sources = sum(w.aligned.nbytes + w.sft.nbytes for w in self._weights)
        written = {d: sum(out.nbytes for out in outs) for d, outs in self._outs.items()}
        self.moved_bytes = {
            "copy": 2 * self._source.nbytes,
            "bfloat16": sources + written[torch.bfloat16],
            "float32": sources + written[torch.float32],
        }
        self._n = 0

    def copy(self) -> None:
        self._target.copy_(self._source)

    def write(self, dtype: str) -> None:
        import torch

        for weight, out in zip(self._weights, self._outs[getattr(torch, dtype)], strict=True):
            self.kernel.switch(out, weight.aligned, weight.sft, 0.7)

    def switch(self) -> None:
        self._n += 1
        [done] = self._rpc("expo_switch", args=(0.01 * self._n,))
        self.derive_s.append(done["seconds"]["derive"])


def engine_sentence(aligned: Path) -> str:
    """What the engine holds and multiplies in."""
    checkpoint = open_checkpoint(aligned, role="aligned")
    return dtypes_of(ENGINE, RewardSpec(), checkpoint).sentence().partition(";")[0]


def reloading(model: VllmModel, aligned: Path, sft: Path) -> tuple[float, float]:
    """Medians of an export, and of vLLM's loading of what it wrote into the running engine; weights are vLLM's then."""
    sources = open_checkpoint(aligned, role="aligned"), open_checkpoint(sft, role="sft")
    exports, reloads = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for i in range(1 + 3):  # the first warms up
            out = Path(folder) / str(i)
            took = timed(partial(export, *sources, 0.1 * (i + 1), out, Format()))
            paths = {"weights_path": str(out)}
            took_too = timed(partial(model._engine._llm.collective_rpc, "reload_weights", kwargs=paths))
            shutil.rmtree(out)
            if i:
                exports.append(took)
                reloads.append(took_too)
    return statistics.median(exports), statistics.median(reloads)


def report(name: str, model: VllmModel, fresh_s: float, aligned: Path, sft: Path) -> None:
    """Take turns, then print all figures: median, least, and speeds as shares of the copy's."""
    import torch

    on = Switches(model)
    calls: dict[str, Callable[[], None]] = {
        "copy": on.copy,
        "bfloat16": partial(on.write, "bfloat16"),
        "float32": partial(on.write, "float32"),
        "switch": on.switch,
    }
    times: dict[str, list[float]] = {label: [] for label in calls}
    for i in range(2 + ROUNDS):
        for label, call in calls.items():
            took = timed(call)
            if i >= 2:
                times[label].append(took)
    labels = {
        "copy": "copy (torch)",
        "bfloat16": "all weights, load layout",
        "float32": "the same, widened to float32",
    }
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{date.today()}  {platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {threads}")
    print(f"{name}: {on.n_bytes / 1e9:.3f} GB of weights, {engine_sentence(aligned)}")
    print(f"  {'':32}  median     least    read and written   share of the copy's speed (median, least)")
    for label in labels:
        mid, low = statistics.median(times[label]), min(times[label])
        scale = on.moved_bytes[label] / on.moved_bytes["copy"]
        shares = scale * statistics.median(times["copy"]) / mid, scale * min(times["copy"]) / low
        print(
            f"  {labels[label]:32}{mid:8.4f} s{low:8.4f} s   {on.moved_bytes[label] / mid / 1e9:6.1f} GB/s"
            f"         {shares[0]:5.0%}  {shares[1]:5.0%}"
        )
    switch_s = statistics.median(times["switch"])
    least_s, derive_s = min(times["switch"]), statistics.median(on.derive_s)
    share = f"{derive_s / switch_s:.0%} of it vLLM's packing"
    print(f"  {'switch':32}{switch_s:8.4f} s{least_s:8.4f} s   {share}")
    export_s, reload_s = reloading(model, aligned, sft)
    rows = {
        "export, then vLLM's reload_weights": export_s + reload_s,
        "vLLM's reload_weights from disk": reload_s,
        "load_weights alone, from disk": LOADING["from disk"],
        "load_weights alone, from memory": LOADING["from memory"],
        "the same, tensor by tensor": LOADING["by tensor"],
        "fresh engine, plain vLLM": fresh_s,
    }
    for label, s in rows.items():
        print(f"  {label:36}{s:8.3f} s   {s / switch_s:6.1f} x a switch")


if __name__ == "__main__":
    main()
