"""What second judges gave stored answers: a reward each, by judge, trial, part and position.

A study's own rewards stand with its answers (`answer_rows.py`); these are beside them, and no trial knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.contracts import Part
from expo_search.store.attributes import StudyAttributes
from expo_search.store.study_store import Store
from expo_search.store.tables import CheckRewardRow


class CheckStore:
    """The second judges of one study. With a store that only reads, only reading works."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def judges(self) -> Mapping[str, str]:
        """Their names, by key."""
        return self._store.attributes.judges or {}

    def name(self, judge: str, name: str) -> None:
        """Keep what a judge is called."""
        self._store.keep(StudyAttributes(judges={**self.judges, judge: name}))

    def add(self, judge: str, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        """Keep rewards by the position of their prompt, in one transaction."""
        key = {"study_id": self._store.study_id, "judge": judge, "trial": trial, "part": part}
        rows = [key | {"position": position, "reward": float(reward)} for position, reward in rewards.items()]
        first = (self._store.study_id, judge, trial, part, next(iter(rewards), None))

        def put(session: Session, tried: bool) -> None:
            # all or none: the commit before may have been made
            was_made = tried and session.get(CheckRewardRow, first) is not None
            if rows and not was_made:
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

        def read(session: Session) -> Sequence[Any]:
            there = sa.inspect(session.connection()).has_table(CheckRewardRow.__tablename__)
            return session.execute(query).all() if there else ()

        return self._store.reading(read)
