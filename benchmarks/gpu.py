"""python benchmarks/gpu.py: what only a GPU can prove, in ten minutes. Needs torch, numpy and this package.

Without vLLM:

1. Bits: weights and fingerprints on the device against the CPU, over random and extreme inputs.
2. Speed: a switch of a 7B-shaped set of bfloat16 weights, sources on the device, against a copy on the device: by torch
   operations, and as an engine does it, with the fingerprint, by the Triton kernel where it gives torch's bits
   (`gpu_kernel.py`). What one switch launches, and how often it waits for the device, is counted.
3. Graphs: a captured CUDA graph computes with what a switch wrote, and would not with weights that moved.
4. Host: an engine's switch with its sources streamed from pinned host memory, against the rate of plain copies from
   there; counted as well.

With vLLM, where it is installed, the parts of `gpu_engine.py`, on real engines: canary and switches with sources on
either side, captured graphs, a trial with and without barriers, the reward model at 16,384 tokens, an engine that is
killed, and twins of Mixtral, DeepSeek-V2 and GLM-4-MoE.

Each part is a process of its own with a time limit, and the next one runs where one fails. Where there is no GPU the
sizes are small and the third part is left out: a check of this script, not of a GPU.
Exits with 1 where a part fails; slow is not wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from expo_search.engine.worker.host_memory import host_memory
from expo_search.engine.worker.live_memory import keeping_storage
from expo_search.engine.worker.source_pieces import PIECE, PieceReader
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, Fingerprinter
from expo_search.weights.formula import Extrapolator, plain_theta

ALPHAS = (0.0, 0.3, -0.4, 1.0, 8.0, 25.0, 1e-8, -1e30)
COPY_BYTES = 4 << 30  # of the largest buffer that the rate of copies is measured with
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
REPEATS = 7
GOAL = "goal 90 %"
WAITS = frozenset({"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"})


@dataclass(frozen=True)
class Weight:
    """A live weight and its two sources."""

    out: torch.Tensor
    aligned: torch.Tensor
    sft: torch.Tensor


class Timer:
    """Wall time of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, call: Callable[[], Any], repeats: int = REPEATS) -> float:
        """Median, after one call to warm up."""
        times = []
        for _ in range(1 + repeats):
            self._wait()
            started = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


WITHOUT_VLLM = {"bits": 60.0, "switch": 90.0, "graphs": 60.0, "host": 90.0}  # part -> time limit in seconds


@dataclass(frozen=True)
class Result:
    """What came of a part: `ok` is None where it was not run, and `why` says why, or what failed."""

    part: str
    ok: bool | None
    seconds: float
    why: str = ""
    figures: dict[str, Any] | None = None

    def row(self) -> str:
        state = {True: "pass", False: "FAIL", None: "-"}[self.ok]
        text = self.why or ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.said())
        return f"{self.part:24}{state:6}{self.seconds:7.1f} s   {text}"

    def said(self) -> list[tuple[str, Any]]:
        return [(k, v) for k, v in (self.figures or {}).items() if k != "lines"]


