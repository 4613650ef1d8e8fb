"""A file that is written whole or not at all: beside its place first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path` at the end; after an error all is as before."""
    fresh = path.parent / f".{path.name}.{os.getpid()}"
    try:
        yield fresh
        fresh.replace(path)
    finally:
        with suppress(OSError):  # not there, or in a place where nothing can be
            fresh.unlink()
