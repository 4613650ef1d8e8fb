"""theta(alpha) of two checkpoints -> the bytes of a third, piece by piece: memory of a few pieces, not of the model.

The formula is elementwise, so a tensor can be cut anywhere, and doing it before vLLM fuses and shards gives the same
bits as doing it after. Pieces are small enough to stay in a core's cache between reading, computing and writing: the
compiled kernel does all three (`cpu_stream.c`), and torch does what the kernel does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING, NamedTuple

from expo_search.checkpoint.folder import Checkpoint
from expo_search.checkpoint.header import TensorInfo
from expo_search.checkpoint.pair_check import PairCheck
from expo_search.checkpoint.shard_writer import ShardWriter, known_dtype
from expo_search.dtypes import STORED, TORCH_DTYPES
from expo_search.errors import CheckpointError
from expo_search.weights.formula import plain_theta, single
from expo_search.weights.shape import alpha_of

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 18  # elements that torch is given at a time
_STREAMED = 1 << 22  # ... and the kernel, which cuts them smaller itself


def theta_specs(aligned: Checkpoint, dtype: str | None) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every tensor of theta(alpha): aligned's, floating-point ones in `dtype` if given.

    Raises:
        CheckpointError: quantised weights.
    """
    dtypes = [(t, known_dtype(t)) for t in aligned.tensors.values()]
    return [(t.name, STORED[dtype] if dtype and "F" in stored else stored, t.shape) for t, stored in dtypes]


