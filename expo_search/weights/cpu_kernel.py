"""The formula in C, compiled once with the machine's `cc`: in memory (`cpu_switch.c`), of files (`cpu_stream.c`).

In memory, a bfloat16 weight is switched in one pass; torch needs several over the float32 widenings, and one more for
the fingerprint. From files, all is done without the interpreter. Where it cannot be compiled the torch versions do the
same work to the same bits (`formula.py`, `fingerprint.py`), only slower; why goes to the log, once.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from expo_search.folders import cache_folder
from expo_search.text import cut, one_line
from expo_search.weights.fingerprint import MASK, WORDS_PER_BLOCK, block_keys, word_keys

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu_switch.c", "cpu_stream.c"))
_FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")
_EXACT = ("-ffp-contract=off", "-fno-fast-math")  # last: no flag of a user's may change the bits
_WIDE = ("-mprefer-vector-width=512",)  # x86: compilers else keep to half of an AVX512 register
_CHUNK_BLOCKS = 1 << 5  # blocks of the fingerprint that a thread takes at a time: 50 us of work
STREAM_BYTES = (2 << 17) + (1 << 20)  # two pieces as read, and 1 MiB written at a time
ALIGNED_ENDED, SFT_ENDED, TOO_LARGE = -1, -2, -3  # faults of `Kernel.stream`, as in cpu_stream.c
_STREAMED_DTYPES = ("BF16", "F16", "F32")  # as safetensors spells them, in the order of cpu_stream.c


class Place(ctypes.Structure):
    """`struct place` of cpu_stream.c: an open file's descriptor, a byte in it, and how its numbers are held."""

    _fields_ = (("file", ctypes.c_int64), ("offset", ctypes.c_int64), ("dtype", ctypes.c_int64))

    @classmethod
    def of(cls, file: int, offset: int, dtype: str) -> Place:
        """From a file descriptor, an offset in bytes and a dtype for which `Kernel.streams` is true."""
        return cls(file, offset, _STREAMED_DTYPES.index(dtype))


class Kernel:
    """The compiled functions, with keys and threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.expo_switch_bf16
        pointer = ctypes.c_void_p
        self._function.argtypes = [
            pointer, pointer, pointer, pointer, ctypes.c_int64, ctypes.c_float, pointer, pointer, ctypes.c_int64,
            ctypes.c_int64, pointer,
        ]  # fmt: skip
        self._function.restype = ctypes.c_uint64
        self._has_float16 = bool(ctypes.c_int.in_dll(library, "expo_has_float16").value)
        self._stream = library.expo_stream
        self._stream.argtypes = [Place, Place, Place, ctypes.c_int64, ctypes.c_float, pointer, ctypes.c_int64]
        self._keys = word_keys()
        self._n_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max(1, self._n_threads - 1))  # ctypes releases the GIL while C runs

    @staticmethod
    def takes(out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor) -> bool:
        """Whether `switch` can: bfloat16 sources, a bfloat16 or float32 `out`, on the CPU and contiguous."""
        return (
            all(t.device.type == "cpu" and t.is_contiguous() for t in (out, aligned, sft))
            and aligned.dtype == sft.dtype == torch.bfloat16
            and out.dtype in (torch.bfloat16, torch.float32)
        )

    def switch(self, out: torch.Tensor, aligned: torch.Tensor, sft: torch.Tensor, alpha: float) -> int:
        """`out` <- theta(alpha), rounded to bfloat16, in place; the fingerprint's sum of those bfloat16 numbers.

        A float32 `out` gets them widened. The three have one shape, and `takes` is true of them.
        """
        n = out.numel()
        n_blocks = -(-n // (2 * WORDS_PER_BLOCK))
        keys, following = block_keys(n_blocks), ctypes.c_int64(0)
        narrow, wide = (out.data_ptr(), None) if out.dtype == torch.bfloat16 else (None, out.data_ptr())

        def work() -> int:
            return int(
                self._function(
                    aligned.data_ptr(), sft.data_ptr(), narrow, wide, n, alpha, self._keys.data_ptr(), keys.data_ptr(),
                    WORDS_PER_BLOCK, _CHUNK_BLOCKS, ctypes.byref(following),
                )
            )  # fmt: skip

        n_threads = max(1, min(self._n_threads, n_blocks // _CHUNK_BLOCKS))
        others = [self._pool.submit(work) for _ in range(1, n_threads)]
        total = work()  # this thread does its share; handing it over as well would cost two more switches of context
        return (total + sum(other.result() for other in others)) & MASK

    def streams(self, *dtypes: str) -> bool:
        """Whether `stream` knows these dtypes, as safetensors spells them."""
        return all(d in _STREAMED_DTYPES and (d != "F16" or self._has_float16) for d in dtypes)

    def stream(self, aligned: Place, sft: Place, out: Place, n: int, alpha: float, memory: torch.Tensor) -> int:
        """Write n elements of theta(alpha) from two files to a third, on the calling thread, without the interpreter.

        Arithmetic as in `formula.py`, rounded once to the dtype of `out`.

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
    """The kernel, compiled into the cache folder the first time; None where it cannot be compiled.

    A warning then says why, once a process.
    """
    kernel = _load()
    if isinstance(kernel, Kernel):
        return kernel
    logging.getLogger(__name__).warning("no C kernel: %s; torch does its work, to the same bits but slower", kernel)
    return None


def kernel_fault() -> str | None:
    """Why `load_kernel` has no kernel to give, in one line; None where it has one."""
    kernel = _load()
    return None if isinstance(kernel, Kernel) else kernel


@cache
def _load() -> Kernel | str:
    """The kernel, or the reason why there is none."""
    if platform.system() != "Linux" or sys.byteorder != "little":
        return f"it is written for little-endian Linux, and this is {platform.system()}, {sys.byteorder}-endian"
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    compiler = os.environ.get("CC") or (found and shlex.quote(found))  # such as "ccache gcc"
    if compiler is None:
        return "no C compiler: $CC is not set, and there is no cc, gcc or clang on the path"
    own = shlex.split(os.environ.get("CFLAGS", ""))  # such as the -march of a machine that this is not
    flags = (*_FLAGS, *(_WIDE if platform.machine() == "x86_64" else ()), *own, *_EXACT)
    key = hashlib.sha256(repr(([s.read_bytes() for s in _SOURCES], flags, compiler, _cpu())).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"expo-{key}.so"
    try:
        if not library.is_file():
            _compile(compiler, flags, library)
        return Kernel(ctypes.CDLL(str(library)))
    except subprocess.CalledProcessError as fault:
        return _first_error(compiler, fault)
    except (OSError, AttributeError, ValueError) as fault:  # not written, not loaded, or without a function of ours
        return cut(one_line(f"{type(fault).__name__}: {fault}"), 300)


def _first_error(compiler: str, fault: subprocess.CalledProcessError) -> str:
    """The line of a compiler's output that names the first error, in one message with its exit status."""
    lines = [one_line(line) for line in fault.stderr.decode(errors="replace").splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
    return cut(one_line(f"{compiler} ended with exit status {fault.returncode}: {told}"), 300)


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    """Build beside the final name and rename: another process never sees half a file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [*shlex.split(compiler), *flags, "-o", str(built), *map(str, _SOURCES)]
        subprocess.run(command, check=True, capture_output=True)
        built.replace(library)


def _cpu() -> str:
    """The processor's features, on which `-march=native` depends."""
    try:
        return next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        return platform.processor()
