"""The `expo-search` command: its sub-commands, and how it ends. Only `cli` prints, and only this module exits.

Exit codes: 0 done; 2 the input is at fault, or an engine that died twice, in one line on standard error; 130 stopped by
Ctrl-C or SIGTERM, with everything that was finished kept. Anything else is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from expo_search.cli.begin import init, schema
from expo_search.cli.bench import bench
from expo_search.cli.console import print_fault, print_prose
from expo_search.cli.doctor import doctor
from expo_search.cli.export import export_model, reproduce_model
from expo_search.cli.inspect import dashboard, list_pairs, report_page, show
from expo_search.cli.search import confirm_winner, search
from expo_search.cli.shape import search_shape
from expo_search.cli.signals import AGAIN, terminate_as_ctrl_c
from expo_search.cli.talk import chat, compare
from expo_search.cli.usage import Command, Commands
from expo_search.errors import EngineError, ExpoError
from expo_search.folders import user_path
from expo_search.session.process_state import set_defaults_of_libraries


def _with_homes(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose paths begin in a home where `~` is typed: bash leaves it as it is in `--out=~/x`."""

    @wraps(command)
    def run(**given: Any) -> None:
        command(**{name: user_path(value) if isinstance(value, Path) else value for name, value in given.items()})

    return run


app = typer.Typer(
    cls=Commands,
    add_completion=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the alpha of an ExPO extrapolation, aligned + alpha * (aligned - sft), on one running engine.",
    epilog="Example: expo-search --pair demo --trials 20",
)
app.callback(invoke_without_command=True)(_with_homes(search))
_COMMANDS: dict[str, Callable[..., None]] = {
    "pairs": list_pairs,
    "init": init,
    "schema": schema,
    "confirm": confirm_winner,
    "shape": search_shape,
    "bench": bench,
    "export": export_model,
    "reproduce": reproduce_model,
    "show": show,
    "report": report_page,
    "dashboard": dashboard,
    "compare": compare,
    "chat": chat,
    "doctor": doctor,
}
for name, command in _COMMANDS.items():
    app.command(name, cls=Command)(_with_homes(command))


def main() -> None:
    """Entry point of the `expo-search` command."""
    # what is imported stays: with Python's own thresholds a tenth of a start goes into looking for garbage in it
    gc.set_threshold(100_000, 50, 100)
    set_defaults_of_libraries(log_level="INFO")  # into the log file
    terminate_as_ctrl_c()
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # an output that has no such character is no reason to fail
    try:
        app()
    except ExpoError as fault:
        print_fault(Console(stderr=True), fault)
        if _follows_a_stop(fault):
            _say_stopped(lost=not isinstance(fault, EngineError))
            sys.exit(130)
        sys.exit(2)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # as typer wraps it
            _say_stopped()
        raise


def _follows_a_stop(fault: BaseException | None) -> bool:
    """Whether a fault came up while a stop was clearing up: an engine stopped in mid-step may fail to drop the rest."""
    while fault is not None and not isinstance(fault, KeyboardInterrupt):
        fault = fault.__context__
    return fault is not None


def _say_stopped(*, lost: bool = False) -> None:
    """`lost`: the last answers may be."""
    command = next(iter(sys.argv[1:]), "-")
    keeps = command.startswith("-") or command in ("confirm", "shape", "bench")  # the search has no name
    what = "what was stored" if lost else "what was finished"
    but = f", without {AGAIN} once answers have come" if AGAIN in sys.argv else ""
    kept = f"; {what} is kept, the same command goes on{but}" if keeps else ""
    print_prose(Console(stderr=True), f"expo-search: stopped{kept}")
