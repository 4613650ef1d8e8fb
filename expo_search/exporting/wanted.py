"""What is to be exported, and how; what of it cannot be, whatever the study, is told before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from expo_search.dtypes import STORED
from expo_search.errors import StudyError
from expo_search.exporting.target import check_is_free
from expo_search.weights.shape import dimensions


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and how.

    Attributes:
        alpha: None for the verdict's. shape: a kind of shape, whose best one is wanted, or None.
        force: replace a folder; export an alpha that was not evaluated.
        as_adapter: write the adapter rescaled, not a checkpoint.
        push_to: a repository of the Hub, or None.
        trust_remote_code: run aligned's own Python for its tokenizer, and copy it.
    """

    out: Path
    alpha: float | None = None
    shape: str | None = None
    dtype: str | None = None
    max_shard_bytes: int = 5 * 10**9
    force: bool = False
    as_adapter: bool = False
    verify: bool = False
    push_to: str | None = None
    private: bool = False
    trust_remote_code: bool = False


def check_wanted(wanted: Wanted) -> None:
    """Check what can be told without the study.

    Raises:
        StudyError: a target that is not free; options that are none, or do not go together.
    """
    if wanted.shape is not None:
        dimensions(wanted.shape)
        if wanted.alpha is not None:
            refuse("--shape", "--alpha beside it", "one of the two", "drop one of them")
    if wanted.dtype is not None and wanted.dtype not in STORED:
        refuse("--dtype", wanted.dtype, f"one of {', '.join(STORED)}", "give one of these")
    if wanted.private and wanted.push_to is None:
        refuse("--private", "no --push-to-hub", "a repository that is to be private", "give both")
    if wanted.as_adapter and wanted.shape is not None:
        refuse("--as-adapter", "--shape", "one alpha, by which an adapter is rescaled", "leave one of the two out")
    if wanted.as_adapter and (wanted.dtype or wanted.verify):
        refuse("--as-adapter", "--dtype or --verify", "neither: the factors are copied", "leave them out")
    check_is_free(wanted.out, force=wanted.force)


def refuse(where: str, found: str, expected: str, do: str) -> NoReturn:
    """Refuse what is wanted, by a `StudyError` of these words."""
    raise StudyError(where=where, found=found, expected=expected, do=do)