def main() -> int:
    """Run the parts and print a table; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="weights of a few MB, few prompts; always without a GPU")
    parser.add_argument("--parts", help="names of parts, with commas; default: all")
    parser.add_argument("--limit", type=float, default=600, help="seconds of all parts together")
    parser.add_argument("--json", action="store_true", help="results as JSON, and nothing else")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    small = options.small or options.device == "cpu"
    if options.one:
        return run_one(options.one, options.folder, torch.device(options.device), small=small)
    limits = part_limits()
    chosen = options.parts.split(",") if options.parts else list(limits)
    if unknown := set(chosen) - set(limits):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(limits)}")
    say: Callable[[str], None] = (lambda _: None) if options.json else print
    about = machine(options.device)
    say(f"{about}{', small sizes' if small else ''}")
    results, end = list[Result](), time.perf_counter() + options.limit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part that runs is ended, too
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen:
            arguments = ["--one", part, "--folder", folder, "--device", options.device, *(["--small"] if small else [])]
            results.append(run_part(part, arguments, min(limits[part], end - time.perf_counter()), Path(folder)))
            for line in (results[-1].figures or {}).get("lines", []):
                say(line)
            say(results[-1].row())
    failed = [r.part for r in results if r.ok is False]
    say(f"{len(failed)} FAILED: {', '.join(failed)}" if failed else "every part that ran passed")
    if options.json:
        print(json.dumps({"machine": about, "small": small, "parts": [vars(r) for r in results]}, indent=1))
    return int(bool(failed))


def machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{date.today()}  {name}, torch {torch.__version__}, {platform.machine()}"


def part_limits() -> dict[str, float]:
    """The parts and their time limits in seconds."""
    if find_spec("vllm") is None:
        return WITHOUT_VLLM
    from gpu_engine import PARTS

    return WITHOUT_VLLM | {name: limit for name, (_, limit) in PARTS.items()}


def run_part(part: str, arguments: list[str], limit_s: float, folder: Path) -> Result:
    """Run a part in a process of its own, which ends with all that it started."""
    if limit_s <= 0:
        return Result(part, None, 0.0, "not run: the time of all parts together (--limit) was over")
    if part == "graphs" and "cuda" not in arguments:
        return Result(part, None, 0.0, "only with CUDA")
    log, said = folder / f"{part.replace(' ', '-')}.log", folder / f"{part.replace(' ', '-')}.json"
    started, in_time = time.perf_counter(), True
    with log.open("w") as errors, said.open("w") as output:  # no pipes, which what is left of an engine may hold open
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdout=output, stderr=errors, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    last = last_line(log.read_text())
    if not in_time:
        return Result(part, False, seconds, f"not done within {limit_s:.0f} s; its last words: {last}")
    lines = [line for line in said.read_text().splitlines() if line.startswith("{")]
    figures = json.loads(lines[-1]) if lines else None
    if process.returncode or figures is None:
        return Result(part, False, seconds, last or f"it ended with code {process.returncode}", figures)
    return Result(part, True, seconds, "", figures)


def last_line(text: str) -> str:
    """The last line that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "Wrong" in line]
    return (errors or lines or [""])[-1][:300]


def run_one(part: str, folder: Path, device: torch.device, *, small: bool) -> int:
    """Run one part in this process, and print its figures as the last line."""
    if part in WITHOUT_VLLM:
        lines = list[str]()
        wrong = without_vllm(part, device, lines.append, small=small)
        print(json.dumps({"lines": lines}))
        if wrong:
            print(f"Wrong: {wrong} results", file=sys.stderr)
        return int(bool(wrong))
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as the command line sets it
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from gpu_engine import PARTS

    print(json.dumps(PARTS[part][0](folder, small=small)))
    return 0


def without_vllm(part: str, device: torch.device, say: Callable[[str], None], *, small: bool) -> int:
    """Wrong results of a part without vLLM."""
    if part == "bits":
        return bits(device, say)
    if part == "graphs":
        return graphs(device, say)
    return (switch if part == "switch" else host)(device, say, small=small)


def bits(device: torch.device, say: Callable[[str], None]) -> int:
    """Every alpha, every dtype of both sources: device and CPU must agree on each bit, NaN on where it is."""
    wrong = n = 0
    for dtype, sft_dtype, alpha in product(DTYPES, DTYPES, ALPHAS):
        aligned, sft = inputs(dtype), inputs(sft_dtype).flip(0)[: len(inputs(dtype))]
        aligned = aligned[: len(sft)]
        expected = plain_theta(aligned, sft, alpha).to(dtype)
        on_device = torch.empty_like(aligned, device=device)
        Extrapolator().into(on_device, aligned.to(device), sft.to(device), alpha)
        plain_on_device = plain_theta(aligned.to(device), sft.to(device), alpha).to(dtype)
        for found in (on_device.cpu(), plain_on_device.cpu()):
            wrong += not same(found, expected)
            n += 1
        wrong += Fingerprinter().tensor_sum(on_device) != Fingerprinter().tensor_sum(on_device.cpu())
    say(f"bits: {n} comparisons of {len(inputs(DTYPES[0]))} elements and their fingerprints, {wrong} differ")
    return wrong + kernel_bits(device, say)


def kernel_bits(device: torch.device, say: Callable[[str], None]) -> int:
    """The same of the Triton kernel, in bfloat16. A GPU on which it is not used is a wrong result: nothing is tried."""
    kernel = gpu_kernel(device)
    if kernel is None:
        say(f"Triton kernel: NOT USED: {why_no_kernel(device)}")
        return int(device.type == "cuda")
    wrong = sum(not kernel_agrees(kernel, device, alpha) for alpha in ALPHAS)
    say(f"Triton kernel: {len(ALPHAS)} comparisons, {wrong} differ")
    return wrong


