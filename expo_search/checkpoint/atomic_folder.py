"""A folder that is written under a temporary name beside its own and appears whole, or not at all.

What a killed process leaves has that process's host and number in its name, so that the next one here can tell it
from the work of a live process and clear it away.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def published(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `out`, renamed to `out` when the block succeeds, else removed with the parents made for it.

    With `replace` an existing `out` stays until the new folder is whole and on the disk; then the old one is renamed
    out of the way, and the new one into its place. If the process is killed between the two renames, the next call
    puts the old one back.

    Raises:
        FileExistsError: `out` is there (or came into being in the meantime), without `replace`.
        OSError: it cannot be written.
    """
    out = out.absolute()
    _clear_leftovers(out)
    if out.exists() and not replace:
        raise FileExistsError(f"{out} exists already")
    partial, old = _beside(out, "partial"), _beside(out, "old")
    missing = [parent for parent in out.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_files(partial)
        if replace and out.exists():
            out.rename(old)
        try:
            partial.rename(out)
        except OSError as fault:
            if old.exists():
                old.rename(out)
            if out.exists() and not replace:
                raise FileExistsError(f"{out} came into being in the meantime") from fault
            raise
        _sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty, or `x/..`
                parent.rmdir()
        raise


def sync_files(folder: Path) -> None:
    """Wait until a folder and the files in it are on the disk, so that not even a power cut leaves half of them."""
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(out: Path, state: str) -> Path:
    return out.with_name(f".{out.name}.{state}-{socket.gethostname()}-{os.getpid()}")


def _clear_leftovers(out: Path) -> None:
    """Remove what dead processes of this host left; put an old folder back if no new one took its place."""
    if not out.parent.is_dir():
        return
    for state in ("old", "partial"):
        prefix = f".{out.name}.{state}-{socket.gethostname()}-"
        for folder in [p for p in out.parent.iterdir() if p.name.startswith(prefix)]:
            if _is_running(folder.name.removeprefix(prefix)):
                continue
            if state == "old" and not out.exists():
                folder.rename(out)
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    import psutil

    if not pid.isdecimal():
        return True  # not one of our names
    try:
        # a zombie, killed but not yet waited for by its parent, is not running
        return int(pid) != os.getpid() and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
