"""One safetensors file's header -> its tensors' names, dtypes, shapes and sizes, checked before anything is read.

Layout of the format: 8 bytes of header length, a JSON header, then the tensors' bytes back to back.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_search.dtypes import BITS
from expo_search.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header: dtype as the format names it ("BF16"), shape, and where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    file: Path
    offset: int = 0

    @property
    def n_elements(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


def read_header(file: Path, where: str) -> Iterator[TensorInfo]:
    """The tensors of one safetensors file, in the order of their bytes. `where` names the checkpoint in messages.

    Reads the header alone. The size of the file is checked while the entries are handed out, so take all of them.

    Raises:
        CheckpointError: a file that is cut off, or a header that is broken, too large, or does not describe every byte.
    """

    def broken(found: str) -> CheckpointError:
        return CheckpointError(
            where=f"{where}, file {file.name}",
            found=found,
            expected="a whole safetensors file",
            do="download the file again",
        )

    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        n = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if n < 0 or n > MAX_HEADER_BYTES or 8 + n > size:
            raise broken(f"a header of {n} bytes in a file of {size} bytes" if n >= 0 else f"a file of {size} bytes")
        try:
            header = json.loads(stream.read(n).decode(), object_pairs_hook=_unique)
            metadata = header.pop("__metadata__", None)
            if metadata is not None and not all(isinstance(text, str) for text in metadata.values()):
                raise ValueError("metadata that is not text")
            entries = [_entry(name, e) for name, e in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise broken(f"a header that is not readable ({type(fault).__name__}: {fault})") from None
    end = 0
    for name, dtype, shape, start, stop in sorted(entries, key=lambda e: e[3:]):
        if start != end or stop > size - 8 - n:  # the format knows no gaps and no overlaps
            raise broken(f"tensor {name} at bytes {start}..{stop}, after one that ends at {end}, of {size - 8 - n}")
        end = stop
        yield TensorInfo(name, dtype, shape, stop - start, file, 8 + n + start)
    if end != size - 8 - n:
        raise broken(f"tensors that end at byte {end} of {size - 8 - n}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r} twice")
    return table


def _entry(name: str, entry: Mapping[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, dtype, shape, first byte, byte after the last) of one tensor; a ValueError if they disagree."""
    name.encode()  # JSON can spell half of a surrogate pair
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (
        isinstance(shape, list) and isinstance(place, list) and all(type(n) is int and n >= 0 for n in shape + place)
    ):
        raise ValueError(f"tensor {name} of shape {shape!r} at bytes {place!r}")
    start, stop = place
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (stop - start):
        raise ValueError(f"tensor {name} of {dtype} {shape} in {stop - start} bytes, not {bits // 8}")
    return name, dtype, tuple(shape), start, stop
