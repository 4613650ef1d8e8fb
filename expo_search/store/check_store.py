"""Rewards beside a study's own: by judge, trial, part and position of the answer.

A study's own rewards stand with its answers (`answer_rows.py`), and trials know of these alone. Beside them are those
of second judges, and where several reward models make the study's own together (`evaluation/ensemble.py`) each one's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.contracts import Part
from expo_search.store.attributes import StudyAttributes
from expo_search.store.study_store import Store
from expo_search.store.tables import CheckRewardRow


class CheckStore:
    """What judges, by their keys, gave one study's answers. With a store that only reads, only reading works."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def judges(self) -> Mapping[str, str]:
        """The second judges' names, by key."""
        return self._store.attributes.judges or {}

    def trained_on(self, judge: str) -> frozenset[str]:
        """Ids of the study's prompts that a judge was trained on, as far as it has met them."""
        return frozenset((self._store.attributes.trained_on or {}).get(judge, ()))

    def name(self, judge: str, name: str, trained_on: Collection[str] = ()) -> None:
        """Keep what a judge is called, and the ids of those of the study's prompts that it was trained on."""
        known = self._store.attributes.trained_on or {}
        ids = {**known, judge: sorted(self.trained_on(judge).union(trained_on))} if trained_on else None
        self._store.keep(StudyAttributes(judges={**self.judges, judge: name}, trained_on=ids))

    def add(self, judge: str, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        """Keep a judge's rewards by the position of their prompt, in one transaction."""
        self.add_all({judge: rewards}, trial, part)

    def add_all(self, rewards: Mapping[str, Mapping[int, float]], trial: int, part: Part) -> None:
        """As `add`, of several judges: all of it or none."""
        key = {"study_id": self._store.study_id, "trial": trial, "part": part}
        rows = [
            key | {"judge": judge, "position": position, "reward": float(reward)}
            for judge, by_position in rewards.items()
            for position, reward in by_position.items()
        ]
        if not rows:
            return
        first = (self._store.study_id, rows[0]["judge"], trial, part, rows[0]["position"])

        def put(session: Session, tried: bool) -> None:
            # all or none: the commit before may have been made
            if not (tried and session.get(CheckRewardRow, first) is not None):
                session.execute(sa.insert(CheckRewardRow), rows)

        self._store.writing(put)

    def rated(self, judge: str) -> set[tuple[int, Part]]:
        """Trial and part of all that a judge has rated, whole or not."""
        row = CheckRewardRow
        query = sa.select(row.trial, row.part).where(row.study_id == self._store.study_id, row.judge == judge)
        return {(trial, part) for trial, part in self._read(query.distinct())}

    def rewards(self, judge: str, trial: int, part: Part) -> dict[int, float]:
        """Position -> reward of what a judge has rated of a trial."""
        row = CheckRewardRow
        query = sa.select(row.position, row.reward).where(
            row.study_id == self._store.study_id, row.judge == judge, row.trial == trial, row.part == part
        )

        return dict(self._read(query.order_by(row.position)))

    def _read(self, query: Any) -> Sequence[Any]:
        """What a query gives; nothing where the database is older than second judges, and only read."""
        return self._store.reading(CheckRewardRow, lambda session: session.execute(query).all()) or ()
