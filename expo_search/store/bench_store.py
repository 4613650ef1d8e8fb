"""Answers and scores of benchmarks, kept beside a study's trials: by task, alpha and item.

Answers are written as they come and scores with the last one of an item, so a run that ends at any moment goes on at
the item. What a task was answered under is pinned, as a study's settings are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.errors import SettingsChanged
from expo_search.store.study_store import Store
from expo_search.store.tables import BenchAlphaRow, BenchAnswerRow, BenchScoreRow, BenchTaskRow
from expo_search.text import storable

T = TypeVar("T")

ASKED = "asked"  # of a task's settings: what its last run was asked for
_SHOWN = {"title", "metrics", "judge", ASKED}  # of them, how a task is shown, which changes no answer
_RULES = "definition"  # a task of the harness that was begun without it was asked and scored by rules that have changed
# Not kept by every version: a task that was begun without one of them goes on, and keeps the one it goes on under
_LATER = {"scorer", "scorer_file"}
_TABLES = (BenchTaskRow, BenchAnswerRow, BenchScoreRow)


@dataclass(frozen=True)
class Score:
    """How good one item's answer is by one metric: a value, and how much it weighs in the mean over the items.

    The weight is 1, but where an item holds several things that are counted (IFEval's instructions).
    """

    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Answered:
    """One stored answer, or the likelihood of a text where `log_probability` is not None."""

    text: str
    n_tokens: int
    finish_reason: str
    log_probability: float | None = None
    is_greedy: bool | None = None


Scores = Mapping[str, Score]  # by metric


class BenchStore:
    """The benchmarks of one study. With a store that only reads, only reading works."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._of = {"study_id": store.study_id}

    def pin(self, task: str, settings: Mapping[str, Any]) -> None:
        """Keep what a task's answers are made under.

        Raises:
            SettingsChanged: there are answers that were made under others.
        """

        def put(session: Session, _: bool) -> None:
            row = session.get(BenchTaskRow, (self._store.study_id, task))
            if row is None:
                session.add(BenchTaskRow(**self._of, task=task, settings=json.dumps(settings, sort_keys=True)))
            else:
                there = json.loads(row.settings)
                self._compare(task, there, settings)
                later = {key: settings[key] for key in _LATER & (settings.keys() - there.keys())}
                if later:
                    row.settings = json.dumps(there | later, sort_keys=True)

        self._store.writing(put)

    def check(self, task: str, settings: Mapping[str, Any]) -> None:
        """As `pin`, without keeping anything."""
        stored = self.settings(task)
        if stored:
            self._compare(task, stored, settings)

    def _compare(self, task: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        now = json.loads(json.dumps(now))  # as the database has it
        compared = (there.keys() | now.keys()) - _SHOWN - (_LATER - there.keys())
        keys = sorted(key for key in compared if there.get(key) != now.get(key))
        if keys:
            told = "; ".join(_difference(key, there, now) for key in keys)
            raise SettingsChanged(
                where=f"study {self._store.name}, task {task}",
                found=f"answers made under other settings ({told})",
                expected="those that its answers were made under",
                do="go back to those, or give `bench --again`, which drops the task's answers at every alpha",
            )

    def describe(self, task: str, shown: Mapping[str, Any]) -> None:
        """Keep more of how a task is shown: `title`, `metrics`, `judge`, `ASKED`."""

        def put(session: Session, _: bool) -> None:
            row = session.get_one(BenchTaskRow, (self._store.study_id, task))
            row.settings = json.dumps(json.loads(row.settings) | dict(shown), sort_keys=True)

        self._store.writing(put)

    def settings(self, task: str) -> Mapping[str, Any]:
        """What a task's answers were made under; empty where there are none."""
        query = sa.select(BenchTaskRow.settings).where(
            BenchTaskRow.study_id == self._store.study_id, BenchTaskRow.task == task
        )
        kept = self._read(lambda session: session.scalar(query))
        return {} if kept is None else json.loads(kept)

    def forget(self, task: str) -> None:
        """Drop a task's answers and scores, at every alpha."""

        def drop(session: Session, _: bool) -> None:
            for table in _TABLES:
                session.execute(sa.delete(table).where(table.study_id == self._store.study_id, table.task == task))

        self._store.writing(drop)

    def pin_weights(self, alpha: float, fingerprint: str) -> None:
        """Keep which weights answer at an alpha.

        Raises:
            SettingsChanged: other weights answered there before.
        """

        def put(session: Session, _: bool) -> None:
            row = session.get(BenchAlphaRow, (self._store.study_id, alpha))
            if row is None:
                session.add(BenchAlphaRow(**self._of, alpha=alpha, fingerprint=fingerprint))
            elif row.fingerprint != fingerprint:
                raise SettingsChanged(
                    where=f"study {self._store.name}, benchmarks at alpha {alpha:g}",
                    found=f"weights {fingerprint}",
                    expected=f"{row.fingerprint}, which made the stored answers",
                    do="give the checkpoints it was made with, or search again under another --study-name",
                )

        self._store.writing(put)

    def add(
        self,
        task: str,
        alpha: float,
        answers: Mapping[tuple[str, int], Answered],
        scores: Mapping[tuple[str, int], Scores] | None = None,
        *,
        tried: bool = False,
    ) -> None:
        """Keep answers by (item, turn), and scores by (item, position), in one transaction.

        tried: the very same were given before, and who gave them was interrupted: they may be there, all or none.
        """
        key = self._of | {"task": task, "alpha": alpha}
        answer_rows = [
            key
            | {"item": item, "turn": turn, "text": storable(a.text), "n_tokens": a.n_tokens}
            | {"finish_reason": a.finish_reason, "log_probability": a.log_probability, "is_greedy": a.is_greedy}
            for (item, turn), a in answers.items()
        ]
        score_rows = [
            key | {"item": item, "position": position, "scores": _dumped(given)}
            for (item, position), given in (scores or {}).items()
        ]

        def put(session: Session, tried: bool) -> None:
            if tried and self._is_there(session, answer_rows, score_rows):
                return  # the commit before was made, and with it all of them
            if answer_rows:
                session.execute(sa.insert(BenchAnswerRow), answer_rows)
            if score_rows:
                session.execute(sa.insert(BenchScoreRow), score_rows)

        self._store.writing(put, tried=tried)

    def rescore(self, task: str, alpha: float, scores: Mapping[str, Scores]) -> None:
        """Replace the scores of items that have some, by item: a judge came later."""
        key = self._of | {"task": task, "alpha": alpha}
        rows = [key | {"item": item, "scores": _dumped(given)} for item, given in scores.items()]

        def put(session: Session, _: bool) -> None:
            if rows:
                session.execute(sa.update(BenchScoreRow), rows)

        self._store.writing(put)

    @staticmethod
    def _is_there(
        session: Session, answer_rows: Sequence[Mapping[str, Any]], score_rows: Sequence[Mapping[str, Any]]
    ) -> bool:
        """Whether the first of the rows is stored."""
        for table, rows in ((BenchAnswerRow, answer_rows), (BenchScoreRow, score_rows)):
            if rows:
                key = [rows[0][column.name] for column in table.__table__.primary_key]
                return session.get(table, tuple(key)) is not None
        return True

    def answers(self, task: str, alpha: float) -> dict[str, list[Answered]]:
        """Item -> its answers so far, in the order of its turns."""
        query = sa.select(BenchAnswerRow).where(*self._are(BenchAnswerRow, task, alpha))
        found: dict[str, list[Answered]] = {}

        def read(session: Session) -> None:
            found.clear()
            for r in session.scalars(query.order_by(BenchAnswerRow.item, BenchAnswerRow.turn)):
                answered = Answered(r.text, r.n_tokens, r.finish_reason, r.log_probability, r.is_greedy)
                found.setdefault(r.item, []).append(answered)

        self._read(read)
        return found

    def scores(self, task: str, alpha: float) -> dict[str, Scores]:
        """Item -> its scores, in the order of the items."""
        query = sa.select(BenchScoreRow.item, BenchScoreRow.scores).where(*self._are(BenchScoreRow, task, alpha))
        rows = self._read(lambda session: session.execute(query.order_by(BenchScoreRow.position)).all())
        return {item: _loaded(scores) for item, scores in rows or ()}

    def tasks(self) -> dict[str, list[float]]:
        """Task -> the alphas at which items of it are scored, rising."""
        query = sa.select(BenchScoreRow.task, BenchScoreRow.alpha).where(BenchScoreRow.study_id == self._store.study_id)
        rows = self._read(lambda session: session.execute(query.distinct()).all()) or ()
        found: dict[str, list[float]] = {}
        for task, alpha in sorted((task, alpha) for task, alpha in rows):
            found.setdefault(task, []).append(alpha)
        return found

    def asked(self) -> list[str]:
        """The tasks of which it is kept what they were asked for, whether or not an item is scored."""
        query = sa.select(BenchTaskRow.task, BenchTaskRow.settings).where(BenchTaskRow.study_id == self._store.study_id)
        rows = self._read(lambda session: session.execute(query.order_by(BenchTaskRow.task)).all()) or ()
        return [task for task, settings in rows if ASKED in json.loads(settings)]

    def _are(self, table: type[BenchAnswerRow | BenchScoreRow], task: str, alpha: float) -> Sequence[Any]:
        return table.study_id == self._store.study_id, table.task == task, table.alpha == alpha

    def _read(self, query: Callable[[Session], T]) -> T | None:
        """What a query of either table gives; None where the database is older than benchmarks, and only read."""
        return self._store.reading(BenchScoreRow, query)


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two versions of a task's settings, for people."""
    if key == _RULES and key not in there:
        return "the rules of an earlier version, which asked and scored otherwise"
    return f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"


def _dumped(scores: Scores) -> str:
    return json.dumps({metric: [s.value, s.weight] for metric, s in scores.items()}, allow_nan=False)


def _loaded(text: str) -> Scores:
    return {metric: Score(*pair) for metric, pair in json.loads(text).items()}
