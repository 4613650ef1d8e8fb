"""The commands that write the model of a study: `export`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from expo_search.errors import StudyError
from expo_search.study import DEFAULT_STORAGE
from expo_search.terminal import Quiet, Storage, console_on, known_study


def export_model(
    study: Annotated[str | None, typer.Argument(help="Name in the database.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder for the checkpoint.")] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that was evaluated; the verdict's by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; aligned's by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
    storage: Storage = DEFAULT_STORAGE,
    quiet: Quiet = False,
) -> None:
    """Write the model at the best alpha as an ordinary checkpoint."""
    from expo_search.export import export_study

    if out is None:
        raise StudyError(where="--out", found="nothing", expected="a folder for the checkpoint", do="give --out DIR")
    err = console_on(sys.stderr)
    with _bytes_bar(err, quiet) as on_bytes:
        name = known_study(study, storage)
        chosen = export_study(storage, name, out, alpha=alpha, dtype=dtype, force=force, on_bytes=on_bytes)
    if not quiet:
        err.print(Text(f"alpha = {chosen:.6g} of study {name} written to {out}"), soft_wrap=True)


@contextmanager
def _bytes_bar(console: Console, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress of an export in bytes, with rate and time left."""
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("export", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
