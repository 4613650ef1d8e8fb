"""A hook of MkDocs: the pages that the code itself tells, and links into the tree turned into names.

`configuration.md` is made from `StudySpec`, `commands.md` from the command line's own help, at each build, so neither
can be out of date and neither is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from expo_search.cli.main import app
from expo_search.config.keys import about, meaning
from expo_search.config.options import option_of
from expo_search.config.spec import RewardModelSpec, StudySpec


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the two pages."""
    for name, text in (("configuration.md", configuration()), ("commands.md", commands())):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link out of the docs, which works where the repository is read, is its text on the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def configuration() -> str:
    """Every key of a study file."""
    parts = [
        "# Configuration",
        'A study file is TOML; a key may be left out. `preset = "NAME"` in the first lines builds on '
        "a preset. Where an option of the command line sets a key, it stands beside it.",
        *tables("", StudySpec),
    ]
    return "\n\n".join(parts) + "\n"


def tables(path: str, model: type[BaseModel]) -> Iterator[str]:
    """A model's own keys as a table, then the models inside it, each under its dotted name."""
    inside = {name: field.annotation for name, field in model.model_fields.items() if is_table(field.annotation)}
    rows = [row(path, name, model) for name in model.model_fields if name not in inside and name != "rewards"]
    if path:
        yield f"## `[{path}]`"
        yield about(model)
    if rows:
        yield "\n".join(["| key | default | option | meaning |", "| --- | --- | --- | --- |", *rows])
    for name, annotation in inside.items():
        assert isinstance(annotation, type)
        yield from tables(f"{path}.{name}".strip("."), annotation)
        if annotation is StudySpec.model_fields["reward"].annotation:  # which an array of tables may stand for
            yield from tables("[reward]", RewardModelSpec)


def is_table(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def row(path: str, name: str, model: type[BaseModel]) -> str:
    """One key of a table."""
    field, option = model.model_fields[name], option_of(path, name)
    default = "required" if field.is_required() else value(field)
    told = meaning(path, name, model).replace("|", "\\|")
    return f"| `{name}` | {default} | {f'`{option.flag}`' if option else ''} | {told} |"


def value(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default == "" or default == ():
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def commands() -> str:
    """Every command's own help."""
    group: Any = typer.main.get_command(app)  # of the click that typer carries
    parts = ["# Commands", "As `--help` says it.", command_help(group, "expo-search")]
    for name, command in sorted(group.commands.items()):
        parts += [f"## {name}", command_help(command, f"expo-search {name}")]
    return "\n\n".join(parts) + "\n"


def command_help(command: Any, path: str) -> str:
    context = command.context_class(command, info_name=path, terminal_width=100, max_content_width=100)
    return f"```\n{command.get_help(context).rstrip()}\n```"
