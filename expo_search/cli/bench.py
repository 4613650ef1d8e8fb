"""The command that asks what an alpha does beyond the reward model: `bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from expo_search.api import open_session
from expo_search.cli import completion
from expo_search.cli.console import (
    DEFAULT_LOG,
    Engines,
    Json,
    Log,
    Quiet,
    RayAddress,
    Storage,
    StudyName,
    TrustRemoteCode,
    check_there,
    give_up_on,
    known_study,
    n_engines,
    terminal,
)
from expo_search.cli.inspect import print_bench
from expo_search.cli.signals import AGAIN, same_command, stop_on_signals
from expo_search.config.options import DEFAULT_STORAGE, OF_BENCH, TaskOptions
from expo_search.errors import StudyError
from expo_search.folders import user_path

_TASKS = (
    "basics (shipped), ifeval, ifeval_no_punkt, gsm8k, gsm8k_5shot, alpaca_eval, mt_bench, lm_eval:NAME, "
    "module:function"
)


def bench(
    study: StudyName = None,
    tasks: Annotated[
        str, typer.Option(metavar="A,B,..", help=f"Of: {_TASKS}.", autocompletion=completion.tasks)
    ] = "basics",
    alphas: Annotated[str | None, typer.Option(metavar="A,B,..", help="Beside 0; the best one by default.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first items of each task.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="TASK=FILE", help="A file in the place of the Hub; may be given again.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write answers that others judge there.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME_OR_DIR", help="A judge of alpaca_eval, for the task of that name.")
    ] = None,
    again: Annotated[bool, typer.Option(AGAIN, help="Forget what is stored of these tasks.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    engines: Engines = None,
    ray_address: RayAddress = None,
    storage: Storage = DEFAULT_STORAGE,
    log: Log = DEFAULT_LOG,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare the best alpha with alpha = 0 on tasks that no reward model sees, item by item."""
    from expo_search.cli.chat_session import parse_alphas

    wanted_engines = n_engines(engines)
    check_there(storage)  # before the tasks are imported
    names = task_names(tasks)
    wanted = None if alphas is None else parse_alphas(alphas)
    files = task_files(data or [], names)
    name = known_study(study, storage)
    with terminal(log) as (out, err):
        session = open_session(
            name,
            storage,
            engines=wanted_engines,
            ray_address=ray_address,
            start=False,
            rates=False,
            trust_remote_code=trust_remote_code,
            quiet=quiet,
            console=err,
            give_up=give_up_on(err),
        )
        with session, stop_on_signals(session.say) as stop:
            result = session.bench(
                names, wanted, data=files, limit=limit, again=again, out=answers, judge=judge, stop=stop
            )
        if result is None:
            session.say(f"Stopped. To go on:\n  {same_command(sys.argv[1:])}")
            raise typer.Exit(130)
        if as_json:
            out.print(Text(json.dumps({"study": name, **result.as_json()}, indent=2)), soft_wrap=True)
        else:
            print_bench(out, result)


@dataclass(frozen=True)
class Wanted:
    """What a search is to benchmark at its end: tasks, files by task, the first items of each."""

    tasks: Sequence[str]
    data: Mapping[str, str | Path]
    limit: int | None


def task_names(text: str, options: TaskOptions = OF_BENCH) -> list[str]:
    """The names between commas; `options` gave them.

    Raises:
        StudyError: none, or one that is unknown.
    """
    from expo_search.bench.registry import check_names

    names = [task for task in text.split(",") if task]
    check_names(names, options.tasks)
    return names


def task_files(given: Sequence[str], tasks: Sequence[str], options: TaskOptions = OF_BENCH) -> dict[str, str | Path]:
    """Task -> file, of TASK=FILE each; `options` gave them. Files of tasks that are not asked for are told later.

    Raises:
        StudyError: a text that is not of that form.
        PromptsError: no such file, or one of another kind.
    """
    from expo_search.bench.data import check_file

    files: dict[str, str | Path] = {}
    for text in given:
        task, equals, file = text.partition("=")
        if not task or not equals or not file:
            raise StudyError(
                where=options.data, found=repr(text), expected="TASK=FILE", do="give the task's name before its file"
            )
        files[task] = user_path(file)
        if task in tasks:
            check_file(user_path(file), f"{options.data} {text}")
    return files
