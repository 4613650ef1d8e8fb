"""The help, in lines that end between words; what typer says of a wrong command line -> an error of ours.

Of those errors: where, found, expected, do, with what was meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from expo_search.config.faults import own_text, wanted
from expo_search.errors import StudyError
from expo_search.text import one_line

# typer brings click's classes under private names; these are theirs
UsageError: type[Any] = typer.BadParameter.__mro__[1]
_HelpFormatter: Any = typer.Context.formatter_class
_COMMAND = "expo-search"
_COMMAND_LINE = "command line"  # the program's name is in front of every message
_PANELS = ("Pair", "Prompts", "Search", "Engine", "Output")  # of the search's options, in this order


class _WholeWords(_HelpFormatter):  # type: ignore[misc]
    """Breaks lines at blanks alone: click's also breaks `expo-search` at its hyphen, and a URL that is too long."""

    _HYPHEN = "\N{NON-BREAKING HYPHEN}"  # while lines are made

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """As click's; a narrow terminal has room beside the options for the longest word."""
        whole = [(name, text.replace("-", self._HYPHEN)) for name, text in rows]
        super().write_dl(whole, min(col_max, self.width * 2 // 5), col_spacing)

    def write_text(self, text: str) -> None:
        """As click's."""
        super().write_text(text.replace("-", self._HYPHEN))

    def getvalue(self) -> str:
        """As click's."""
        return str(super().getvalue()).replace(self._HYPHEN, "-")


class _Context(typer.Context):
    formatter_class = _WholeWords


class Command(TyperCommand):
    """One command; its help breaks no word."""

    context_class = _Context


class Commands(TyperGroup):
    """The commands; what is wrong with a command line is an error like all others.

    Raises:
        StudyError: unknown command or option, a missing or unusable value.
    """

    context_class = _Context

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """As typer's."""
        try:
            return super().make_context(*arguments, **options)
        except UsageError as fault:
            raise as_ours(fault, self) from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by what they are about, then the commands; in plain text, which no width cuts off."""
        panels: dict[str, list[Any]] = {panel: [] for panel in _PANELS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or _PANELS[-1], []).append(record)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)
        with formatter.section("Commands"):  # typer's own cuts what they do off at the width
            formatter.write_dl([(name, _does(command)) for name, command in self.commands.items()])

    def invoke(self, ctx: Any) -> Any:
        """As typer's; the options of a command are read here."""
        try:
            return super().invoke(ctx)
        except UsageError as fault:
            raise as_ours(fault, self, ctx.invoked_subcommand) from None


def as_ours(fault: Any, group: Any, name: str | None = None) -> StudyError:
    """The error, by what typer knows of it. `name`: of the command, which an option without a value does not know."""
    context = getattr(fault, "ctx", None)
    if getattr(context, "parent", None) is not None:
        name = getattr(context, "info_name", None)
    command = f"{_COMMAND} {name}" if name else _COMMAND
    place = command if name else _COMMAND_LINE
    option = getattr(fault, "option_name", None)
    if type(fault).__name__ == "NoSuchOption":
        near = _near(option, _options(getattr(context, "command", group)))
        return StudyError(
            where=place,
            found=f"no option {option}",
            expected="one that it has",
            do=f"did you mean {near}?" if near else f"see `{command} --help`",
        )
    message = one_line(fault.format_message()).rstrip(".")
    if message.startswith("No such command "):
        return unknown_command(message.removeprefix("No such command ").split("'")[1], group)
    parameter = getattr(fault, "param", None)
    found, expected = message[:1].lower() + message[1:], "a command line that it can read"
    if type(fault).__name__ == "MissingParameter":
        told = str(getattr(parameter, "help", None) or "a value").rstrip(".")
        found, expected = "nothing", told[:1].lower() + told[1:]
    elif message.endswith("requires an argument"):
        found, expected = "no value", "one after it"
    elif parameter is not None:
        found, expected = _refused(fault, message)
    where = option or (flag_of(parameter) if parameter is not None else place)
    return StudyError(where=where, found=found, expected=expected, do=f"see `{command} --help`")


def _refused(fault: Any, message: str) -> tuple[str, str]:
    """(found, expected) of a value that does not do."""
    if isinstance(fault.__cause__, ValidationError):  # newer typers ask pydantic
        error = fault.__cause__.errors()[0]
        typed = str(error["input"])
        return repr(typed) if error["type"].endswith("_parsing") else typed, wanted(error) or own_text(error)
    return message.rpartition(": ")[2], "a value that it takes"


def unknown_command(typed: str, group: Any) -> StudyError:
    """A first word that is no command. The search has no name, which is the commonest mistake."""
    from expo_search.config.presets import preset_names

    names = [name for name, command in group.commands.items() if not command.hidden]
    near = _near(typed, [*names, "search"])
    do = "see `expo-search --help`"
    if typed in preset_names():
        do = f"to search that pair: expo-search --pair {typed}"
    elif near == "search":
        do = "the search has no name: expo-search --pair NAME"
    elif near:
        do = f"did you mean `expo-search {near}`?"
    return StudyError(where=_COMMAND_LINE, found=f"no command {typed!r}", expected="one of its commands", do=do)


def _does(command: Any) -> str:
    """A command's first paragraph, whole."""
    return " ".join((command.help or "").partition("\n\n")[0].split())


def _near(typed: str | None, names: list[str]) -> str | None:
    return next(iter(difflib.get_close_matches(typed or "", names, n=1)), None)


def _options(command: Any) -> list[str]:
    return [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]


def flag_of(parameter: Any) -> str:
    """A parameter as it is typed, or as the help calls it."""
    flags = [flag for flag in parameter.opts if flag.startswith("-")]
    return max(flags, key=len) if flags else str(parameter.metavar or parameter.name)
