"""What this package keeps in the attributes of Optuna's studies and trials, each in one typed record.

The values of a trial itself are those of `evaluation.result.Evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from expo_search.store.database import PREFIX, reading_storage
from expo_search.store.settings import Settings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

_REPEATS, _FAILURE = "repeats", "engine_failure"


@dataclass(frozen=True)
class StudyAttributes:
    """Of a study; None, or nothing, where it is not kept yet.

    Attributes:
        settings: what all trials are made under.
        spec: the whole `StudySpec`, as JSON, with paths as they were typed. folder: where the search ran that did.
        contents: by role, times, sizes and hashes of the checkpoints' files, as they were when last loaded.
        environment: versions and hardware of the machine that evaluated last.
        confirmed: by trial, what a confirmation measured.
        wanted: finished trials that the last search was asked for; of one with a budget those that it paid.
        budget: of the last search, where it had one and is not at its end: `tokens` and `seconds` that it may spend,
            None where there is no such limit, and `trials` that it may have. Empty: it had none, or is at its end.
        first_step: the first alpha beside 0; kept, since the delta's norm differs in its last bits between machines.
        shapes: of a study of shapes, what they start from (see `search/shape_search.py`); None in any other.
        shaped: names of the studies of shapes that start from this one.
        judges: names of the second judges that have rated answers, by key (see `session/second_judge.py`).
        trained_on: by such a key, ids of this study's prompts that the judge was trained on.
        calibration: of a study that several reward models rate, once alpha = 0 is rated: for each its key, its name,
            mean and standard deviation of its rewards there (see `evaluation/ensemble.py`).
        artifacts: where the trials' files are, where somebody said (see `results/artifacts.py`).
    """

    settings: Settings | None = None
    spec: Mapping[str, Any] | None = None
    folder: str | None = None
    contents: Mapping[str, Mapping[str, Any]] | None = None
    environment: Mapping[str, str] | None = None
    confirmed: Mapping[str, Mapping[str, Any]] | None = None
    first_step: float | None = None
    shapes: Mapping[str, Any] | None = None
    shaped: Sequence[str] | None = None
    judges: Mapping[str, str] | None = None
    trained_on: Mapping[str, Sequence[str]] | None = None
    calibration: Sequence[Mapping[str, Any]] | None = None
    artifacts: str | None = None
    wanted: int | None = None
    budget: Mapping[str, float | None] | None = None

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Read them from a study's `user_attrs`."""
        values = {f.name: stored.get(PREFIX + f.name) for f in fields(cls)}
        if values["settings"] is not None:
            values["settings"] = Settings.from_flat(values["settings"])
        return cls(**values)

    def keep_in(self, study: Study) -> None:
        """Write what is not None here and differs from what the study has."""
        there = study.user_attrs
        for f in fields(self):
            value = getattr(self, f.name)
            value = value.flat() if isinstance(value, Settings) else value
            if value is not None and there.get(PREFIX + f.name) != value:
                study.set_user_attr(PREFIX + f.name, value)


def stored_attributes(url: str, name: str) -> StudyAttributes | None:
    """A study's attributes, read without writing anything; None where there is no such study yet."""
    storage = reading_storage(url)
    if storage is None:
        return None
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    else:
        return StudyAttributes.of(storage.get_study_user_attrs(study_id))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def stands_for(trial: FrozenTrial | Trial) -> int:
    """The number under which a trial's answers are stored: its own, or that of the trial which it repeats."""
    repeated = trial.user_attrs.get(_REPEATS)
    return repeated if isinstance(repeated, int) else trial.number


def repeats(trial: FrozenTrial) -> dict[str, Any]:
    """The attributes of a trial that repeats this one."""
    return {_REPEATS: stands_for(trial)}


def engine_failure(trial: FrozenTrial) -> str | None:
    """What was said when the engine did not survive a trial; None where it did."""
    message: str | None = trial.user_attrs.get(_FAILURE)
    return message


def keep_engine_failure(trial: Trial, message: str) -> None:
    """Note on a trial that the engine did not survive it."""
    trial.set_user_attr(_FAILURE, message)
