"""The help: options by what they are about, nothing cut off at 80 columns, no word broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import typer.main

from expo_search.cli.main import app
from expo_search.config.options import OPTIONS


def told(*words: str, width: int = 80) -> str:
    command = [sys.executable, "-m", "expo_search", *words, "--help"]
    environment = os.environ | {"COLUMNS": str(width)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_options_stand_by_what_they_are_about_and_none_is_missing() -> None:
    text = told()
    heads = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert heads == ["Pair", "Prompts", "Search", "Engine", "Output", "Commands"]
    parts = dict(zip(heads, re.split(r"^\w+:$", text, flags=re.MULTILINE)[1:], strict=True))
    for part, flags in {
        "Pair": ("--pair", "--study", "--adapter", "--trust-remote-code"),
        "Prompts": ("--prompts", "--n-prompts", "--max-tokens"),
        "Search": ("--trials", "--confirm", "--alpha-max", "--study-name"),
        "Engine": ("--reward-backend", "--tensor-parallel"),
        "Output": ("--storage", "--log", "--json", "--help"),
    }.items():
        assert all(re.search(rf"(?<![\w-]){flag}\b", parts[part]) for flag in flags), part
    assert all(option.flag in text for option in OPTIONS)


def test_nothing_is_cut_off_at_80_columns() -> None:
    text = told()
    assert "..." not in text.replace("A,B,..", "").replace("[ARGS]...", "")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for command in app.registered_commands:
        first = (command.callback.__doc__ or "").partition("\n\n")[0] if command.callback else ""
        assert " ".join(first.split()) in " ".join(text.split())


@pytest.mark.parametrize("name", ["confirm", "export", "compare", "reproduce"])
def test_the_help_of_a_command_is_not_cut_off_either(name: str) -> None:
    text = told(name)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("columns", [60, 80])
def test_no_word_of_any_command_is_broken(columns: int) -> None:
    group: Any = typer.main.get_command(app)
    for name, command in {"": group, **group.commands}.items():
        words = set(help_of(command, name, 1000).split())
        text = help_of(command, name, columns - 2)  # as wide as it is on such a terminal
        assert [word for word in text.split() if word not in words] == [], name
        assert max(map(len, text.splitlines())) <= columns


def help_of(command: Any, name: str, width: int) -> str:
    with command.context_class(command, info_name=name, terminal_width=width, max_content_width=width) as context:
        return str(command.get_help(context))


def test_a_name_with_a_hyphen_and_a_url_stay_whole_on_a_terminal() -> None:
    assert all("sqlite:///expo-search.db]" in told(width=width).split() for width in (60, 80))
