"""Weights -> one short hash, cheap enough to take after every switch, equal on every device.

A tensor's bytes are read as little-endian signed 32-bit words x_i (zero padded) and hashed by a multilinear sum

    h = sum_i r_(i mod B) * s_(i div B) * x_i   (mod 2^64),

with fixed pseudo-random numbers, r of 32 bits and s of 64: two different tensors collide with a probability of about
2^-32 (Lemire & Kaser, "Strongly universal string hashing is fast", 2014). Products of 32 bits are what processors
multiply fastest; with r of 64 bits the hash, not the memory, set the speed of a switch. Sums of integers do not
depend on their order, so any device and any number of threads give the same number. Names, dtypes and shapes go with
the sums into SHA-256. It protects against mistakes (a weight not written, written twice), not against an adversary.

Letters: B words of a block, N words of a tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORDS_PER_BLOCK = 1 << 11  # its keys, 8 KiB, stay in a core's first cache
MASK = (1 << 64) - 1
_SEED = 0x45_78_50_4F  # "ExPO"


def keys(start: int, n: int) -> torch.Tensor:
    """Pseudo-random int64 numbers, (n,), the same on every platform: SplitMix64 of start, start + 1, ..."""
    import numpy as np
    import torch

    with np.errstate(over="ignore"):
        z = (np.arange(start, start + n, dtype=np.uint64) + np.uint64(_SEED)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy(z.view(np.int64))


def word_keys() -> torch.Tensor:
    """r_0 .. r_(B - 1), (B,) int32: the lower halves of `keys`."""
    import torch

    return keys(0, WORDS_PER_BLOCK).to(torch.int32)


def block_keys(n: int) -> torch.Tensor:
    """s_0 .. s_(n - 1), (n,) int64, from a table whose size is the next power of two."""
    return _key_table(max(1, n - 1).bit_length())[:n]


@cache
def _key_table(log2_n: int) -> torch.Tensor:
    return keys(1 << 32, 1 << log2_n)


class BlockKeys:
    """The numbers s on one device, in a table that grows with its use: a device is waited for while it gets them."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._table = device, block_keys(1).to(device)

    def of(self, first: int, n: int) -> torch.Tensor:
        """s_first .. s_(first + n - 1), (n,) int64."""
        if len(self._table) < first + n:
            self._table = block_keys(1 << (first + n - 1).bit_length()).to(self._device)
        return self._table[first : first + n]


def line(name: str, tensor: torch.Tensor, tensor_sum: int) -> str:
    """Name, dtype, shape and sum of one tensor, as `digest` takes it."""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor_sum:016x}"


def digest(lines: Iterable[str]) -> str:
    """32 hex digits over the lines of all tensors, sorted by name."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


class Fingerprinter:
    """Hashes tensors on the device they live on; keeps its keys and scratch between calls."""

    def __init__(self) -> None:
        self._state: dict[torch.device, tuple[torch.Tensor, torch.Tensor, BlockKeys]] = {}

    def tensor_sum(self, tensor: torch.Tensor, first_block: int = 0) -> int:
        """As `device_sum`, in 0 .. 2^64 - 1; waits for the device."""
        return int(self.device_sum(tensor, first_block)) & MASK

    def device_sum(self, tensor: torch.Tensor, first_block: int = 0) -> torch.Tensor:
        """The multilinear sum of one tensor's bytes, int64, (), on its device. Reads it once, and does not wait.

        Of a piece of a tensor that begins with block `first_block`: the pieces' sums add up to the tensor's.
        """
        import torch

        data = tensor.detach().contiguous().view(-1).view(torch.uint8)
        if data.numel() % 4:
            data = torch.nn.functional.pad(data, (0, 4 - data.numel() % 4))
        elif data.storage_offset() % 4:
            data = data.clone()  # a slice that does not start at a whole word
        words = data.view(torch.int32)
        r, wide, s = self._buffers(words.device)
        n_blocks = -(-words.numel() // WORDS_PER_BLOCK)
        sums = torch.empty(n_blocks, dtype=torch.int64, device=words.device)
        step = wide.shape[0]
        n_whole = words.numel() // WORDS_PER_BLOCK
        whole = words[: n_whole * WORDS_PER_BLOCK].view(n_whole, WORDS_PER_BLOCK)
        for b in range(0, n_whole, step):
            rows = whole[b : b + step]
            torch.mul(rows, r, out=wide[: len(rows)])
            torch.sum(wide[: len(rows)], dim=1, out=sums[b : b + len(rows)])
        tail = words[n_whole * WORDS_PER_BLOCK :]
        if tail.numel():
            sums[n_whole] = (tail * r[: tail.numel()]).sum()
        return (sums * s.of(first_block, n_blocks)).sum()

    def line(self, name: str, tensor: torch.Tensor) -> str:
        """As the function `line`, of what the tensor holds now."""
        return line(name, tensor, self.tensor_sum(tensor))

    def _buffers(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, BlockKeys]:
        import torch

        if device not in self._state:
            rows = 64 if device.type == "cpu" else 4096
            r = word_keys().to(device, torch.int64)
            wide = torch.empty(rows, WORDS_PER_BLOCK, dtype=torch.int64, device=device)
            self._state[device] = (r, wide, BlockKeys(device))
        return self._state[device]
