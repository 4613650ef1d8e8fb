"""`Fact`: one thing about a machine or an installation, as `doctor` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expo_search.text import cut, one_line


@dataclass(frozen=True)
class Fact:
    """One thing that a search needs, or is faster or easier with.

    Attributes:
        status: "remark": a search runs, slower or with less; "missing": none runs.
        do: what to do about it; None where nothing needs to be done.
    """

    name: str
    text: str
    status: Literal["ok", "remark", "missing"] = "ok"
    do: str | None = None


def gib(n_bytes: int) -> str:
    """A size as facts show it."""
    return f"{n_bytes / (1 << 30):.1f} GiB"


def short(fault: BaseException) -> str:
    """An error's own words, on one line."""
    return cut(one_line(str(fault)), 200)
