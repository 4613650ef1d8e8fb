"""A user's own task: `module:function` scores the answers to a JSONL of prompts.

The function gets (row, answer), the row as the file has it, and returns a number, or a mapping of metrics to numbers;
True and False are right and wrong. A higher number is better; of several metrics the first one decides.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from expo_search.bench.data import load_rows
from expo_search.bench.task import Item, Metric
from expo_search.config.own_scorer import function_of
from expo_search.contracts import Request
from expo_search.errors import PromptsError, StudyError
from expo_search.inputs.own_function import file_hash, load_function
from expo_search.store.bench_store import Answered, Score, Scores
from expo_search.text import shortened

_MAX_TOKENS = 512


class OwnTask:
    """Prompts of a file, asked once each in the chat template, greedily; a row's `max_tokens` caps its answer."""

    def __init__(self, name: str, data: Mapping[str, Path]) -> None:
        """`name`: `module:function` or `FILE.py:function`; see `inputs.own_function`."""
        self.name = self.title = name
        self._scorer: Callable[[Mapping[str, Any], str], Any] = load_function(name)
        rows = load_rows(name, data.get(name), None, {"prompt": str})
        self.items: Sequence[Item] = [Item(str(i), row) for i, row in enumerate(rows.rows)]
        for item in self.items:
            _max_tokens(item, rows.source)
        self.settings: Mapping[str, Any] = {
            "data": rows.digest,
            "scorer": _lines_hash(self._scorer),  # all that benchmarks from before 2026-11-30 have of it
            "scorer_file": file_hash(name),
            "max_tokens": _MAX_TOKENS,
        }
        tried = self._scored(self.items[0], "")  # which metrics there are, and that it can be called at all
        self.metrics: Sequence[Metric] = [Metric(metric, metric) for metric in tried]

    def request(self, item: Item, answers: Sequence[str]) -> Request | None:
        """Its prompt, once."""
        if answers:
            return None
        return Request(f"{self.name}/{item.id}", item.row["prompt"], max_tokens=_max_tokens(item, self.name))

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        """What the function says.

        Raises:
            StudyError: it fails, or returns no finite number.
        """
        scores = self._scored(item, answers[0].text)
        if list(scores) != [metric.name for metric in self.metrics]:
            raise self._fault(item, f"the metrics {', '.join(scores)}", "the same metrics for every item")
        return scores

    def _scored(self, item: Item, answer: str) -> dict[str, Score]:
        try:
            result = self._scorer(dict(item.row), answer)
        except Exception as fault:  # somebody's own code
            told = f"{type(fault).__name__}: {shortened(str(fault))}"
            raise self._fault(item, told, "a scorer that takes any answer, an empty one too") from None
        values = dict(result) if isinstance(result, Mapping) else {"score": result}
        for value in values.values():
            if not isinstance(value, Real) or not math.isfinite(value):
                raise self._fault(item, repr(value)[:80], "a finite number, True or False, or a mapping to those")
        if not values:
            raise self._fault(item, "no metric", "at least one")
        return {str(metric): Score(float(value)) for metric, value in values.items()}

    def _fault(self, item: Item, found: str, expected: str) -> StudyError:
        return StudyError(
            where=f"scorer {self.name}, item {item.id}", found=found, expected=expected, do="fix the function"
        )


def is_own(name: str) -> bool:
    """Whether a task's name is that of a function, `module:function` or `FILE.py:function`."""
    return function_of(name) is not None


def _max_tokens(item: Item, source: str) -> int:
    """An item's own limit; the usual one where it has none.

    Raises:
        PromptsError: it is no whole number from 1.
    """
    value = item.row.get("max_tokens")
    if value is None:  # a column with gaps
        return _MAX_TOKENS
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and float(value).is_integer():
        return int(value)
    raise PromptsError(
        where=f"{source}, item {item.id}",
        found=f"max_tokens {value!r}"[:80],
        expected="a whole number from 1",
        do="fix it, or leave it out",
    )


def _lines_hash(function: Callable[..., Any]) -> str:
    """16 hex digits of a function's own lines; of its name, or its kind's, where it has none."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = repr(getattr(function, "__qualname__", type(function).__qualname__))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
