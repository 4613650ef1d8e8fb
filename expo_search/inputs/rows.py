"""Rows of a `.jsonl`, `.json` or `.parquet` file, or of a Hub data set's split, each with where it stands."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from expo_search.errors import PromptsError
from expo_search.text import first_of, shortened

_BATCH_ROWS = 1000
SUFFIXES = frozenset({".jsonl", ".json", ".parquet"})


def file_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(where, row) of a file of one of `SUFFIXES`; `columns` are those that a Parquet file is read for.

    Raises:
        PromptsError: not readable, not UTF-8, not JSON; names the line.
    """
    yield from _parquet_rows(path, columns) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    def fault(where: str, found: str) -> PromptsError:
        return PromptsError(where=where, found=found, expected="UTF-8 JSON", do="fix the line, or remove it")

    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError:
            raise fault(str(path), "bytes that are not UTF-8") from None
        except OSError as error:
            raise fault(str(path), f"not readable ({error})") from None
        except (ValueError, RecursionError) as error:
            raise fault(str(path), f"not JSON ({error})") from None
        if not isinstance(rows, list):
            raise fault(str(path), "not a list of rows")
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))
        return
    try:
        with path.open("rb") as stream:  # by \n alone: a string may hold other characters that end lines in Python
            for number, line in enumerate(stream, 1):
                where = f"{path}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield where, json.loads(text)
                except UnicodeDecodeError:
                    raise fault(where, "bytes that are not UTF-8") from None
                except (ValueError, RecursionError) as error:
                    raise fault(where, f"not JSON ({error})") from None
    except OSError as error:
        raise fault(str(path), f"not readable ({error})") from None


def _parquet_rows(path: Path, columns: Collection[str] | None) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [c for c in columns if c in names]
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise PromptsError(
            where=str(path),
            found=f"not readable as Parquet ({error})",
            expected="a Parquet file",
            do="write the file again",
        ) from None


def hub_rows(
    source: str,
    split: str,
    *,
    name: str | None = None,
    columns: Collection[str] | None = None,
    option: str | None = "--prompts FILE",
    split_option: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """(where, row) of a split of a Hub data set; `name` of its configuration, `columns` those that are wanted.

    For messages, if there is one, `option`: what takes a file in its place; `split_option`: what takes another split.

    Raises:
        PromptsError: it is not reached, or not there, or has no such split, and then says which it has.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(source, name, split=split)
    except Exception as error:  # datasets raises its own, the Hub's, and the network's errors
        splits = _splits(source, name) if isinstance(error, ValueError) else []  # it was reached: ask it once more
        if splits and split not in splits:
            others = [f"{split_option} {splits[0]}"] if split_option else []
            others += [f"a local .jsonl file: {option}"] if option else []
            raise PromptsError(
                where=f"data set {source}",
                found=f"no split {split!r}",
                expected=f"one of {first_of(splits, between=', ')}",
                do=f"give {', or '.join(others)}" if others else "check the data set",
            ) from None
        raise PromptsError(
            where=f"data set {source}, split {split}",
            found=f"{type(error).__name__}: {shortened(str(error))}",
            expected="a data set on the Hub, or in the local cache",
            do="check the id and the network" + (f"; a local .jsonl file works too: {option}" if option else ""),
        ) from None
    wanted = [c for c in (data.column_names if columns is None else columns) if c in data.column_names]
    yield from ((f"data set {source}, row {i}", row) for i, row in enumerate(data.select_columns(wanted), 1))


def _splits(source: str, name: str | None) -> list[str]:
    """The splits of a Hub data set; none where it does not say."""
    import datasets

    try:
        return [str(split) for split in datasets.get_dataset_split_names(source, name)]
    except Exception:  # as above: what kept the rows from being loaded is then the fault to tell of
        return []
