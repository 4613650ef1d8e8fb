"""Optuna's attributes of studies and trials, many of them in one statement.

Its storage makes a transaction for each attribute, which a disk has to confirm or a server four times to answer, and
a trial has forty. The rows are those that it would write; its own classes say which tables and columns there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

Kind = Literal["study user", "study system", "trial user", "trial system"]


@dataclass(frozen=True)
class AttributeRow:
    """One attribute. `owner` gives Optuna's id of the study or trial, which may not be known before it is written."""

    kind: Kind
    owner: Callable[[], int]
    key: str
    value_json: str


def write_attributes(session: Session, rows: Sequence[AttributeRow]) -> None:
    """Write attributes in a transaction, over those that are there; of the same one the last."""
    by_kind: dict[Kind, dict[tuple[int, str], str]] = defaultdict(dict)
    for row in rows:
        by_kind[row.kind][row.owner(), row.key] = row.value_json
    for kind, values in by_kind.items():
        table, owner = _table(kind)
        there = sa.select(owner, table.c.key).where(
            owner.in_({i for i, _ in values}), table.c.key.in_({key for _, key in values})
        )
        known = {(i, key) for i, key in session.execute(there)}
        new = [{owner.name: i, "key": key, "value_json": v} for (i, key), v in values.items() if (i, key) not in known]
        old = [{"its_owner": i, "its_key": key, "its_value": v} for (i, key), v in values.items() if (i, key) in known]
        if new:
            session.execute(sa.insert(table), new)
        if old:
            its = (owner == sa.bindparam("its_owner"), table.c.key == sa.bindparam("its_key"))
            session.execute(sa.update(table).where(*its).values(value_json=sa.bindparam("its_value")), old)


def _table(kind: Kind) -> tuple[sa.Table, sa.Column[Any]]:
    """Optuna's table of a kind of attribute, and the column with whose it is. Optuna has no public name for them."""
    from optuna.storages._rdb import models

    model: Any = {
        "study user": models.StudyUserAttributeModel,
        "study system": models.StudySystemAttributeModel,
        "trial user": models.TrialUserAttributeModel,
        "trial system": models.TrialSystemAttributeModel,
    }[kind]
    table: sa.Table = model.__table__
    return table, table.c[f"{kind.partition(' ')[0]}_id"]
