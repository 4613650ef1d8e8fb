"""Answers that this process has just read or written, so that they are not read again from a database far away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from expo_search.contracts import Part, Prompt, Rated

_TRIALS = 3  # whose texts are kept: the one under way, the control that each is compared with, and one more
_Key = tuple[int, Part]


@dataclass(frozen=True)
class AnswerRow:
    """One answer as it is kept; `reward` is None until it is scored."""

    text: str
    n_tokens: int
    finish_reason: str
    reward: float | None = None


class Recent:
    """Whole trials, by their number and part: texts of the few used last, rewards of all."""

    def __init__(self) -> None:
        self.prompts: dict[Part, list[Prompt]] = {}
        self._trials: OrderedDict[_Key, dict[int, AnswerRow]] = OrderedDict()
        self._rated: dict[_Key, dict[int, Rated]] = {}
        self._written: set[_Key] = set()

    def is_written(self, key: _Key) -> bool:
        """Whether answers of the trial were written here, and so may not be in the database yet."""
        return key in self._written

    def keep(self, key: _Key, rows: Mapping[int, AnswerRow]) -> dict[int, AnswerRow]:
        """Keep all answers of a trial, by position, as they were read."""
        self._trials[key] = dict(rows)
        self._rated.pop(key, None)
        while len(self._trials) > _TRIALS:
            old, answers = self._trials.popitem(last=False)
            self._rated[old] = _rated(answers)
        return self._trials[key]

    def rows(self, key: _Key) -> dict[int, AnswerRow] | None:
        """All answers of a trial by position; None where its texts are not kept."""
        if key not in self._trials:
            return None
        self._trials.move_to_end(key)
        return self._trials[key]

    def rated(self, key: _Key) -> dict[int, Rated] | None:
        """The scored answers of a trial by position; None where they are not kept."""
        rows = self.rows(key)
        return self._rated.get(key) if rows is None else _rated(rows)

    def add(self, key: _Key, answers: Mapping[int, AnswerRow]) -> None:
        """Answers that are being written."""
        if (rows := self._to_write(key)) is not None:
            rows |= answers

    def rate(self, key: _Key, rewards: Mapping[int, float]) -> None:
        """Rewards that are being written."""
        if (rows := self._to_write(key)) is not None:
            rows |= {position: replace(rows[position], reward=float(reward)) for position, reward in rewards.items()}

    def _to_write(self, key: _Key) -> dict[int, AnswerRow] | None:
        self._written.add(key)
        self._rated.pop(key, None)
        return self.rows(key)

    def forget(self, part: Part) -> None:
        """Of a part that is dropped."""
        self.prompts.pop(part, None)
        for kept in (self._trials, self._rated):
            for key in [key for key in kept if key[1] == part]:
                del kept[key]


def _rated(rows: Mapping[int, AnswerRow]) -> dict[int, Rated]:
    by_position = sorted(rows.items(), key=lambda item: item[0])
    return {position: Rated(row.reward, row.n_tokens) for position, row in by_position if row.reward is not None}
