"""A linear layer of vLLM on a CPU -> where its packed matrix lies, so that a switch can write the matrix in place.

vLLM 0.32 hands each (N, K) matrix to oneDNN, which copies it into blocks of its own and keeps the copy where nothing
can reach it. Packing again means a new oneDNN object for every matrix (0.2 ms, however small) and a transposition that
reaches 2 to 20 GB/s: several times all the rest of a switch. The kernel can write the same blocks straight from the
sources, at the speed of memory, if it knows their address.

So the address is looked for: from the object's address, along the pointers that lead to its weights, to memory which
holds, byte for byte, the matrix in oneDNN's blocks. Every read on the way goes through the operating system, where a
wrong address is an error, not a crash; the matrix itself is read once all of it is known to be memory of this process.
Then the address is proven by its effect: a NaN put there must come out of the layer's product, at its row and at no
other. Where one of these fails, vLLM packs as ever (`materializer.py`); and the canary compares answers after the one
way with answers after the other.

Letters: N rows (outputs), K columns (inputs) of a matrix, P rows of a block. A block holds 32 columns: 16 pairs of
columns, in each pair P rows, in each row its two elements ("BA16aPb2a" in oneDNN's words).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm import _custom_ops as ops

PANELS = (64, 48, 32, 16)  # rows of a block that oneDNN 3.x chooses between; 64 wherever AVX512 or AMX is
_COLUMNS = 32
_WEIGHTS = 33  # DNNL_ARG_WEIGHTS, the key under which the object keeps the matrix
_HEAD_BYTES = 256
_NAN = 0x7FC0  # a bfloat16


@dataclass(frozen=True)
class Packed:
    """A matrix in oneDNN's blocks, in the memory of `handler`, which lives as long as this.

    Attributes:
        address: of the first block.
        panel: P. n_bytes: of all blocks, zeros beyond the last row and column included.
    """

    handler: Any
    address: int
    panel: int
    shape: torch.Size

    def matrix(self) -> torch.Tensor:
        """What the memory holds now, in load layout: a bfloat16 copy, (N, K)."""
        n, k = self.shape
        n_bytes = packed_bytes(self.shape, self.panel)
        memory = (ctypes.c_uint8 * n_bytes).from_address(self.address)
        halves = torch.frombuffer(memory, dtype=torch.int16).view(torch.bfloat16)
        blocks = halves.view(-1, -(-k // _COLUMNS), _COLUMNS // 2, self.panel, 2).permute(0, 3, 1, 2, 4)
        return blocks.reshape(-(-n // self.panel) * self.panel, -1)[:n, :k].contiguous()


def packed_bytes(shape: torch.Size, panel: int) -> int:
    """Size of a bfloat16 matrix in blocks."""
    n, k = shape
    return 2 * (-(-n // panel) * panel) * (-(-k // _COLUMNS) * _COLUMNS)


def handler_of(module: nn.Module) -> Any:
    """The oneDNN object behind a layer's product, where it has one; vLLM keeps it only in a closure."""
    closure = getattr(getattr(module, "cpu_linear", None), "__closure__", None) or ()
    found = [cell.cell_contents for cell in closure if isinstance(cell.cell_contents, ops.CPUDNNLGEMMHandler)]
    return found[0] if len(found) == 1 else None


def locate(handler: Any, shape: torch.Size, image: Callable[[int], torch.Tensor]) -> Packed | None:
    """Find the packed bfloat16 matrix of a handler; None where it is not found or not proven.

    `image(P)` gives the bytes that the matrix has in blocks of P rows, uint8. Costs one comparison of them, and some
    ten products of one row.
    """
    if shape[1] % 2:
        return None
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        return None
    try:
        for panel in PANELS:
            expected = image(panel)
            for address in _candidates(memory, handler.handler_tensor.item(), expected[:_HEAD_BYTES]):
                packed = Packed(handler, address, panel, shape)
                if _holds(address, expected) and _is_read(packed):
                    return packed
    finally:
        os.close(memory)
    return None


def _candidates(memory: int, handler: int, head: torch.Tensor) -> Iterator[int]:
    """Addresses with the right first bytes, three pointers away from the object's entry for its weights."""
    wanted = head.numpy().tobytes()
    for entry in _entries(memory, handler):
        seen = set()
        for storages in _pointers(memory, entry, 1024):  # dnnl_memory: its description, then its storages
            for storage in _pointers(memory, storages, 8):  # the first of them
                for data in _pointers(memory, storage, 64):
                    if data not in seen and _read(memory, data, len(wanted)) == wanted:
                        yield data
                    seen.add(data)


def _entries(memory: int, handler: int) -> Iterator[int]:
    """The values under the key for weights in any hash map (a linked list of next, key, value) of the object."""
    for node in _pointers(memory, handler, 256):
        for _ in range(8):
            data = _read(memory, node, 24)
            if len(data) < 24:
                break
            node, key, value = struct.unpack("=QixxxxQ", data)
            if key == _WEIGHTS:
                yield value


def _pointers(memory: int, address: int, n_bytes: int) -> list[int]:
    data = _read(memory, address, n_bytes)
    return [word for (word,) in struct.iter_unpack("=Q", data[: len(data) // 8 * 8])]


def _read(memory: int, address: int, n_bytes: int) -> bytes:
    """Bytes of this process, none where there is no such memory."""
    if address % 8 or not 4096 <= address < 1 << 47:
        return b""
    try:
        return os.pread(memory, n_bytes, address)
    except OSError:
        return b""


def _holds(address: int, expected: torch.Tensor) -> bool:
    if not _is_readable(address, address + expected.nbytes):
        return False
    return torch.equal(
        torch.frombuffer((ctypes.c_uint8 * expected.nbytes).from_address(address), dtype=torch.uint8), expected
    )


def _is_readable(start: int, stop: int) -> bool:
    """Whether all of [start, stop) lies in memory of this process that may be read."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, rights, *_ = line.split()
        low, high = (int(end, 16) for end in area.split("-"))
        if low <= start < high and rights.startswith("r"):
            start = high  # areas come in order, and one may go on in the next
    return start >= stop


def _is_read(packed: Packed) -> bool:
    """Whether the layer's product reads this memory: a NaN in one row must come out there, and go away again."""
    n, k = packed.shape
    ones = torch.ones(1, k, dtype=torch.bfloat16)

    def rows_with_nan() -> list[int]:
        return [int(row) for row in ops.onednn_mm(packed.handler, ones, None)[0].isnan().nonzero()]

    panel_bytes = packed_bytes(torch.Size([packed.panel, k]), packed.panel)
    for row in (0, n - 1):
        first_column = packed.address + row // packed.panel * panel_bytes + row % packed.panel * 4
        element = ctypes.c_uint16.from_address(first_column)
        before = element.value
        element.value = _NAN
        found = rows_with_nan()
        element.value = before
        if found != [row] or rows_with_nan():
            return False
    return True
