"""A pair and an alpha -> an ordinary checkpoint folder, with what a user needs beside the weights.

The arithmetic is that of the live engine (`extrapolated.py`), in memory that does not grow with the model. The folder
appears under its name only when it is whole (`checkpoint/atomic_folder.py`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expo_search.checkpoint.atomic_folder import published
from expo_search.checkpoint.extrapolated import theta_specs, write_theta
from expo_search.checkpoint.folder import Checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.checkpoint.shard_writer import ShardWriter
from expo_search.checkpoint.side_files import copy_small_files, set_dtype
from expo_search.errors import StudyError
from expo_search.exporting.target import check_target


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
