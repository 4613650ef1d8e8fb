"""Which Python of a checkpoint's repository may run: with consent only, at a revision that cannot change, its own only.

transformers and vLLM run what `auto_map` in a checkpoint's configs names once they are told to trust it. A branch or a
tag can be moved after it was read, and "owner/name--file.Class" names the newest code of another repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expo_search.errors import PairError

CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash; branches, tags and short hashes can come to mean another one."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def check_code(folder: Path, where: str, *, pin: str | None = None) -> None:
    """Check a folder whose code is trusted. `pin`: what to write into a study file; None where the code cannot change.

    Raises:
        PairError: the folder names code, and it is not pinned; or it names code of another repository.
    """
    named = sorted(_named_code(folder))
    foreign = [name for name in named if "--" in name]
    if foreign:
        raise PairError(
            where=where,
            found=f"code of another repository ({foreign[0]})",
            expected="code in the checkpoint's own folder: that repository's can change at any time",
            do="copy the file into a local folder of the checkpoint and write its plain name into auto_map",
        )
    if named and pin is not None:
        raise PairError(
            where=where,
            found=f"code ({named[0]}) at a revision that can change",
            expected="a pinned revision: with --trust-remote-code the code runs on this machine",
            do=f"read the code, then set {pin} in the [pair] table of a study file",
        )


def _named_code(folder: Path) -> Iterator[str]:
    """Every class that a folder's configs want loaded from a file."""
    for name in CONFIGS:
        try:
            config: Any = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # not there, or said to be broken where it is read in full
        auto_map = config.get("auto_map") if isinstance(config, dict) else None
        values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
        for value in values:  # a tokenizer has two: the slow one's and the fast one's
            yield from (v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, str))
