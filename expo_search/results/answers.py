"""stored answers of a trial -> rows beside those of alpha = 0, safe to show anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from expo_search.contracts import Part
from expo_search.evaluation.result import CONTROL
from expo_search.store.study_store import Store
from expo_search.text import clean, cut


@dataclass(frozen=True)
class Sample:
    """One prompt, its answer and the answer at alpha = 0; texts as stored.

    Attributes:
        control: the answer at alpha = 0; None where there is none.
        reward: None before it is scored.
        difference: reward less that of alpha = 0; None unless both are scored.
    """

    position: int
    prompt: str
    answer: str
    control: str | None
    reward: float | None
    difference: float | None
    n_tokens: int
    finish_reason: str

    def row(self) -> dict[str, Any]:
        """As a row of a table, texts clean."""
        return {
            "prompt": cut(clean(self.prompt)),
            "answer": cut(clean(self.answer)),
            "answer_at_alpha_0": None if self.control is None else cut(clean(self.control)),
            "reward": None if self.reward is None else round(self.reward, 4),
            "difference": None if self.difference is None else round(self.difference, 4),
            "tokens": self.n_tokens,
            "finish_reason": self.finish_reason,
        }


def samples(store: Store, trial: int, part: Part = "search") -> list[Sample]:
    """Every stored answer of a trial, in the order of the prompts, which is a random one."""
    prompts = store.prompts(part)
    control = {s.position: s for s in store.completions(CONTROL, part, prompts)}
    rows = []
    for s in store.completions(trial, part, prompts):
        base = control.get(s.position)
        rows.append(
            Sample(
                s.position,
                s.completion.prompt.text,
                s.completion.text,
                None if base is None else base.completion.text,
                s.reward,
                None if base is None or base.reward is None or s.reward is None else s.reward - base.reward,
                s.completion.n_tokens,
                s.completion.finish_reason,
            )
        )
    return rows


def json_lines(rows: Sequence[Sample], *, n_max: int, bytes_max: int) -> tuple[bytes, int]:
    """The first rows as JSON lines, at most n_max and at most bytes_max together; and how many they are."""
    lines, size = [], 0
    for line in _lines(rows[:n_max]):
        size += len(line)
        if size > bytes_max:
            break
        lines.append(line)
    return b"".join(lines), len(lines)


def _lines(rows: Sequence[Sample]) -> Iterator[bytes]:
    for sample in rows:
        yield json.dumps(sample.row(), ensure_ascii=False, allow_nan=False).encode() + b"\n"
