"""The switch of bfloat16 weights on a CPU in one pass over memory: `kernel.c`, compiled once with the machine's `cc`.

Torch needs several passes over the float32 widenings, and one more for the fingerprint. Where there is no C compiler
the torch versions do the same work to the same bits (`extrapolate.py`, `fingerprint.py`), only slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from expo_search.fingerprint import WORDS_PER_BLOCK, combine_blocks, keys
from expo_search.pairs import cache_folder

_SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_SMALL = 4 * WORDS_PER_BLOCK  # elements below which handing blocks to other threads costs more than it saves


class Kernel:
    """The compiled function with its keys and threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.expo_switch_bf16
        pointer = ctypes.c_void_p
        self._function.argtypes = [
            pointer, pointer, pointer, ctypes.c_float, ctypes.c_int64, pointer, ctypes.c_int64, pointer,
        ]  # fmt: skip
        self._function.restype = None
        self._keys = keys(0, WORDS_PER_BLOCK)
        self._n_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max(1, self._n_threads - 1))  # ctypes lets go of the interpreter while C runs

    @staticmethod
    def takes(out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor) -> bool:
        """Whether these tensors are bfloat16, on the CPU and contiguous."""
        return all(
            t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous() for t in (out, aligned, sft)
        )

    def switch(self, out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> int:
        """out <- theta(alpha), in place; the tensor's fingerprint sum, read back from what was written."""
        n = out.numel()
        sums = torch.empty(-(-n // (2 * WORDS_PER_BLOCK)), dtype=torch.int64)
        per_thread = -(-len(sums) // self._n_threads) if n > _SMALL else len(sums)

        def blocks(first: int) -> None:
            start, stop = 2 * WORDS_PER_BLOCK * first, min(n, 2 * WORDS_PER_BLOCK * (first + per_thread))
            data = (t.data_ptr() + start * t.element_size() for t in (out, aligned, sft))
            self._function(
                *data, alpha, stop - start, self._keys.data_ptr(), WORDS_PER_BLOCK, sums.data_ptr() + 8 * first
            )

        firsts = range(0, len(sums), max(1, per_thread))
        others = [self._pool.submit(blocks, first) for first in firsts[1:]]
        if n:
            blocks(0)  # this thread does its share; handing it over as well would cost two more switches of context
        for other in others:
            other.result()
        return combine_blocks(sums)


@cache
def load_kernel() -> Kernel | None:
    """The kernel, compiled into the cache folder the first time; None where it cannot be compiled."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.system() != "Linux":
        return None
    key = hashlib.sha256(_SOURCE.read_bytes() + repr((_FLAGS, compiler, _cpu())).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"expo-{key}.so"
    try:
        if not library.is_file():
            _compile(compiler, library)
        return Kernel(ctypes.CDLL(str(library)))
    except (OSError, subprocess.CalledProcessError, AttributeError):
        return None


def _compile(compiler: str, library: Path) -> None:
    """Build beside the final name and rename: another process never sees half a file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        subprocess.run([compiler, *_FLAGS, "-o", str(built), str(_SOURCE)], check=True, capture_output=True)
        built.replace(library)


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        return next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        return platform.processor()
