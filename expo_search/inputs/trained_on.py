"""The prompts that a reward model was trained on, where its folder lists them: `trained_on.txt`.

One line a prompt: the SHA-256 of its text, as UltraFeedback's `prompt_id` is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from expo_search.checkpoint.side_files import TRAINED_ON
from expo_search.contracts import Prompt
from expo_search.errors import RewardError


def read_trained_on(folder: Path) -> frozenset[str]:
    """The hashes that a reward model's folder lists; none where it has no list.

    Raises:
        RewardError: a line that is none, with its number.
    """
    file = folder / TRAINED_ON
    if not file.is_file():
        return frozenset()
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not re.fullmatch(r"[0-9a-f]{64}", line):
            raise RewardError(
                where=f"{file}, line {number}",
                found=repr(line[:40]),
                expected="the SHA-256 of a prompt's text, 64 hex digits, one a line",
                do="mend the list, or take it out of the folder",
            )
    return frozenset(filter(None, lines))


def ids_among(hashes: Collection[str], prompts: Iterable[Prompt]) -> list[str]:
    """The ids of those prompts whose texts are on a list."""
    return [p.id for p in prompts if hashes and hashlib.sha256(p.text.encode()).hexdigest() in hashes]
