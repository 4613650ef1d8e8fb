"""Where a task's rows come from: a local file, or the Hub by the usual name; checked before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_search.bench.task import TaskData
from expo_search.errors import PromptsError
from expo_search.folders import is_there
from expo_search.inputs.rows import SUFFIXES, file_rows, hub_rows
from expo_search.text import shortened


@dataclass(frozen=True)
class HubData:
    """A data set of the Hub: its id, split and configuration."""

    id: str
    split: str
    name: str | None = None


@dataclass(frozen=True)
class HubFile:
    """A file of a data set of the Hub, where the set itself is a script, which `datasets` runs no more."""

    id: str
    file: str


def load_rows(task: str, file: Path | None, hub: HubData | HubFile | None, columns: Mapping[str, type]) -> TaskData:
    """The rows of a task's file, or of its data set; each must have these columns, of these types.

    Raises:
        PromptsError: no file and no data set, not readable, no rows, or a row without the columns.
    """
    option = f"--data {task}=FILE (of the search: --bench-data)"
    if file is not None:
        check_file(file, f"--data {task}={file}")
        rows = _checked(file_rows(file), columns)
        source = str(file)
    elif isinstance(hub, HubFile):
        rows = _checked(file_rows(_fetched(hub, option)), columns)
        source = f"{hub.id}, {hub.file}"
    elif hub is not None:
        rows = _checked(hub_rows(hub.id, hub.split, name=hub.name, option=option), columns)
        source = f"{hub.id}, {hub.split}"
    else:
        raise PromptsError(where=f"task {task}", found="no data", expected="a file with its items", do=f"give {option}")
    if not rows:
        raise PromptsError(where=f"task {task}, {source}", found="no rows", expected="at least one item", do="check it")
    return TaskData(source, rows)


def check_file(file: Path, where: str) -> None:
    """Check that a task's file is there and of a kind that is read; `where` gave it.

    Raises:
        PromptsError: it is not.
    """
    expected = "a .jsonl, .json or .parquet file"
    is_file = is_there(file, PromptsError, where=where, expected=expected) and file.is_file()
    if not is_file or file.suffix not in SUFFIXES:
        found = "a file of another kind" if is_file else "no such file"
        raise PromptsError(where=where, found=found, expected=expected, do="check the path")


def _fetched(hub: HubFile, option: str) -> Path:
    """The file in the Hub's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub.id, hub.file, repo_type="dataset"))
    except Exception as fault:  # the Hub's errors, and the network's of the library that its client uses
        raise PromptsError(
            where=f"data set {hub.id}, {hub.file}",
            found=f"{type(fault).__name__}: {shortened(str(fault))}",
            expected="a file on the Hub, or in its cache",
            do=f"check the network; a local file works too: {option}",
        ) from None


def _checked(rows: Iterable[tuple[str, Any]], columns: Mapping[str, type]) -> Sequence[Mapping[str, Any]]:
    checked: list[Mapping[str, Any]] = []
    wanted = ", ".join(f"{name} ({_NAMES[kind]})" for name, kind in columns.items())
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise PromptsError(
                where=where, found=f"a {type(row).__name__}", expected="an object", do="write one JSON object a line"
            )
        wrong = [name for name, kind in columns.items() if not isinstance(row.get(name), kind)]
        if wrong:
            present = [name for name in wrong if name in row]
            raise PromptsError(
                where=where,
                found=f"another type of {', '.join(present)}"
                if present
                else f"columns {', '.join(sorted(map(str, row))) or 'none'}",
                expected=f"the columns {wanted}",
                do="name them so, or give another file",
            )
        checked.append(row)
    return checked


_NAMES: Mapping[type, str] = {str: "text", list: "a list", int: "a number"}
