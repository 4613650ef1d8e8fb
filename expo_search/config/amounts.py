"""Amounts as people type them <-> numbers: a time ("2h", "1h30m", "90s") in seconds, tokens ("3M", "250k")."""

from __future__ import annotations

import math
import re

from expo_search.errors import StudyError

_UNIT_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_NUMBER = r"\d+(?:\.\d+)?"


def seconds(text: str, *, where: str) -> float:
    """A time with its units, the larger ones first.

    Raises:
        StudyError: no such time, or none above 0.
    """
    parts = re.fullmatch("".join(rf"(?:({_NUMBER}){unit})?" for unit in _UNIT_S), text.strip().lower())
    total = sum(float(n) * s for n, s in zip(parts.groups(), _UNIT_S.values(), strict=True) if n) if parts else 0.0
    if not 0 < total < math.inf:
        raise StudyError(
            where=where, found=text or "nothing", expected="a time above 0 with its unit", do="write 2h, 90m or 1h30m"
        )
    return total


def tokens(text: str, *, where: str) -> int:
    """A number of tokens, which may end in k, M or G.

    Raises:
        StudyError: no such number, or below 1.
    """
    match = re.fullmatch(rf"({_NUMBER})([kmgb]?)", text.strip().lower())
    total = float(match[1]) * _FACTOR[match[2]] if match else 0.0
    if not 1 <= total < math.inf:
        raise StudyError(
            where=where, found=text or "nothing", expected="a number of tokens above 0", do="write 3M, 250k or 40000"
        )
    return round(total)


def as_time(seconds: float) -> str:
    """Seconds above 0 as `seconds` reads them, to a thousandth."""
    left, parts = max(round(seconds, 3), 0.001), ""
    for unit, length in _UNIT_S.items():
        n = left if unit == "s" else left // length
        left -= n * length
        parts += f"{f'{n:.3f}'.rstrip('0').rstrip('.')}{unit}" if round(n, 3) else ""
    return parts


def as_tokens(n: int) -> str:
    """A number of tokens as `tokens` reads it."""
    factor, unit = next(((f, u) for f, u in ((10**6, "M"), (10**3, "k")) if n % f == 0), (1, ""))
    return f"{n // factor}{unit}"
