"""The formula in C, compiled once with the machine's `cc`: many weights in memory (`kernel.c`), and files (`stream.c`).

In memory, bfloat16 weights are switched in one pass; torch needs several over the float32 widenings, and one more for
the fingerprint. From files, all is done without the interpreter. Where there is no C compiler the torch versions do
the same work to the same bits (`extrapolate.py`, `fingerprint.py`), only slower.

All weights of a switch go through one call a thread, which take chunks of them in turn: a call for each weight would
cost more than the writing of most of them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from expo_search.fingerprint import MASK, WORDS_PER_BLOCK, block_keys, word_keys
from expo_search.pairs import cache_folder

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernel.c", "stream.c"))
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fPIC", "-shared")
_WIDE = ("-mprefer-vector-width=512",)  # x86: compilers else keep to half of an AVX512 register
_CHUNK = 1 << 18  # elements that a thread takes at a time: 100 us of work
_LARGEST_PANEL = 64
STREAM_BYTES = (2 << 17) + (1 << 20)  # two pieces as read, and 1 MiB written at a time
ALIGNED_ENDED, SFT_ENDED, TOO_LARGE = -1, -2, -3  # faults of `Kernel.stream`, as in stream.c
_STREAMED_DTYPES = ("BF16", "F16", "F32")  # as safetensors spells them, in the order of stream.c


@dataclass(frozen=True)
class Task:
    """One weight to write. Tensors are bfloat16, on the CPU, contiguous and of one shape (see `Kernel.takes`).

    Attributes:
        plain: gets theta(alpha) in load layout. None: nothing does.
        packed, panel: address of the weight's packed form, where it has one, and the rows of its blocks (`packed.py`).
    """

    aligned: torch.Tensor
    sft: torch.Tensor
    plain: torch.Tensor | None
    packed: int | None = None
    panel: int = 0


class _CTask(ctypes.Structure):
    """`struct task` of kernel.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("aligned", "sft", "plain", "packed")),
        *((name, ctypes.c_int64) for name in ("n", "start", "columns", "panel")),
    )


class Place(ctypes.Structure):
    """`struct place` of stream.c: an open file's descriptor, a byte in it, and how its numbers are held."""

    _fields_ = (("file", ctypes.c_int64), ("offset", ctypes.c_int64), ("dtype", ctypes.c_int64))

    @classmethod
    def of(cls, file: int, offset: int, dtype: str) -> Place:
        """`dtype`: one that `Kernel.streams`."""
        return cls(file, offset, _STREAMED_DTYPES.index(dtype))


class Plan:
    """Tasks as the compiled function reads them; keeps their tensors alive."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks, self.n = tuple(tasks), 0
        self.table = (_CTask * len(tasks))()
        for row, task in zip(self.table, tasks, strict=True):
            columns = task.aligned.shape[-1] if task.packed else 0
            assert task.panel <= _LARGEST_PANEL
            assert columns % 2 == 0
            row.aligned, row.sft, row.packed = task.aligned.data_ptr(), task.sft.data_ptr(), task.packed
            row.plain = None if task.plain is None else task.plain.data_ptr()
            row.n, row.start, row.columns, row.panel = task.aligned.numel(), self.n, columns, task.panel
            self.n += row.n
        largest = max((task.aligned.numel() for task in tasks), default=0)
        self.block_keys = block_keys(largest // (2 * WORDS_PER_BLOCK) + 1)


class Kernel:
    """The compiled functions, with keys and threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.expo_switch_bf16
        pointer = ctypes.c_void_p
        self._function.argtypes = [
            pointer, ctypes.c_int64, ctypes.c_float, pointer, pointer, ctypes.c_int64, ctypes.c_int64, pointer, pointer,
        ]  # fmt: skip
        self._function.restype = None
        self._has_float16 = bool(ctypes.c_int.in_dll(library, "expo_has_float16").value)
        self._stream = library.expo_stream
        self._stream.argtypes = [Place, Place, Place, ctypes.c_int64, ctypes.c_float, pointer, ctypes.c_int64]
        self._keys = word_keys()
        self._n_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max(1, self._n_threads - 1))  # ctypes lets go of the interpreter while C runs

    @staticmethod
    def takes(*tensors: torch.Tensor) -> bool:
        """Whether these tensors are bfloat16, on the CPU and contiguous."""
        return all(t.dtype == torch.bfloat16 and t.device.type == "cpu" and t.is_contiguous() for t in tensors)

    def run(self, plan: Plan, alpha: float) -> list[int]:
        """Write theta(alpha) wherever the plan says, in place; each task's fingerprint sum, of what was written."""
        n_threads = max(1, min(self._n_threads, plan.n // _CHUNK))
        sums = torch.zeros(n_threads, len(plan.tasks), dtype=torch.int64)
        following = ctypes.c_int64(0)

        def work(thread: int) -> None:
            self._function(
                plan.table, len(plan.tasks), alpha, self._keys.data_ptr(), plan.block_keys.data_ptr(),
                WORDS_PER_BLOCK, _CHUNK, ctypes.byref(following), sums[thread].data_ptr(),
            )  # fmt: skip

        others = [self._pool.submit(work, thread) for thread in range(1, n_threads)]
        work(0)  # this thread does its share; handing it over as well would cost two more switches of context
        for other in others:
            other.result()
        return [total & MASK for total in sums.sum(dim=0).tolist()]

    def switch(self, out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> int:
        """out <- theta(alpha), in place; the tensor's fingerprint sum."""
        return self.run(Plan([Task(aligned, sft, out)]), alpha)[0]

    def streams(self, *dtypes: str) -> bool:
        """Whether `stream` knows these dtypes, as safetensors spells them."""
        return all(d in _STREAMED_DTYPES and (d != "F16" or self._has_float16) for d in dtypes)

    def stream(self, aligned: Place, sft: Place, out: Place, n: int, alpha: float, memory: torch.Tensor) -> int:
        """n elements of theta(alpha) from two files to a third, on the calling thread, without the interpreter.

        Arithmetic as in `extrapolate.py`, rounded once to the dtype of `out`.

        Args:
            memory: `STREAM_BYTES` bytes that no other thread uses meanwhile.

        Returns:
            0, or why not all are written: `ALIGNED_ENDED`, `SFT_ENDED`, or a number `TOO_LARGE` for the dtype of `out`
            (or not finite in a source).

        Raises:
            OSError: a file cannot be read or written.
        """
        assert memory.nbytes >= STREAM_BYTES
        fault = int(self._stream(aligned, sft, out, n, alpha, memory.data_ptr(), memory.nbytes))
        if fault > 0:
            raise OSError(fault, os.strerror(fault))
        return fault


@cache
def load_kernel() -> Kernel | None:
    """The kernel, compiled into the cache folder the first time; None where it cannot be compiled."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or platform.system() != "Linux" or sys.byteorder != "little":
        return None
    flags = _FLAGS + (_WIDE if platform.machine() == "x86_64" else ())
    key = hashlib.sha256(repr(([s.read_bytes() for s in _SOURCES], flags, compiler, _cpu())).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"expo-{key}.so"
    try:
        if not library.is_file():
            _compile(compiler, flags, library)
        return Kernel(ctypes.CDLL(str(library)))
    except (OSError, subprocess.CalledProcessError, AttributeError, ValueError):
        return None


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    """Build beside the final name and rename: another process never sees half a file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        subprocess.run([compiler, *flags, "-o", str(built), *map(str, _SOURCES)], check=True, capture_output=True)
        built.replace(library)


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        return next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        return platform.processor()
