"""Memory that the processes of one machine share by name, and that is gone with the last of them, whatever ends those.

It is a memory file of Linux (memfd). The kernel keeps one as long as a process has it open, so a kill leaves nothing
behind, and it has no place in a file system, so the size of /dev/shm is no limit. Whoever wants one looks for its name
among the open files of this user's processes. It can be found once it is sealed, which says that it is whole.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

_PREFIX = "expo-search "
_LINK = re.compile(rf"/memfd:{_PREFIX}(.+) \(deleted\)")


@dataclass
class NodeMemory:
    """A block of shared memory. It stays as long as any process has `memory`, which holds the file open."""

    memory: mmap
    is_whole: bool
    _descriptor: int | None = None

    @classmethod
    def of(cls, name: str, n_bytes: int) -> NodeMemory:
        """The block of that name that a process of this user has filled, or else a new one of n bytes, of zeros.

        Raises:
            OSError: the system has no such memory.
        """
        for descriptor in _whole(name, n_bytes):
            try:
                return cls(mmap(descriptor, n_bytes), is_whole=True)
            finally:
                os.close(descriptor)
        if not hasattr(os, "memfd_create"):
            raise OSError("not on Linux")
        descriptor = os.memfd_create(_PREFIX + name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, n_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            return cls(mmap(descriptor, n_bytes), is_whole=False, _descriptor=descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def seal(self) -> None:
        """Let other processes find it: it is filled, and nobody writes to it any more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
            os.close(descriptor)  # `memory` has one of its own
        self.is_whole = True


def held_bytes(prefix: str) -> int:
    """Size of all whole blocks whose names begin with `prefix`, each once."""
    sizes: dict[int, int] = {}
    for name, path in _blocks():
        if name.startswith(prefix):
            with suppress(OSError):
                block = path.stat()
                sizes[block.st_ino] = block.st_size if _is_whole(path) else 0
    return sum(sizes.values())


def _blocks() -> Iterator[tuple[str, Path]]:
    """(name, a path to open it by) of every block that a process of this user holds, as often as one does."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            for path in (process / "fd").iterdir():
                with suppress(OSError):
                    found = _LINK.fullmatch(str(path.readlink()))
                    if found and path.stat().st_uid == os.geteuid():
                        yield found[1], path


def _whole(name: str, n_bytes: int) -> Iterator[int]:
    """Open files of whole blocks of that name and size; whoever takes one closes it."""
    for found, path in _blocks():
        if found == name:
            with suppress(OSError):
                if _is_whole(path) and path.stat().st_size == n_bytes:
                    yield os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _is_whole(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL)
    finally:
        os.close(descriptor)
