"""A local checkpoint -> the SHA-256 of its weights, remembered in the cache folder while its files stay as they are.

To read a large base takes minutes, and each command asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from expo_search.checkpoint.folder import Checkpoint
from expo_search.folders import cache_folder
from expo_search.text import size


def weights_hash(checkpoint: Checkpoint, id: str, say: Callable[[str], None]) -> str:
    """`Checkpoint.content_hash`; the files are read, which `say` is told, where any of them was written since.

    Args:
        id: as it was asked for, for the line.
    """
    remembered = _place(checkpoint.path)
    stamps = _stamps(checkpoint)  # before the reading: what is written meanwhile is read the next time
    known = _read(remembered)
    if known.get("stamps") == stamps:
        return str(known["sha256"])
    say(f"reading {id} whole, {size(checkpoint.n_bytes)} (once, while its files stay as they are)")
    sha256 = checkpoint.content_hash()
    with suppress(OSError):  # a cache that cannot be written to remembers nothing
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"stamps": stamps, "sha256": sha256}), encoding="utf-8")
    return sha256


def _place(folder: Path) -> Path:
    """Where the hash of a folder's weights is kept."""
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_folder() / "hashes" / f"{name}.json"


def _stamps(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """As `Checkpoint.stamps`, with the time at which the system last saw a change, which nobody can set back."""
    return {name: [*stamp, (checkpoint.path / name).stat().st_ctime_ns] for name, stamp in checkpoint.stamps.items()}


def _read(file: Path) -> dict[str, object]:
    """What is remembered; nothing where there is no such file, or another process is just writing it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("sha256"), str) else {}
