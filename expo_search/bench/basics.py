"""`basics`: the package's own small set, short questions whose answers a rule can check.

Written for this project, so that a benchmark needs no hub, no judge and no minutes; a small model answers some of them
right. Each item names what must hold of its answer: all of it makes the answer right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from expo_search.bench.task import Item, Metric, TaskData
from expo_search.contracts import Request
from expo_search.store.bench_store import Answered, Score, Scores

MAX_TOKENS = 48
_METRIC = Metric("right", "right answers")
_RULES = 1  # raised where a rule below changes, so that answers scored by others are not mixed in


class Basics:
    """The items of `basics.jsonl`, asked once each in the chat template, greedily."""

    name = title = "basics"
    metrics: Sequence[Metric] = (_METRIC,)

    def __init__(self) -> None:
        data = own_items()
        self.items: Sequence[Item] = [Item(row["id"], row) for row in data.rows]
        self.settings: Mapping[str, Any] = {"data": data.digest, "rules": _RULES, "max_tokens": MAX_TOKENS}

    def request(self, item: Item, answers: Sequence[str]) -> Request | None:
        """Its prompt, once."""
        return None if answers else Request(f"basics/{item.id}", item.row["prompt"], max_tokens=MAX_TOKENS)

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        """1 where all that the item's check names holds, else 0."""
        return {_METRIC.name: Score(float(is_right(item.row["check"], answers[0].text)))}


@cache
def own_items() -> TaskData:
    """The shipped items: id, kind, prompt, check."""
    lines = Path(__file__).with_name("basics.jsonl").read_text(encoding="utf-8").splitlines()
    return TaskData("shipped", [json.loads(line) for line in lines])


def is_right(check: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer passes all of a check's rules, `RULES` by name."""
    text = answer.strip()
    return bool(text) and all(RULES[rule](wanted, text) for rule, wanted in check.items())


def _numbers(text: str) -> list[float]:
    """The numbers in a text; 1,000 is one."""
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", text)]


def _has(wanted: str, text: str) -> bool:
    """Whether a text has these words, whatever their case."""
    return re.search(rf"(?<!\w){re.escape(wanted.casefold())}(?!\w)", text.casefold()) is not None


def _is_json(keys: Sequence[str], text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value) == list(keys)


# rule -> whether what the check wants holds of a stripped answer
RULES = {
    "number": lambda n, text: _numbers(text)[-1:] == [n],  # the last one: working may come before it
    "says": lambda word, text: next(iter(re.findall(r"\b(yes|no)\b", text.casefold())), "") == word,
    "has": lambda words, text: any(_has(word, text) for word in words),
    "all_of": lambda words, text: all(_has(word, text) for word in words),
    "has_exactly": lambda words, text: all(word in text for word in words),
    "without": lambda texts, text: not any(t.casefold() in text.casefold() for t in texts),
    "count": lambda of, text: len(re.findall(rf"\b{re.escape(of[0])}\b", text.casefold())) == of[1],
    "words": lambda ends, text: ends[0] <= len(text.split()) <= ends[1],
    "lines": lambda ends, text: ends[0] <= sum(bool(line.strip()) for line in text.splitlines()) <= ends[1],
    "case": lambda case, text: text == (text.lower() if case == "lower" else text.upper()),
    "starts": lambda start, text: text.startswith(start),
    "ends": lambda end, text: text.endswith(end),
    "matches": lambda pattern, text: re.fullmatch(pattern, text, re.DOTALL) is not None,
    "json": _is_json,
}
