"""The commands that hand on the model of a study: `export`, and `reproduce`, which evaluates an exported one again."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from expo_search.api import export, open_study
from expo_search.cli.completion import shapes
from expo_search.cli.console import (
    DEFAULT_LOG,
    Json,
    Log,
    Quiet,
    Storage,
    StudyName,
    TrustRemoteCode,
    give_up_on,
    known_study,
    terminal,
)
from expo_search.config.options import DEFAULT_STORAGE, MIN_PROMPTS
from expo_search.errors import StudyError
from expo_search.text import clean

if TYPE_CHECKING:
    from expo_search.results.study_results import StudyResult

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_model(
    study: StudyName = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder for the checkpoint; needed.")] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that was evaluated; the verdict's by default.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="The best shape of a kind that `shape` searched.", autocompletion=shapes),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; aligned's by default.")] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file: 5GB, 500MB, 2GiB.")] = "5GB",
    as_adapter: Annotated[
        bool, typer.Option("--as-adapter", help="Write the pair's LoRA adapter, rescaled, not a checkpoint.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load it in a fresh engine and compare with the trial, or leave nothing.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Upload it once it is whole, with local folders by name alone.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="To a private repository.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an exported folder; export an alpha that was not evaluated.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
) -> None:
    """Write the model at the best alpha as an ordinary checkpoint."""
    from expo_search.exporting.wanted import Wanted, check_wanted

    if out is None:
        raise StudyError(where="--out", found="nothing", expected="a folder for the checkpoint", do="give --out DIR")
    options: dict[str, Any] = {
        "alpha": alpha,
        "shape": shape,
        "dtype": dtype,
        "max_shard_bytes": size_in_bytes(max_shard_size),
        "force": force,
        "as_adapter": as_adapter,
        "verify": verify,
        "push_to": push_to_hub,
        "private": private,
        "trust_remote_code": trust_remote_code,
    }
    check_wanted(Wanted(out, **options))  # before the study is read, and what exports it imported
    with terminal(log) as (printed, err):
        export_to(out, open_study(storage, known_study(study, storage)), printed, err, quiet=quiet, **options)


def export_to(
    out: Path, result: StudyResult, printed: Console, err: Console, *, quiet: bool = False, **options: Any
) -> None:
    """Export with a bar, and print what the checkpoint can be used with; options are those of `api.export`."""
    from expo_search.session.working import say_on, working

    with _bytes_bar(err, quiet) as on_bytes:
        export(
            result,
            out,
            say=say_on(err, quiet),
            on_bytes=on_bytes,
            working=partial(working, err, quiet),
            give_up=give_up_on(err),
            **options,
        )
    if not quiet and not options.get("as_adapter"):
        printed.print(Text(uses_of(out, trust_remote_code=options.get("trust_remote_code", False))), soft_wrap=True)


def uses_of(folder: Path, *, trust_remote_code: bool = False) -> str:
    """The commands that serve an exported checkpoint, and that make a GGUF file of it for llama.cpp."""
    name, gguf = (shlex.quote(clean(str(path))) for path in (folder, f"{folder.resolve().name}.gguf"))
    return (
        f"Serve it:\n  vllm serve {name}{' --trust-remote-code' if trust_remote_code else ''}\n"
        f"Make a GGUF of it, with llama.cpp's converter:\n"
        f"  python llama.cpp/convert_hf_to_gguf.py {name} --outfile {gguf}"
    )


def reproduce_model(
    exported: Annotated[Path, typer.Argument(metavar="DIR_OR_JSON", help="An exported folder, or its expo.json.")],
    n_prompts: Annotated[
        int | None,
        typer.Option(min=MIN_PROMPTS, metavar="N", help="The first N prompts alone; all of the trial's by default."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate an exported alpha again, from its sources, and compare with what its search found."""
    from expo_search.exporting.provenance import read_provenance
    from expo_search.exporting.reproduce import check_n_prompts, reproduce
    from expo_search.session.progress import Progress
    from expo_search.session.working import say_on, working

    origin = read_provenance(exported)
    check_n_prompts(origin, n_prompts)
    with terminal(log) as (out, err):
        with Progress(err, 2, 0, quiet=quiet) as progress:
            again = reproduce(
                origin,
                progress,
                say_on(err, quiet),
                trust_remote_code=trust_remote_code,
                n_prompts=n_prompts,
                working=partial(working, err, quiet),
                give_up=give_up_on(err),
            )
        text = json.dumps(again.as_json(), indent=2) if as_json else again.report()
        out.print(Text(clean(text)), soft_wrap=True)
    if not again.same_weights:
        raise typer.Exit(1)


def size_in_bytes(text: str) -> int:
    """Parse a size: "5GB" -> 5 * 10**9, "2GiB" -> 2 * 2**30.

    Raises:
        StudyError: not a size.
    """
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    size = float(parts[1]) * _UNITS.get(parts[2].upper(), 0) if parts else 0.0
    if not 1 <= size < math.inf:  # some hundred digits make an infinity
        raise StudyError(
            where="--max-shard-size", found=repr(text), expected="a size such as 5GB, 500MB or 2GiB", do="give one"
        )
    return int(size)


@contextmanager
def _bytes_bar(console: Console, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Progress of an export in bytes, with rate and time left."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    # not redirected: what a library writes is for the log; not shown before there are bytes, beside another line
    shown: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}
    bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal, **shown)
    task = bar.add_task("export", total=None)

    def on_bytes(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done >= total:
            bar.stop()  # what comes after has lines of its own

    try:
        yield on_bytes
    finally:
        bar.stop()
