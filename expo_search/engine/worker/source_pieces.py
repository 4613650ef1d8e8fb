"""The two sources of many weights -> pieces of them on the device that computes, in order.

Sources that lie there already are handed out as views. Sources in pinned host memory are streamed through two buffers:
while one piece is computed with, the next is copied, on a stream of its own, across the borders of weights. Where the
device is a CPU there is nothing to overlap, and the same code runs without streams and events.

Letters: N elements of a weight, C elements of a piece at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch

from expo_search.weights.fingerprint import WORDS_PER_BLOCK

PIECE = 1 << 24  # elements: 32 MiB of bfloat16, long enough to copy at full rate; whole fingerprint blocks
_CACHED_PIECE = 1 << 20  # on a CPU: what is computed from a piece stays in the caches
SOURCE_ITEMSIZE = 4  # bytes of an element of a full piece at most; pieces of wider ones are shorter
STAGING_BYTES = 2 * 2 * PIECE * SOURCE_ITEMSIZE  # two buffers for each of the two sources
_cuda: Any = torch.cuda  # has no types for streams and events
assert PIECE % (2 * WORDS_PER_BLOCK) == _CACHED_PIECE % (2 * WORDS_PER_BLOCK) == 0


class HasSources(Protocol):
    """A weight as `PieceReader` reads it: its two sources."""

    @property
    def aligned(self) -> torch.Tensor:
        """Any shape, N elements."""

    @property
    def sft(self) -> torch.Tensor:
        """Of the shape of `aligned`."""


class Piece(NamedTuple):
    """Elements [start, start + len(aligned)) of a weight, flat; to be used before the next piece is asked for."""

    weight: Any
    start: int
    aligned: torch.Tensor
    sft: torch.Tensor


class PieceReader:
    """Reads the sources of weights in pieces of C elements at most, on `device`."""

    def __init__(self, device: torch.device, *, stage: bool, piece: int | None = None) -> None:
        """`stage`: sources lie elsewhere and are copied through two buffers, which are allocated at the first use."""
        self._device, self._stage = device, stage
        self._size = piece or (_CACHED_PIECE if device.type == "cpu" and not stage else PIECE)
        self._slots: list[_Slot] = []
        self._stream: Any = _cuda.Stream(device) if stage and device.type == "cuda" else None

    def read(self, weights: Iterable[HasSources]) -> Iterator[Piece]:
        """Every weight's pieces in order; none of an empty weight. Only one reading at a time."""
        pieces = self._cut(weights)
        return self._staged(pieces) if self._stage else pieces

    def _cut(self, weights: Iterable[HasSources]) -> Iterator[Piece]:
        for weight in weights:
            aligned, sft = weight.aligned.reshape(-1), weight.sft.reshape(-1)
            size = self._size * SOURCE_ITEMSIZE // max(SOURCE_ITEMSIZE, aligned.itemsize, sft.itemsize)
            for start in range(0, len(aligned), size):
                stop = start + size
                yield Piece(weight, start, aligned[start:stop], sft[start:stop])

    def _staged(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """One piece ahead: while the caller computes with a piece, the next is under way into the other buffer."""
        if not self._slots:
            self._slots = [_Slot(self._device, self._size, self._stream) for _ in range(2)]
        ahead: tuple[_Slot, Piece] | None = None
        for i, piece in enumerate(pieces):
            slot = self._slots[i % 2]
            staged = slot.fill(piece)
            if ahead is not None:
                yield from _lend(*ahead)
            ahead = slot, staged
        if ahead is not None:
            yield from _lend(*ahead)


def _lend(slot: _Slot, piece: Piece) -> Iterator[Piece]:
    try:
        yield slot.ready(piece)
    finally:  # also when the caller stops in the middle
        slot.release()


class _Slot:
    """A buffer for one piece of both sources, and the order between its copies and its uses."""

    def __init__(self, device: torch.device, size: int, stream: Any) -> None:
        n_bytes = size * SOURCE_ITEMSIZE
        self._buffers = [torch.empty(n_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._stream = stream
        self._filled = _cuda.Event() if stream else None
        self._free = _cuda.Event() if stream else None
        if self._free is not None:
            self._free.record()  # after whatever last used this memory

    def fill(self, piece: Piece) -> Piece:
        """Start the copies, once the buffer's last use is over; the piece as it will lie in the buffer."""
        if self._stream is not None:
            self._stream.wait_event(self._free)
        with _cuda.stream(self._stream) if self._stream is not None else nullcontext():
            aligned, sft = (
                self._copy(buffer, source)
                for buffer, source in zip(self._buffers, (piece.aligned, piece.sft), strict=True)
            )
            if self._filled is not None:
                self._filled.record()
        return Piece(piece.weight, piece.start, aligned, sft)

    @staticmethod
    def _copy(buffer: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        if source.device == buffer.device and source.device.type != "cpu":
            return source  # a small constant that stayed on the device
        staged = buffer[: source.nbytes].view(source.dtype)
        return staged.copy_(source, non_blocking=True)

    def ready(self, piece: Piece) -> Piece:
        """Make the caller's stream wait for the copies; the piece itself."""
        if self._filled is not None:
            _cuda.current_stream().wait_event(self._filled)
        return piece

    def release(self) -> None:
        """Make the next copy into this buffer wait for all work that the caller has issued so far."""
        if self._free is not None:
            self._free.record()