def write_theta(
    aligned: Checkpoint,
    sft: Checkpoint,
    check: PairCheck,
    alpha: float,
    writer: ShardWriter,
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write every tensor of theta(alpha), rounded once to the dtype of `writer`'s layout.

    `on_bytes` gets the bytes of each piece once it is written, from any thread, one at a time.

    Raises:
        CheckpointError: the first piece that is not finite in that dtype.
        OSError: a file cannot be read or written.
    """
    import torch

    with _Files({t.file for c in (aligned, sft) for t in c.tensors.values()}) as files:
        work = _Work(files, writer, alpha, {n: sft.tensors[check.tied_in_sft.get(n, n)] for n in aligned.tensors})
        _each(work.pieces(aligned.tensors.values()), work.write, on_bytes, torch.get_num_threads())


class _Piece(NamedTuple):
    """`n` elements of aligned's `tensor` from `first` on, extrapolated from as many of `source`."""

    tensor: TensorInfo
    source: TensorInfo
    first: int
    n: int


class _Work:
    """Computes and writes pieces. `sources`: sft's tensor for each of aligned's, by name."""

    def __init__(self, files: _Files, writer: ShardWriter, alpha: float, sources: Mapping[str, TensorInfo]) -> None:
        from expo_search.weights.cpu_kernel import load_kernel

        self._files, self._writer, self._sources = files, writer, sources
        self._alphas = {name: single(alpha_of(alpha, name)) for name in sources}
        self._kernel = load_kernel()

    def pieces(self, tensors: Iterable[TensorInfo]) -> Iterator[_Piece]:
        """All pieces, in the order of the tensors.

        Vocabulary rows that sft lacks have aligned itself as their source, so they do not move.
        """
        for t in tensors:
            source = self._sources[t.name]
            shared = min(t.n_elements, source.n_elements)
            for s, start, stop in ((source, 0, shared), (t, shared, t.n_elements)):
                size = _STREAMED if self._streams(t, s) else _PIECE
                yield from (_Piece(t, s, first, min(size, stop - first)) for first in range(start, stop, size))

    def _streams(self, t: TensorInfo, source: TensorInfo) -> bool:
        """Whether the kernel takes the dtypes of a tensor, of its source and of its output."""
        dtypes = t.dtype, source.dtype, self._writer.layout[t.name].dtype
        return self._kernel is not None and self._kernel.streams(*dtypes)

    def write(self, piece: _Piece) -> int:
        """Compute one piece and write it; the number of bytes written."""
        if self._streams(piece.tensor, piece.source):
            return self._stream(piece)
        theta = self._theta(piece)
        if not _is_finite(theta):
            raise self._not_finite(piece)
        self._writer.write(piece.tensor.name, theta, piece.first)
        return theta.nbytes

    def _stream(self, piece: _Piece) -> int:
        from expo_search.weights.cpu_kernel import ALIGNED_ENDED, STREAM_BYTES, TOO_LARGE, Place

        assert self._kernel is not None
        t, source, first, n = piece
        made = self._writer.layout[t.name]
        fault = self._kernel.stream(
            Place.of(*self._files.place(t, first), t.dtype),
            Place.of(*self._files.place(source, first), source.dtype),
            Place.of(*self._writer.place(t.name, first), made.dtype),
            n,
            self._alphas[t.name],
            self._files.memory.take("stream", STREAM_BYTES),
        )
        if fault == TOO_LARGE:
            raise self._not_finite(piece)
        if fault:
            raise _ended(t.file if fault == ALIGNED_ENDED else source.file)
        n_bytes = n * (made.n_bytes // made.n_elements)
        self._writer.written(t.name, n_bytes)
        return n_bytes

    def _theta(self, piece: _Piece) -> torch.Tensor:
        """Compute a piece with torch, for dtypes that the kernel does not take."""
        import torch

        t = piece.tensor
        a = self._files.read(t, piece.first, piece.n, "aligned")
        to = getattr(torch, TORCH_DTYPES[self._writer.layout[t.name].dtype])
        alpha = self._alphas[t.name]
        if alpha == 0 or not a.is_floating_point():
            return a.to(to)
        return plain_theta(a, self._files.read(piece.source, piece.first, piece.n, "sft"), alpha).to(to)

    def _not_finite(self, piece: _Piece) -> CheckpointError:
        t = piece.tensor
        for use, source in (("aligned", t), ("sft", piece.source)):
            if not _is_finite(self._files.read(source, piece.first, piece.n, use)):
                return CheckpointError(
                    where=f"tensor {source.name} of {source.file}",
                    found="numbers that are not finite",
                    expected="finite weights",
                    do="give a checkpoint that works",
                )
        dtype = TORCH_DTYPES[self._writer.layout[t.name].dtype]
        return CheckpointError(
            where=f"tensor {t.name} at alpha {self._alphas[t.name]:g}",
            found=f"a number too large for {dtype}",
            expected="finite weights",
            do="give a smaller alpha, or --dtype bfloat16 or float32",
        )


def _ended(file: Path) -> CheckpointError:
    return CheckpointError(
        where=str(file),
        found="an end of file inside a tensor",
        expected="the file that was checked",
        do="leave the checkpoint's files alone while they are read",
    )


def _is_finite(piece: torch.Tensor) -> bool:
    """Whether every element is finite.

    The sum is finite nearly always, and then so is every element; it costs a tenth of a test of each.
    """
    import torch

    return not piece.is_floating_point() or bool(
        torch.isfinite(piece.sum(dtype=torch.float32)) or torch.isfinite(piece).all()
    )


def _each(
    pieces: Iterator[_Piece],
    work: Callable[[_Piece], int],
    on_bytes: Callable[[int], None],
    n_threads: int,
) -> None:
    """Process the pieces on a few threads; the first error, or Ctrl-C, stops all of them."""
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
    """Buffers of each thread, one for each use, that all of its pieces share: they bound the memory of an export."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, use: str, n_bytes: int) -> torch.Tensor:
        """Uninitialised bytes, valid until the same thread asks for the same use again."""
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

    def place(self, t: TensorInfo, first: int) -> tuple[int, int]:
        """(open file, offset in bytes) of a tensor's element `first`."""
        return self._open[t.file], t.offset + first * (t.n_bytes // max(1, t.n_elements))

    def read(self, t: TensorInfo, first: int, n: int, use: str) -> torch.Tensor:
        """Elements [first, first + n) of a tensor, flat, until the thread reads the next for the same use."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_DTYPES[known_dtype(t)])
        raw = self.memory.take(use, n * dtype.itemsize)
        file, offset = self.place(t, first)
        rest = raw.numpy().data
        while rest:
            got = os.preadv(file, [rest], offset)
            if not got:
                raise _ended(t.file)
            rest, offset = rest[got:], offset + got
        return raw.view(dtype)
