"""A study that this process alone changes: Optuna reads it from memory, and what it writes is written behind.

Optuna asks for all trials several times a trial, nine round trips to a server each. The copy is its own storage in
memory, filled when the study is taken (`lock.py`), which holds until it is given back.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from expo_search.errors import StoreError
from expo_search.store.behind import Writer
from expo_search.store.optuna_rows import AttributeRow, Kind


class MirroredStorage(InMemoryStorage):
    """One study in memory, whose every change goes on to `storage`, in order. Its ids are its own.

    Attributes that others write into the database meanwhile, as a dashboard does, are not seen here.
    """

    def __init__(self, storage: BaseStorage, study_id: int, name: str, writer: Writer) -> None:
        """`study_id`: in `storage`, which is read now.

        Raises:
            StoreError: it has trials whose numbers have gaps.
        """
        super().__init__()
        self._storage, self._id_there, self._name, self._writer = storage, study_id, name, writer
        self._trial_ids_there: list[int] = []  # by number, which is the id here
        mine = super().create_new_study(storage.get_study_directions(study_id), name)
        for key, value in storage.get_study_user_attrs(study_id).items():
            super().set_study_user_attr(mine, key, value)
        for key, value in storage.get_study_system_attrs(study_id).items():
            super().set_study_system_attr(mine, key, value)
        for trial in storage.get_all_trials(study_id, deepcopy=False):
            number = super().create_new_trial(mine, trial)
            if trial.number != number:
                raise self._other_trial(number)
            self._trial_ids_there.append(trial._trial_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        super().set_study_user_attr(study_id, key, self._put("study user", None, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        super().set_study_system_attr(study_id, key, self._put("study system", None, key, value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        super().set_trial_user_attr(trial_id, key, self._put("trial user", trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        super().set_trial_system_attr(trial_id, key, self._put("trial system", trial_id, key, value))

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        trial_id = super().create_new_trial(study_id, template_trial)
        template = copy.deepcopy(template_trial)

        def create() -> None:
            made = self._storage.create_new_trial(self._id_there, template)
            # trial_id is also the number here, under which its answers are kept
            if made != self._storage.get_trial_id_from_study_id_trial_number(self._id_there, trial_id):
                raise self._other_trial(trial_id)
            self._trial_ids_there.append(made)

        self._writer.put_step(create)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._writer.put_step(
            lambda: self._storage.set_trial_param(
                self._trial_ids_there[trial_id], param_name, param_value_internal, distribution
            )
        )

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        is_set = super().set_trial_state_values(trial_id, state, values)

        def change() -> None:
            self._storage.set_trial_state_values(self._trial_ids_there[trial_id], state, values)

        if is_set:
            self._writer.put_step(change)
        return is_set

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._writer.put_step(
            lambda: self._storage.set_trial_intermediate_value(
                self._trial_ids_there[trial_id], step, intermediate_value
            )
        )

    def _other_trial(self, number: int) -> StoreError:
        return StoreError(
            where=f"study {self._name}",
            found=f"another trial {number} than this search's",
            expected="trials that one search adds, and nobody takes out",
            do="see what else writes to the study; nothing that was stored is lost",
        )

    def _put(self, kind: Kind, trial_id: int | None, key: str, value: Any) -> Any:
        """Let an attribute be written; the value as it will be read again."""
        value_json = json.dumps(value)

        def owner() -> int:
            return self._id_there if trial_id is None else self._trial_ids_there[trial_id]

        self._writer.put(AttributeRow(kind, owner, key, value_json))
        return json.loads(value_json)
