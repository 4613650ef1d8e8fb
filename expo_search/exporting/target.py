"""Where an export may be written, told before anything is loaded: nothing that is there is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from expo_search.checkpoint.folder import INDEX
from expo_search.checkpoint.side_files import CARD, PROVENANCE, TOKENIZER_FILES
from expo_search.errors import StudyError
from expo_search.folders import is_there

_SLACK_BYTES = 64 << 20  # tokenizer, card, the file system's own
_WRITTEN = {
    "config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors", "mergekit.yaml",
    "curve.png", INDEX, PROVENANCE, CARD, *TOKENIZER_FILES,
}  # fmt: skip
_WEIGHTS_WRITTEN = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_OF_MODEL = {INDEX, "adapter_config.json", "adapter_model.safetensors", "mergekit.yaml"}


def check_is_free(out: Path, *, force: bool) -> None:
    """Check that nothing is at `out`, or with `force` nothing but an exported folder.

    Raises:
        StudyError: something is, or the system does not look there.
    """
    expected = "a name that this file system takes"
    if not (is_there(out, StudyError, where=f"--out {out}", expected=expected, do="name another") or out.is_symlink()):
        return
    if not (out.is_dir() and not out.is_symlink() and _may_be_replaced(out)):
        raise StudyError(
            where=f"--out {out}",
            found="something else than an exported folder, which --force does not replace",
            expected="a new folder, or one with nothing but an export in it (no sub-folder)",
            do="name another",
        )
    if not force:
        raise StudyError(
            where=f"--out {out}", found="exists already", expected="a new folder", do="name another, or --force"
        )


def check_target(out: Path, n_bytes: int, sources: Sequence[Path], *, force: bool) -> None:
    """Check that `n_bytes` of tensors can be written to the folder `out`, before the work begins.

    Raises:
        StudyError: the folder is there (without `force`), is no checkpoint, or is a source; cannot be made; no room.
    """
    where = f"--out {out}"
    refuse_sources(out, sources)
    check_is_free(out, force=force)
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        problem = "is read-only" if parent.is_dir() else "is a file"
        raise StudyError(where=where, found=f"{parent} {problem}", expected="a writable folder", do="name another")
    free, needed = shutil.disk_usage(parent).free, int(n_bytes * 1.01) + _SLACK_BYTES
    if free < needed:
        raise StudyError(
            where=where,
            found=f"{free / 1e9:.1f} GB free on its disk",
            expected=f"{needed / 1e9:.1f} GB",
            do="free room, or name a folder on another disk",
        )


def refuse_sources(out: Path, sources: Iterable[Path]) -> None:
    """Check that what is written replaces nothing that it is made from.

    Raises:
        StudyError: `out` is one of `sources`, or a folder above one.
    """
    if any(out.resolve() in (s.resolve(), *s.resolve().parents) for s in sources):
        raise StudyError(
            where=f"--out {out}",
            found="a source checkpoint, or a folder above it",
            expected="a new folder",
            do="name another",
        )


def is_of_model(name: str) -> bool:
    """Whether a file that an export may write holds weights, or says which there are."""
    return name in _OF_MODEL or _WEIGHTS_WRITTEN.fullmatch(name) is not None


def _may_be_replaced(folder: Path) -> bool:
    """An empty folder, or one with an `expo.json` and nothing but what an export writes or that lists; no folder in it.

    Any model's folder has a config.json and weights: never to be removed, and neither is what a user has put beside an
    export.
    """
    there = list(folder.iterdir())
    if any(file.is_symlink() or not file.is_file() for file in there):
        return False
    names = {file.name for file in there}
    if PROVENANCE not in names:
        return not names
    return all(_WEIGHTS_WRITTEN.fullmatch(n) for n in names - _WRITTEN - _listed(folder / PROVENANCE))


def _listed(file: Path) -> set[str]:
    """The names under `files` in an `expo.json`."""
    try:
        return set(json.loads(file.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
