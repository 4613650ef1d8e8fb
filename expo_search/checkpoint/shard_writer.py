"""Names, dtypes and shapes -> safetensors files laid out in advance, whose bytes can then be written in any order.

A safetensors header says where each tensor's bytes will be, and it follows from names, dtypes and shapes alone. So
nothing is held back until a shard is full, and a tensor need not be whole in memory to be written. The files are
those that the safetensors library writes, byte for byte.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.folder import INDEX, SINGLE
from expo_search.checkpoint.header import TensorInfo
from expo_search.dtypes import TORCH_DTYPES
from expo_search.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_RANK = {dtype: rank for rank, dtype in enumerate(TORCH_DTYPES)}
_SYNC_BYTES = 16 << 20  # written bytes after which the disk is set to work, while the next ones are computed


def known_dtype(t: TensorInfo) -> str:
    """A tensor's dtype as the format spells it.

    Raises:
        CheckpointError: a format of quantised weights.
    """
    if t.dtype not in TORCH_DTYPES:
        raise CheckpointError(
            where=f"tensor {t.name} of {t.file}",
            found=f"dtype {t.dtype}",
            expected="unquantised weights",
            do="give the unquantised checkpoint",
        )
    return t.dtype


class ShardWriter:
    """Open safetensors files of a folder, with an index where there are several; writes go to their place directly.

    Args:
        folder: exists and has no weights in it.
        tensors: name, dtype as the format spells it ("BF16") and shape of every tensor to come, in shard order.
        max_shard_bytes: a file holds no more, unless a single tensor is larger.

    `layout` says where each tensor lies. Leaving the context waits until everything is on the disk.
    """

    def __init__(
        self, folder: Path, tensors: Iterable[tuple[str, str, Sequence[int]]], *, max_shard_bytes: int = 5 << 30
    ) -> None:
        self.layout = _lay_out(folder, tensors, max_shard_bytes)
        self._files = {info.file: -1 for info in self.layout.values()}
        self._lock, self._disk = Lock(), ThreadPoolExecutor(1)
        self._unsynced, self._syncing = 0, Future[None]()
        self._syncing.set_result(None)

    def __enter__(self) -> ShardWriter:
        with ExitStack() as opened:
            opened.callback(self._close)
            for file in self._files:
                header, size = _header([i for i in self.layout.values() if i.file == file])
                self._files[file] = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.truncate(self._files[file], size)
                _write_at(self._files[file], 0, memoryview(header))
            opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._disk.shutdown()
        try:
            if kind is None:
                self._syncing.result()
                for descriptor in self._files.values():
                    os.fsync(descriptor)
        finally:
            self._close()

    def _close(self) -> None:
        for descriptor in (d for d in self._files.values() if d >= 0):
            os.close(descriptor)

    def write(self, name: str, data: torch.Tensor, first: int = 0) -> None:
        """Write a tensor's elements from `first` on, in its layout's dtype. From any thread, in any order."""
        import torch

        raw = data.detach().contiguous().view(-1).view(torch.uint8).numpy()
        _write_at(*self.place(name, first), raw.data)
        self.written(name, raw.nbytes)

    def place(self, name: str, first: int = 0) -> tuple[int, int]:
        """(open file, offset in bytes) of a tensor's element `first`; who writes there calls `written`."""
        info = self.layout[name]
        return self._files[info.file], info.offset + first * _itemsize(info.dtype)

    def written(self, name: str, n_bytes: int) -> None:
        """Count `n_bytes` written of a tensor; every so often start writing them out to the disk."""
        with self._lock:
            self._unsynced += n_bytes
            if self._unsynced >= _SYNC_BYTES and self._syncing.done():
                self._syncing.result()
                self._unsynced = 0
                self._syncing = self._disk.submit(os.fdatasync, self._files[self.layout[name].file])


def _lay_out(
    folder: Path, tensors: Iterable[tuple[str, str, Sequence[int]]], max_shard_bytes: int
) -> dict[str, TensorInfo]:
    """Deal tensors out to files in the order given, and write the index where there are several files."""
    shards: list[dict[str, tuple[str, tuple[int, ...], int]]] = [{}]
    held = 0
    for name, dtype, shape in tensors:
        n_bytes = math.prod(shape) * _itemsize(dtype)
        if shards[-1] and held + n_bytes > max_shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = dtype, tuple(shape), n_bytes
        held += n_bytes
    layout: dict[str, TensorInfo] = {}
    for number, shard in enumerate(shards, 1):
        file = folder / (SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        placed, offset = [], 0
        for name in sorted(shard, key=lambda n: (_RANK[shard[n][0]], n)):
            dtype, shape, n_bytes = shard[name]
            placed.append(TensorInfo(name, dtype, shape, n_bytes, file, offset))
            offset += n_bytes
        start = _header(placed)[1] - offset
        layout |= {i.name: TensorInfo(i.name, i.dtype, i.shape, i.n_bytes, file, start + i.offset) for i in placed}
    if len(shards) > 1:
        _write_index(folder, layout)
    return layout


def _header(tensors: Sequence[TensorInfo]) -> tuple[bytes, int]:
    """(a file's header with its length before it, the whole file's size), for tensors in the order they lie in."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for t in tensors:
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [stop, stop + t.n_bytes]}
        stop += t.n_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + stop


def _write_index(folder: Path, layout: Mapping[str, TensorInfo]) -> None:
    index = {
        "metadata": {"total_size": sum(t.n_bytes for t in layout.values())},
        "weight_map": {name: t.file.name for name, t in layout.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _itemsize(dtype: str) -> int:
    import torch

    return int(getattr(torch, TORCH_DTYPES[dtype]).itemsize)
