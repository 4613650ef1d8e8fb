"""What the commands share: their common options, consoles, names of studies, lines that are safe to print."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer
from rich.console import Console
from rich.text import Text

from expo_search.cli.completion import studies
from expo_search.errors import ExpoError, StoreError, StudyError
from expo_search.text import clean, one_line, shown

if TYPE_CHECKING:
    from rich.table import Table

# what is agreed to: see `config.spec.check_consent`
CONSENT = "Run code that a repository, study file or database names, and let a judge it names elsewhere read answers."
StudyName = Annotated[
    str | None, typer.Argument(help="Name in the database; by default the only one there.", autocompletion=studies)
]
Storage = Annotated[
    str, typer.Option("--storage", metavar="URL", help="Database of the studies.", rich_help_panel="Output")
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="DIR|S3_URL",
        help="Where trials' files are: a folder, or s3://BUCKET/PREFIX.",
        rich_help_panel="Output",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.", rich_help_panel="Output")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Output")]
Log = Annotated[
    Path, typer.Option("--log", metavar="FILE", help="Where vLLM's own output goes.", rich_help_panel="Output")
]
Engines = Annotated[
    str | None,
    typer.Option(
        "--engines",
        metavar="N|auto",
        help="Engines that share the prompts, through Ray.",
        rich_help_panel="Engine",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="auto|HOST:PORT",
        help="A running Ray cluster for the engines.",
        rich_help_panel="Engine",
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help=CONSENT)]
DEFAULT_LOG = Path("expo-search.log")


def n_engines(given: str | None) -> int | Literal["auto"] | None:
    """What `--engines` says.

    Raises:
        StudyError: no number, or none of them.
    """
    if given is None or given == "auto":
        return given if given is None else "auto"
    try:
        n = int(given)
    except ValueError:
        n = 0
    if n < 1:
        raise StudyError(
            where="--engines", found=repr(given), expected="auto, or at least 1", do="give the number wanted"
        )
    return n


def check_there(storage: str) -> None:
    """Check that an SQLite database is there.

    Raises:
        StoreError: no database URL, or no such file.
    """
    from expo_search.store.address import is_made, sqlite_path

    file = sqlite_path(storage)
    if file is not None and not is_made(storage, file):
        raise StoreError(
            where=f"--storage {shown(storage)}",
            found="no such file",
            expected="a database with a study in it",
            do="check the path, or search first",
        )


def known_study(study: str | None, storage: str) -> str:
    """A study's name, or the only one there is. Writes nothing, and waits for no writer."""
    check_there(storage)
    from expo_search.store.database import check_readable, study_names  # SQLAlchemy: see `store/address.py`

    names = study_names(storage)
    if study is None and len(names) == 1:
        study = names[0]
    if study is None or study not in names:
        raise StoreError(
            where=f"--storage {shown(storage)}",
            found="no study named" if study is None else f"no study {study!r}",
            expected=f"one of {', '.join(names)}" if names else "a database with a study in it",
            do="give a study's name, or --storage",
        )
    check_readable(storage)
    return study


@contextmanager
def terminal(log: Path) -> Iterator[tuple[Console, Console]]:
    """Consoles on the real standard output and error, while the libraries' own output goes to `log`."""
    from expo_search.cli.log_file import library_output_to

    with library_output_to(log) as (out, err):
        yield console_on(out), console_on(err)


def console_on(stream: TextIO) -> Console:
    """As wide as the terminal, and wide enough for a table where there is none."""
    return Console(file=stream) if stream.isatty() else Console(file=stream, width=120)


def give_up_on(console: Console) -> Callable[[ExpoError], None]:
    """What ends this process from another thread where the main one hangs: the one line, and exit code 2."""

    def end(fault: ExpoError) -> None:
        print_fault(console, fault)
        os._exit(2)

    return end


def print_prose(console: Console, text: str, *, style: str = "") -> None:
    """Print sentences: on a terminal with lines that end between words, elsewhere as long as they are."""
    console.print(Text(clean(text)), soft_wrap=not console.is_terminal, style=style)


def print_fault(console: Console, fault: ExpoError) -> None:
    """Print an error as the command ends with it: one line, which only a terminal gets in several."""
    print_prose(console, f"expo-search: {one_line(str(fault))}")


def print_table(console: Console, table: Table, every: Sequence[str], option: str = "--json") -> None:
    """Print a fitted table, and below it which of `every` heading it has no room for and the option that has them."""
    from expo_search.results.fitted_table import left_out

    console.print(table)
    line = left_out(table, every, f"expo-search show {option}")
    if line:
        print_prose(console, line, style="dim")


def print_steps(console: Console, steps: Sequence[tuple[str, str]]) -> None:
    """Print (command, purpose): beside each other where there is room, else each purpose above its command."""
    width = max(len(command) for command, _ in steps)
    if max(len(purpose) for _, purpose in steps) + width + 5 <= console.width:
        lines = [f"  {command:{width}}   {purpose}" for command, purpose in steps]
    else:
        lines = [line for command, purpose in steps for line in (f"  # {purpose}", f"  {command}")]
    console.print(Text(clean("\n".join(lines))), soft_wrap=True)
