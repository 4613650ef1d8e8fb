"""A pair and an alpha -> an ordinary checkpoint folder, with what a user needs beside the weights.

The arithmetic is that of the live engine (`extrapolated.py`), in memory that does not grow with the model. The folder
appears under its name only when it is whole (`checkpoint/atomic_folder.py`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.extrapolated import theta_specs, write_theta
from expo_search.checkpoint.folder import INDEX, Checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.checkpoint.shard_writer import ShardWriter
from expo_search.checkpoint.side_files import CARD, PROVENANCE, TOKENIZER_FILES, copy_small_files, set_dtype
from expo_search.errors import StudyError
from expo_search.folders import is_there

_SLACK_BYTES = 64 << 20  # tokenizer, card, the file system's own
_WRITTEN = {
    "config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors", "mergekit.yaml",
    "curve.png", INDEX, PROVENANCE, CARD, *TOKENIZER_FILES,
}  # fmt: skip
_WEIGHTS_WRITTEN = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_OF_MODEL = {INDEX, "adapter_config.json", "adapter_model.safetensors", "mergekit.yaml"}


@dataclass(frozen=True)
class Format:
    """How a checkpoint is written.

    Attributes:
        dtype: "bfloat16", "float16" or "float32" for all floating-point tensors; None keeps aligned's.
        code: copy aligned's own Python files.
    """

    dtype: str | None = None
    max_shard_bytes: int = 5 * 10**9
    code: bool = False


def export(
    aligned: Checkpoint,
    sft: Checkpoint,
    alpha: float,
    out: Path,
    form: Format,
    *,
    force: bool = False,
    finish: Callable[[Path], None] = lambda _: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write theta(alpha) to `out`.

    Args:
        force: replace a checkpoint that is there, once the new one is whole.
        finish: gets the folder before it is published, to add to it or to refuse it.
        on_bytes: gets the bytes of each piece as it is written.

    Raises:
        StudyError: see `check_target`; or it cannot be written.
        CheckpointError: the two do not make a pair, or a weight is not finite.
    """
    check, specs = check_pair(aligned, sft), theta_specs(aligned, form.dtype)
    check_target(out, n_bytes_of(aligned, form.dtype), (aligned.path, sft.path), force=force)
    with writing(out, force=force) as folder:
        copy_small_files(aligned.path, folder, code=form.code)
        if form.dtype is not None:
            set_dtype(folder, form.dtype)
        with ShardWriter(folder, specs, max_shard_bytes=form.max_shard_bytes) as writer:
            write_theta(aligned, sft, check, alpha, writer, on_bytes=on_bytes)
        finish(folder)


def n_bytes_of(aligned: Checkpoint, dtype: str | None) -> int:
    """Size of the exported tensors, in `dtype` if it is given."""
    width = {None: 0, "float32": 4}.get(dtype, 2)
    return sum(
        t.n_elements * width if width and "F" in t.dtype else t.n_bytes for t in aligned.tensors.values()
    )  # F: floating point, in safetensors' names


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


@contextmanager
def writing(out: Path, *, force: bool) -> Iterator[Path]:
    """`published`, with errors of the file system as `StudyError`s.

    Raises:
        StudyError: the disk is full, read-only, or otherwise refuses.
    """
    try:
        with published(out, replace=force) as folder:
            yield folder
    except OSError as fault:
        raise StudyError(
            where=f"--out {out}",
            found=str(fault),
            expected="a folder that can be written to",
            do="give a larger --max-shard-size; nothing half-written was left"
            if fault.errno == errno.EMFILE
            else "free room or name another; nothing half-written was left",
        ) from fault


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
