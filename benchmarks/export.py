"""An export against a plain copy of the files that it makes, on the same disk, in turns; and the memory that it needs.

Both are timed until their bytes are on the disk (fsync of every file). What is read lies in the page cache, as after a
search. The export reads both sources, computes and writes; the copy reads what an export wrote. A virtual machine gives
free memory back to its host, and getting it again can take three times as long as either: so memory is touched before
each, and they swap their order from turn to turn. Prints medians and least times, their ratios, and the peak of
resident memory in a process of its own, over what it held before the export.
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
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from switch import random_pair

from expo_search.checkpoint.atomic_folder import sync_files
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.config.presets import load_study
from expo_search.dtypes import STORED
from expo_search.exporting.checkpoint import Format, export
from expo_search.inputs.pair import resolve_pair
from expo_search.weights.cpu_kernel import load_kernel

REPEATS, ALPHA = 10, 0.37
MOST_TOUCHED = 6 << 30  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="demo", help="a preset, or `random-1b`")
    parser.add_argument("--weights", choices=STORED, help="dtype that the pair is cast to before; its own by default")
    parser.add_argument("--dtype", choices=STORED, help="as of `expo-search export`")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--only", nargs=2, type=Path, metavar=("ALIGNED", "SFT"), help="export once; print the peak")
    options = parser.parse_args()
    form = Format(dtype=options.dtype)
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        if options.only:
            print_peak(opened(*options.only), folder / "out", form)
            return
        if options.pair == "random-1b":
            aligned, sft = random_pair(folder)
        else:
            pair = resolve_pair(load_study(preset=options.pair).pair, trust_remote_code=False, say=print)
            aligned, sft = pair.aligned.path, pair.sft.path
        if options.weights:
            aligned = cast(aligned, folder / "cast" / "aligned", options.weights)
            sft = cast(sft, folder / "cast" / "sft", options.weights)
        name = f"{options.pair}, {options.weights or 'as it is'} to {options.dtype or 'the same'}"
        measure(name, aligned, sft, folder, form)


def cast(source: Path, folder: Path, dtype: str) -> Path:
    """A checkpoint with its weights in another dtype."""
    shutil.copytree(source, folder)
    for file in folder.glob("*.safetensors"):
        tensors = {name: t.to(getattr(torch, dtype)) for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def opened(aligned: Path, sft: Path) -> tuple[Checkpoint, Checkpoint]:
    return open_checkpoint(aligned, role="aligned"), open_checkpoint(sft, role="sft")


def measure(name: str, aligned: Path, sft: Path, folder: Path, form: Format) -> None:
    sources = opened(aligned, sft)
    export(*sources, ALPHA, folder / "made", form)
    files = sorted((folder / "made").iterdir())
    n_bytes = sum(file.stat().st_size for file in files)

    def copy(out: Path) -> None:
        out.mkdir()
        for file in files:
            shutil.copyfile(file, out / file.name)
        sync_files(out)

    def write(out: Path) -> None:
        export(*sources, ALPHA, out, form)

    works = [("copy", copy), ("export", write)]
    taken: dict[str, list[tuple[float, float]]] = {label: [] for label, _ in works}
    for turn in range(REPEATS + 1):  # the first warms up
        works.reverse()
        for label, work in works:
            found = seconds(work, folder / label, touched=min(3 * n_bytes, MOST_TOUCHED))
            taken[label] += [found] if turn else []
    walls = {label: sorted(wall for wall, _ in times) for label, times in taken.items()}
    middle, least = ({label: of(times) for label, times in walls.items()} for of in (statistics.median, min))
    command = [sys.executable, __file__, "--folder", str(folder), "--only", str(aligned), str(sft)]
    command += ["--dtype", form.dtype] if form.dtype else []
    peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores")
    print(f"{name}: {n_bytes / 1e9:.3f} GB in {len(files)} files; medians of {REPEATS}, with fsync")
    for label, wall in middle.items():
        cpu = statistics.median(cpu for _, cpu in taken[label])
        speed = f"{n_bytes / wall / 1e9:6.2f} GB/s"
        print(f"  {label:6}   {wall:7.3f} s  {speed}  least {least[label]:.3f} s  {cpu:.3f} s of processor")
    shares = (times["copy"] / times["export"] for times in (middle, least))
    print("  the export's speed is {:.0%} of the copy's in the median, {:.0%} at their best".format(*shares))
    print(f"  peak memory of an export: {peak} over the process before it")


def seconds(work: Callable[[Path], None], out: Path, *, touched: int) -> tuple[float, float]:
    """(by the clock, of processor time over all threads); a busy machine stretches the first only."""
    os.sync()
    torch.ones(touched, dtype=torch.uint8)
    clock, processor = time.perf_counter(), time.process_time()
    work(out)
    found = time.perf_counter() - clock, time.process_time() - processor
    shutil.rmtree(out)
    return found


def print_peak(sources: tuple[Checkpoint, Checkpoint], out: Path, form: Format) -> None:
    load_kernel()
    torch.zeros(1).bfloat16()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports (Linux)
    before = peak_kib()
    export(*sources, ALPHA, out, form)
    print(f"{(peak_kib() - before) / 1024:.0f} MiB")


def peak_kib() -> int:
    """Of resident memory; not `ru_maxrss`, in which a process also has what its parent held before it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
