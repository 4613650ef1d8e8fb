"""theta(alpha) of two checkpoints -> the bytes of a third, piece by piece: memory of a few pieces, not of the model.

The formula is elementwise, so a tensor can be cut anywhere, and doing it before vLLM fuses and shards gives the same
bits as doing it after. Pieces are small enough to stay in a core's cache between reading, computing and writing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING

from expo_search.checkpoint import Checkpoint
from expo_search.errors import CheckpointError
from expo_search.extrapolate import plain_theta
from expo_search.header import TensorInfo
from expo_search.match import PairCheck
from expo_search.shards import TORCH_DTYPES, ShardWriter, known_dtype

if TYPE_CHECKING:
    import torch

FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_PIECE = 1 << 18  # elements; 2 MiB pieces are somewhat faster on 0.3 GB, and three times slower on 2 GB


def theta_specs(aligned: Checkpoint, dtype: str | None) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor of theta(alpha): aligned's, floating-point ones in `dtype` if given.

    Raises:
        CheckpointError: quantised weights.
    """
    found = [(t, known_dtype(t)) for t in aligned.tensors.values()]
    return [(t.name, FLOATS[dtype] if dtype and "F" in stored else stored, t.shape) for t, stored in found]


def write_theta(
    aligned: Checkpoint,
    sft: Checkpoint,
    check: PairCheck,
    alpha: float,
    writer: ShardWriter,
    *,
    check_finite: bool,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write every tensor of theta(alpha), rounded once to the dtype of `writer`'s layout.

    `on_bytes` gets the bytes of each piece once it is written, from any thread, one at a time.

    Raises:
        CheckpointError: with `check_finite`, the first piece that is not finite in that dtype.
    """
    import torch

    from expo_search.kernel import load_kernel

    kernel = load_kernel()
    with _Files({t.file for c in (aligned, sft) for t in c.tensors.values()}) as files:

        def theta(t: TensorInfo, first: int, n: int) -> torch.Tensor:
            a = files.read(t, first, n, "aligned")
            to = getattr(torch, TORCH_DTYPES[writer.layout[t.name].dtype])
            if alpha == 0 or not a.is_floating_point():
                return a.to(to)
            s = _sft_piece(files, sft, check.tied_in_sft.get(t.name, t.name), a, first)
            if kernel is not None and to == a.dtype and kernel.takes(a, s):
                out = files.memory.take("theta", a.nbytes).view(a.dtype)
                kernel.theta(out, a, s, alpha)
                return out
            return plain_theta(a, s, alpha).to(to)

        def one(piece: tuple[TensorInfo, int, int]) -> int:
            t, first, n = piece
            out = theta(t, first, n)
            if check_finite and not _is_finite(out):
                raise CheckpointError(
                    where=f"tensor {t.name} at alpha {alpha:g}",
                    found=f"a number too large for {str(out.dtype).removeprefix('torch.')}",
                    expected="finite weights",
                    do="give a smaller alpha, or --dtype bfloat16 or float32",
                )
            writer.write(t.name, out, first)
            return out.nbytes

        _each(_pieces(aligned.tensors.values()), one, on_bytes, torch.get_num_threads())


def _is_finite(piece: torch.Tensor) -> bool:
    """Whether every element is. One look at each takes ten times as long as their sum, which all but always tells."""
    import torch

    return not piece.is_floating_point() or bool(
        torch.isfinite(piece.sum(dtype=torch.float32)) or torch.isfinite(piece).all()
    )


def _pieces(tensors: Iterable[TensorInfo]) -> Iterator[tuple[TensorInfo, int, int]]:
    """(tensor, first element, elements), in the order of the tensors."""
    for t in tensors:
        n = t.n_elements
        yield from ((t, first, min(_PIECE, n - first)) for first in range(0, n, _PIECE))


def _sft_piece(files: _Files, sft: Checkpoint, name: str, a: torch.Tensor, first: int) -> torch.Tensor:
    """sft's elements for a piece of aligned's; beyond sft's vocabulary aligned's own, so that they do not move."""
    import torch

    source = sft.tensors[name]
    n = max(0, min(len(a), source.n_elements - first))
    s = files.read(source, first, n, "sft")
    return s if n == len(a) else torch.cat([s.float(), a[n:].float()])


def _each(
    pieces: Iterator[tuple[TensorInfo, int, int]],
    work: Callable[[tuple[TensorInfo, int, int]], int],
    on_bytes: Callable[[int], None],
    n_threads: int,
) -> None:
    """Do the pieces on a few threads, each of which takes the next; the first error, or Ctrl-C, stops all."""
    lock, stopped = Lock(), False

    def worker() -> None:
        nonlocal stopped
        try:
            while True:
                with lock:
                    piece = None if stopped else next(pieces, None)
                if piece is None:
                    return
                done = work(piece)
                with lock:
                    on_bytes(done)
        except BaseException:
            stopped = True
            raise

    with ThreadPoolExecutor(n_threads + 1) as pool:  # one more than cores, since some wait for the disk
        workers = [pool.submit(worker) for _ in range(n_threads + 1)]
        try:
            for w in workers:
                w.result()
        finally:
            stopped = True


class _Memory(local):
    """Each thread's own memory, by use: what an export needs is this, however many pieces there are."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, use: str, n_bytes: int) -> torch.Tensor:
        """Uninitialised bytes, until the same thread takes the same again."""
        import torch

        if use not in self._buffers or len(self._buffers[use]) < n_bytes:
            self._buffers[use] = torch.empty(n_bytes, dtype=torch.uint8)
        return self._buffers[use][:n_bytes]


class _Files:
    """Checkpoint files open for reading; bytes are read into memory of our own, never mapped."""

    def __init__(self, paths: set[Path]) -> None:
        self._paths, self._open, self.memory = paths, dict[Path, int](), _Memory()

    def __enter__(self) -> _Files:
        with ExitStack() as stack:
            for path in self._paths:
                self._open[path] = os.open(path, os.O_RDONLY)
                stack.callback(os.close, self._open[path])
            self._close = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def read(self, t: TensorInfo, first: int, n: int, use: str) -> torch.Tensor:
        """Elements [first, first + n) of a tensor, flat, until the thread reads the next for the same use."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[known_dtype(t)])
        raw = self.memory.take(use, n * dtype.itemsize)
        rest, offset = raw.numpy().data, t.offset + first * dtype.itemsize
        while rest:
            got = os.preadv(self._open[t.file], [rest], offset)
            if not got:
                raise CheckpointError(
                    where=str(t.file),
                    found="an end of file inside a tensor",
                    expected="the file that was checked",
                    do="leave the checkpoint's files alone while they are read",
                )
            rest, offset = rest[got:], offset + got
        return raw.view(dtype)
