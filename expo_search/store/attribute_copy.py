"""A study's attributes, read once and changed in memory; all that was changed is then written in one transaction.

optuna-dashboard keeps a note and a figure in pieces of 2,045 characters, and Optuna's storage makes a transaction of
each: a wait for the disk, or five round trips to a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import InMemoryStorage

from expo_search.store.optuna_rows import AttributeRow, Kind

if TYPE_CHECKING:
    from optuna import Study


def changed_attributes(study: Study, work: Callable[[Study], None]) -> list[AttributeRow]:
    """What `work` sets on a copy of a study that has its attributes, as they are stored now, and no trials."""
    copied = _Copy(study)
    work(optuna.load_study(study_name=study.study_name, storage=copied))
    return copied.changed


class _Copy(InMemoryStorage):
    """One study without trials; `changed`: the attributes that were set, in order."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self.changed: list[AttributeRow] = []
        self._id_there = study._study_id
        storage, mine = study._storage, super().create_new_study(study.directions, study.study_name)
        for key, value in storage.get_study_user_attrs(self._id_there).items():
            super().set_study_user_attr(mine, key, value)
        for key, value in storage.get_study_system_attrs(self._id_there).items():
            super().set_study_system_attr(mine, key, value)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        super().set_study_user_attr(study_id, key, value)
        self._note("study user", key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        super().set_study_system_attr(study_id, key, value)
        self._note("study system", key, value)

    def _note(self, kind: Kind, key: str, value: Any) -> None:
        there = self._id_there
        self.changed.append(AttributeRow(kind, lambda: there, key, json.dumps(value)))
