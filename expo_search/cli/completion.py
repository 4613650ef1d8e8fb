"""What a shell offers for a value: presets, studies, tasks, kinds of shapes, and the words that a setting knows.

A shell asks while somebody types, so each imports what it needs when it is asked, and one that fails offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal, get_args, get_origin

import typer


def presets(incomplete: str) -> list[str]:
    """The presets that begin so."""
    with suppress(Exception):
        from expo_search.config.presets import preset_names

        return _begun(preset_names(), incomplete)
    return []


def studies(ctx: typer.Context, incomplete: str) -> list[str]:
    """The studies of `--storage` that begin so; of a file alone, since nobody waits for a server while typing."""
    with suppress(Exception):
        from expo_search.config.options import DEFAULT_STORAGE
        from expo_search.store.address import sqlite_path
        from expo_search.store.database import study_names
        from expo_search.text import clean

        url = ctx.params.get("storage") or DEFAULT_STORAGE
        if sqlite_path(url) is not None:
            return [name for name in _begun(study_names(url), incomplete) if name == clean(name)]
    return []


def tasks(incomplete: str) -> list[str]:
    """The tasks that the last of several names between commas begins."""
    with suppress(Exception):
        from expo_search.bench.registry import TASKS

        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{task}" for task in _begun(TASKS, last)]
    return []


def shapes(incomplete: str) -> list[str]:
    """The kinds of shapes that begin so."""
    with suppress(Exception):
        from expo_search.weights.shape import MOST_BLOCKS

        return _begun(["depth", "attn-mlp", *(f"blocks:{k}" for k in range(2, MOST_BLOCKS + 1))], incomplete)
    return []


def words_of(table: str, key: str) -> Callable[[str], list[str]]:
    """What offers the words that a setting of the study file knows, such as `search.sampler`."""

    def words(incomplete: str) -> list[str]:
        with suppress(Exception):
            from expo_search.config.spec import StudySpec

            settings: Any = StudySpec.model_fields[table].annotation
            return _begun(list(_literals(settings.model_fields[key].annotation)), incomplete)
        return []

    return words


def _begun(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _literals(annotation: Any) -> Iterator[str]:
    """The words among what a value may be."""
    if get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
        return
    for part in get_args(annotation):
        yield from _literals(part)