def kernel_agrees(kernel: Any, device: torch.device, alpha: float) -> bool:
    """The Triton kernel against the CPU, on all finite inputs: which results are finite, their bits, the sum."""
    finite = inputs(torch.bfloat16)
    finite = finite[finite.isfinite()]
    aligned, sft = finite[: len(finite) // 2 * 2], finite.flip(0)[: len(finite) // 2 * 2]
    out = torch.empty_like(aligned, device=device)
    total = torch.zeros((), dtype=torch.int64, device=device)
    kernel.switch(out, aligned.to(device), sft.to(device), alpha, total)
    found, expected = out.cpu(), plain_theta(aligned, sft, alpha).bfloat16()
    stays = expected.isfinite()
    same_bits = same(found[stays], expected[stays]) and torch.equal(found.isfinite(), stays)
    return same_bits and int(total) & MASK == Fingerprinter().tensor_sum(found)


def inputs(dtype: torch.dtype) -> torch.Tensor:
    """Every bit pattern of a half (infinities, NaN, subnormals, both zeros), extremes of float32, random numbers."""
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32)
    if dtype == torch.float32:
        special = torch.cat([patterns << 16, (patterns << 16) | 0xFFFF, patterns.abs(), 0x7F800000 - patterns.abs()])
        special = special.view(torch.float32)
    else:
        special = patterns.to(torch.int16).view(dtype)
    noise = torch.Generator().manual_seed(11)
    shuffled = special[torch.randperm(len(special), generator=noise)]
    return torch.cat([special, shuffled, torch.randn(100_003, generator=noise).to(dtype)])


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bits; a NaN may have any, but only where one is expected."""
    equal = found.view(BITS[found.dtype]) == expected.view(BITS[found.dtype])
    return bool((equal | (found.isnan() & expected.isnan())).all())


def shapes(device: torch.device, small: bool, bytes_of_element: int) -> list[tuple[int, ...]]:
    """A Mistral-7B's, as vLLM fuses them; fewer layers where they would not fit in 85 % of the free memory."""
    hidden, inner, vocabulary, n_layers = (256, 704, 1000, 3) if small else (4096, 14336, 32000, 32)
    layer: list[tuple[int, ...]] = [
        (hidden * 3 // 2, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner), (hidden,), (hidden,),
    ]  # fmt: skip
    ends: list[tuple[int, ...]] = [(vocabulary, hidden), (vocabulary, hidden), (hidden,)]
    if device.type == "cuda":
        free = 0.85 * (torch.cuda.mem_get_info(device)[0] - 2 * COPY_BYTES)
        room = free / bytes_of_element - n_elements(ends) - 8 * PIECE
        n_layers = max(1, min(n_layers, int(room // n_elements(layer))))
    return ends[:1] + layer * n_layers + ends[1:]


def n_elements(of: Sequence[tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in of)


def make_weights(device: torch.device, small: bool, *, on_host: bool) -> list[Weight]:
    """Random sources, an empty live weight each."""
    sizes = shapes(device, small, 2 if on_host else 6)
    noise = torch.Generator(device).manual_seed(3)
    if on_host:
        on_gpu = device.type == "cuda"
        sources = [list(host_memory([(torch.Size(s), torch.bfloat16) for s in sizes], pinned=on_gpu)) for _ in range(2)]
    else:
        sources = [[torch.empty(s, dtype=torch.bfloat16, device=device) for s in sizes] for _ in range(2)]
    live = [torch.empty(s, dtype=torch.bfloat16, device=device) for s in sizes]
    for out, *pair in zip(live, *sources, strict=True):
        for source in pair:
            source.copy_(out.normal_(0, 0.02, generator=noise))
    return [Weight(*tensors) for tensors in zip(live, *sources, strict=True)]


class Switch:
    """What `materializer.LiveWeights` does with weights in load layout on a GPU."""

    def __init__(self, device: torch.device, weights: list[Weight], *, stage: bool) -> None:
        self.weights, self.kernel = weights, gpu_kernel(device)
        self._reader = PieceReader(device, stage=stage)
        self._extrapolator, self._fingerprinter = Extrapolator(), Fingerprinter()

    def write(self, alpha: float) -> None:
        for weight, start, aligned, sft in self._reader.read(self.weights):
            self._extrapolator.into(weight.out.view(-1)[start : start + len(aligned)], aligned, sft, alpha)

    def write_and_sum(self, alpha: float) -> list[int]:
        """As an engine does it: each piece by the Triton kernel, or by torch where that is not used; sums read once."""
        sums = {id(w): torch.zeros((), dtype=torch.int64, device=w.out.device) for w in self.weights}
        for weight, start, aligned, sft in self._reader.read(self.weights):
            part, total = weight.out.view(-1)[start : start + len(aligned)], sums[id(weight)]
            block = start // (2 * WORDS_PER_BLOCK)
            if self.kernel is not None and self.kernel.takes(part, aligned, sft):
                self.kernel.switch(part, aligned, sft, alpha, total, block)
            else:
                self._extrapolator.into(part, aligned, sft, alpha)
                total += self._fingerprinter.device_sum(part, block)
        return [number & MASK for number in torch.stack(list(sums.values())).tolist()]

    def by(self) -> str:
        """What writes and sums."""
        return "torch" if self.kernel is None else "Triton"

    def n_pieces(self) -> int:
        return sum(1 for _ in self._reader.read(self.weights))

    def fingerprint(self) -> list[int]:
        return [self._fingerprinter.tensor_sum(weight.out) for weight in self.weights]

    def expected(self, alpha: float) -> list[int]:
        """By the formula, piece by piece, from sources that are read without streaming."""
        sums = []
        for w in self.weights:
            total = 0
            for start in range(0, w.aligned.numel(), PIECE):
                a, s = (t.view(-1)[start : start + PIECE].to(w.out.device) for t in (w.aligned, w.sft))
                theta = plain_theta(a, s, alpha).to(w.out.dtype)
                total += self._fingerprinter.tensor_sum(theta, start * theta.itemsize // (4 * WORDS_PER_BLOCK))
            sums.append(total & MASK)
        return sums


def switch(device: torch.device, say: Callable[[str], None], *, small: bool) -> int:
    """Sources on the device: right weights, and the share of a copy's bandwidth."""
    timer, live = Timer(device), Switch(device, make_weights(device, small, on_host=False), stage=False)
    n_bytes = sum(w.out.nbytes for w in live.weights)
    rate = 2 * copy_rate(timer, torch.empty(min(n_bytes, COPY_BYTES) // 2, dtype=torch.bfloat16, device=device), device)
    write_s = timer.seconds(lambda: live.write(0.7))
    sum_s = timer.seconds(live.fingerprint)
    say(f"switch of {n_bytes / 1e9:.2f} GB in {len(live.weights)} weights, sources on the device")
    say(f"  copy on the device             {rate / 1e9:8.1f} GB/s, read and written")
    say(f"  write                          {write_s:8.4f} s   {3 * n_bytes / write_s / rate:6.1%} of the copy's speed")
    say(f"  fingerprint                    {sum_s:8.4f} s   {n_bytes / sum_s / rate:6.1%} of the copy's speed")
    switch_s = timer.seconds(lambda: live.write_and_sum(0.7))
    share = 3 * n_bytes / switch_s / rate
    say(f"  write and fingerprint, {live.by():7} {switch_s:8.4f} s   {share:6.1%} of the copy's speed, {GOAL}")
    say_counts(live, say)
    return check_weights(live, say)


def host(device: torch.device, say: Callable[[str], None], *, small: bool) -> int:
    """Sources in pinned host memory: right weights, and the share of what plain copies from there reach."""
    timer, live = Timer(device), Switch(device, make_weights(device, small, on_host=True), stage=True)
    read_bytes = sum(w.aligned.nbytes + w.sft.nbytes for w in live.weights)
    rate = copy_rate(timer, max((w.aligned for w in live.weights), key=lambda t: t.numel()), device)
    switch_s = timer.seconds(lambda: live.write_and_sum(0.7), 3)
    share = read_bytes / switch_s / rate
    say(f"switch of {read_bytes / 2e9:.2f} GB, sources streamed from pinned host memory")
    say(f"  copy from there                {rate / 1e9:8.1f} GB/s")
    say(f"  write and fingerprint, {live.by():7} {switch_s:8.4f} s   {share:6.1%} of the copy's speed, {GOAL}")
    say_counts(live, say)
    return check_weights(live, say)


def say_counts(live: Switch, say: Callable[[str], None]) -> None:
    """What one switch asks of a device; nothing where there is none. It has run before: no key is made any more."""
    if live.weights[0].out.device.type != "cuda":
        return
    counts = profiled(lambda: live.write_and_sum(0.7))
    counts.subtract(profiled(lambda: None))  # the profiler waits for the device itself
    say(
        f"  one switch: {counts['kernels']} kernels and {counts['copies']} copies for {live.n_pieces()} pieces of "
        f"{len(live.weights)} weights; waits for the device {counts['waits']} times, goal 1"
    )


def profiled(call: Callable[[], Any]) -> Counter[str]:
    """Counts, by `tally`, of what a call does on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
    return tally((event.name, event.device_type.name != "CPU") for event in profiler.events())


def tally(events: Iterable[tuple[str, bool]]) -> Counter[str]:
    """Kernels, copies and waits among the events of a profile: each by its name, and whether the device did it.

    Kernels and copies are counted where they ran: what launches them has several names, Triton's and torch's.
    """
    counts = Counter[str]()
    for name, on_device in events:
        if on_device:
            counts["copies" if name.startswith(("Memcpy", "Memset")) else "kernels"] += 1
        elif name in WAITS:
            counts["waits"] += 1
    return counts


def copy_rate(timer: Timer, source: torch.Tensor, device: torch.device) -> float:
    """Bytes of one large tensor that arrive on the device in a second."""
    target = torch.empty_like(source, device=device)
    return source.nbytes / timer.seconds(lambda: target.copy_(source, non_blocking=True))


def check_weights(live: Switch, say: Callable[[str], None]) -> int:
    """A -> B -> A: the formula's weights each time. Wrong alphas."""
    wrong = 0
    for alpha in (0.7, -0.4, 0.0, 0.7):
        expected = live.expected(alpha)
        live.write(alpha)
        wrong += live.fingerprint() != expected
        live.write(25.0)
        wrong += live.write_and_sum(alpha) != expected or live.fingerprint() != expected
    say(f"  weights against the formula, A -> B -> 0 -> A: {wrong} switches wrong")
    return wrong


def gpu_kernel(device: torch.device) -> Any:
    """The Triton kernel; None without Triton, without a GPU, or where it does not give the reference's bits."""
    try:
        from expo_search.weights.gpu_kernel import load_gpu_kernel
    except ImportError:
        return None
    return load_gpu_kernel(device)


def why_no_kernel(device: torch.device) -> str:
    try:
        from expo_search.weights.gpu_kernel import gpu_kernel_fault
    except ImportError as fault:
        return str(fault)
    return gpu_kernel_fault(device) or ""


class Layer(nn.Module):
    """A product whose weight can be written in place, or replaced as post-load processing replaces one."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight)

    def process(self) -> None:
        self.weight = nn.Parameter(self.weight.data.clone(), requires_grad=False)


def graphs(device: torch.device, say: Callable[[str], None]) -> int:
    """A captured graph reads weights by address. Wrong results."""
    noise = torch.Generator(device).manual_seed(5)
    aligned, sft = (torch.empty(512, 256, device=device).normal_(generator=noise).bfloat16() for _ in range(2))
    x = torch.empty(16, 256, device=device).normal_(generator=noise).bfloat16()
    layer = Layer(aligned)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set themselves up before a capture
            layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured: torch.Tensor = layer(x)

    def replay() -> torch.Tensor:
        graph.replay()
        torch.cuda.synchronize()
        return captured.clone()

    def at(alpha: float) -> torch.Tensor:
        return nn.functional.linear(x, plain_theta(aligned, sft, alpha).bfloat16())

    found = {"as captured": torch.equal(replay(), at(0.0))}
    Extrapolator().into(layer.weight.data, aligned, sft, 0.7)
    found["after a switch in place"] = torch.equal(replay(), at(0.7)) and not torch.equal(at(0.7), at(0.0))
    with keeping_storage(layer):
        Extrapolator().into(layer.weight.data, aligned, sft, -0.4)
        layer.process()
    found["after processing that replaced the weight"] = torch.equal(replay(), at(-0.4))
    layer.process()
    Extrapolator().into(layer.weight.data, aligned, sft, 2.0)
    found["and it would be noticed if the weight had moved"] = torch.equal(replay(), at(-0.4))
    for what, holds in found.items():
        say(f"graph {what}: {'right' if holds else 'WRONG'}")
    return sum(not holds for holds in found.values())


if __name__ == "__main__":
    sys.exit(main())
