"""`StudySpec` -> what its keys mean: a commented study file to begin with, and a JSON schema for editors."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from expo_search.config.faults import NAME
from expo_search.config.options import option_of
from expo_search.config.presets import load_study, preset_names
from expo_search.config.spec import RewardModelSpec, StudySpec

_WIDTH = 110  # of a comment's lines
_ABOUT = {"family", "aliases", "licence", "notes", "needs_remote_code", "parts"}  # of a preset, not of a search


def about(model: type[BaseModel]) -> str:
    """What a table of a study file is for: its docstring before the list of attributes, on one line."""
    return " ".join((model.__doc__ or "").partition("Attributes:")[0].split())


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> meaning, from the model's docstring ("Attributes:"), for the keys that it tells about."""
    attributes = (model.__doc__ or "").partition("Attributes:")[2]
    entries = re.findall(r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def meaning(table: str, key: str, model: type[BaseModel]) -> str:
    """Of one key; empty where its name says all."""
    if told := meanings(model).get(key):
        return told[:1].upper() + told[1:]
    option = option_of(table, key)
    return option.help if option else ""


def study_file(preset: str | None, pair: Mapping[str, str], name: str | None = None) -> str:
    """A study file in TOML, on a preset or with a pair's own paths; every other key commented out, with its value.

    `name`: of its study, where that is one that a study may have; else it is the preset's or the file's.

    Raises:
        StudyError: an unknown preset, or a pair that lacks a part.
    """
    given = {"pair": {key: value for key, value in pair.items() if key != "prompts"}}
    if "prompts" in pair:
        given["prompts"] = {"source": pair["prompts"]}
    spec = load_study(preset=preset, overrides=given, name="mine", trust_remote_code=True)
    own = name is not None and re.fullmatch(NAME, name) is not None
    lines = [
        "# A study of expo-search: `expo-search --study FILE`. Paths are relative to this file.",
        "# A key behind # has the value that it shows; to change it take the # away, and fill in one that is not set.",
        "# `expo-search schema > FILE.json` writes what editors complete keys with: `#:schema ./FILE.json` in line 1.",
        "",
        *(["# By this name commands find the study.", f"name = {_toml(name)}", ""] if own else []),
        *([f"preset = {_toml(preset)}", ""] if preset else []),
    ]
    for table, field in StudySpec.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            lines += [*_table(table, model, getattr(spec, table), given.get(table, {})), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: str, model: type[BaseModel], values: BaseModel, given: Mapping[str, str]) -> Iterator[str]:
    yield f"# {about(model)}"
    yield f"[{table}]"
    for key in model.model_fields:
        value = getattr(values, key)
        if key in _ABOUT or isinstance(value, BaseModel):
            continue
        told = meaning(table, key, model)
        yield from textwrap.wrap(
            told, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
        )
        if key in given:
            yield f"{key} = {_toml(value)}"
        else:
            yield f"# {key} = {_toml(value)}" if value is not None else f'# {key} = ""    # not set'


def _toml(value: object) -> str:
    """As TOML writes it; JSON's strings, lists and booleans are TOML's too."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(v)}' for k, v in value.items())}}}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of study files, with each key's meaning, default and range."""
    told = StudySpec.model_json_schema()
    several = told["properties"].pop("rewards")
    del told["properties"]["trust_remote_code"]  # the command line's alone
    table, array = told["properties"]["reward"], {"type": "array", "items": several["items"], "minItems": 2}
    told["properties"]["reward"] = {"anyOf": [{"$ref": table["$ref"]}, array], "default": table["default"]}
    models = {field.annotation: table for table, field in StudySpec.model_fields.items()} | {RewardModelSpec: "reward"}
    for model, table in models.items():
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        properties = told["$defs"][model.__name__]["properties"]
        for key, entry in properties.items():
            text = meaning(table, key, model)
            if text:
                entry["description"] = text
    names = {file.stem for file in preset_names().values()}
    base = {"type": "string", "enum": sorted(names | set(preset_names())), "description": "A preset to build on."}
    properties = {"preset": base} | told["properties"]
    # a file may leave all to its preset and its name to itself
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | told
        | {"title": "A study of expo-search", "properties": properties, "required": []}
    )
