"""The commands to begin a study of one's own with: `init` writes a study file, `schema` what editors complete it by."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from expo_search.cli.completion import presets
from expo_search.cli.console import console_on
from expo_search.config.presets import load_study
from expo_search.errors import StudyError
from expo_search.results.atomic_file import written_whole
from expo_search.text import clean

_MODEL = "PATH_OR_ID"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="A new study file.")],
    pair: Annotated[str | None, typer.Option(help="A preset to build on.", autocompletion=presets)] = None,
    sft: Annotated[str | None, typer.Option(metavar=_MODEL, help="The SFT checkpoint.")] = None,
    aligned: Annotated[str | None, typer.Option(metavar=_MODEL, help="The checkpoint aligned from it.")] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar=_MODEL, help="A sequence classifier with one label; to be filled in else.")
    ] = None,
    prompts: Annotated[str | None, typer.Option(metavar="FILE_OR_DATASET", help="Prompts.")] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar=_MODEL, help="A LoRA adapter: aligned is then --aligned with it merged in.")
    ] = None,
) -> None:
    """Write a commented study file, from a preset or from the paths of two checkpoints."""
    from expo_search.config.keys import study_file

    if pair is None and (aligned is None or (sft is None and adapter is None)):
        raise StudyError(
            where="init",
            found="no pair",
            expected="--pair NAME, --sft and --aligned, or --aligned and --adapter",
            do=f"write for example: expo-search init {shlex.quote(str(file))} --pair zephyr",
        )
    given = {"aligned": aligned, "adapter": adapter, "sft": sft, "reward_model": reward_model, "prompts": prompts}
    if pair is None and reward_model is None:
        given["reward_model"] = "PATH_OR_ID"
    values = {key: _from(file, value) for key, value in given.items() if value is not None}
    _check_text(values)
    text = study_file(pair, values, file.stem)
    try:
        if os.path.lexists(file):
            raise FileExistsError
        with written_whole(file) as fresh:  # no part of a file is left where the disk is full
            fresh.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise StudyError(
            where=str(file),
            found="exists already" if isinstance(fault, FileExistsError) else fault.strerror or str(fault),
            expected="a new file",
            do="give another name",
        ) from None
    todo = "" if reward_model or pair else "; fill in its reward_model"
    err = console_on(sys.stderr)
    asks = pair is not None and load_study(preset=pair, trust_remote_code=True).pair.needs_remote_code
    then = f"expo-search --study {shlex.quote(str(file))} --dry-run{' --trust-remote-code' if asks else ''}"
    err.print(Text(clean(f"written to {file}{todo}. Then:\n  {then}")), soft_wrap=True)


def _check_text(values: Mapping[str, str]) -> None:
    """Check that a study file can hold these values, by key: a name of a file may be bytes that are no text.

    Raises:
        StudyError: one of them is none; names its option.
    """
    for key, value in values.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise StudyError(
                where=f"--{key.replace('_', '-')} {value}",
                found="bytes that are not UTF-8",
                expected="text, as a study file is",
                do="rename it",
            ) from None


def _from(file: Path, value: str) -> str:
    """A relative path that is there, as it lies from the study file; anything else as it is."""
    is_here = not value.startswith(("/", "~")) and os.path.exists(value)  # noqa: PTH110  Path.exists may raise
    if not is_here:
        return value
    near, real = os.path.relpath(value, file.parent), os.path.realpath
    # `..` of a folder that is a link is the one above where it leads
    return near if real(file.parent / near) == real(value) else os.path.relpath(real(value), real(file.parent))


def schema() -> None:
    """Print the JSON schema of study files, which editors complete and check them with."""
    from expo_search.config.keys import schema as of_files

    typer.echo(json.dumps(of_files(), indent=2))
