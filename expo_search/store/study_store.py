"""Optuna's tables, and ours beside them, in one database: nothing that is finished is ever lost.

Completions and rewards are rows of `expo_completions` before their trial is told; a run that was killed finds them
and goes on at the first prompt that has none. SQLite runs in write-ahead mode with a long lock timeout: with the
defaults a dashboard's open read transaction ends a study at `tell` and loses its value.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.contracts import Completion, Part, Prompt, Rated
from expo_search.errors import SettingsChanged, StoreError
from expo_search.store.attributes import StudyAttributes
from expo_search.store.database import (
    connect_args,
    make_engine,
    raise_store_errors,
    reading_engine,
    reading_storage,
    sqlite_path,
    store_faults,
    use_write_ahead_log,
)
from expo_search.store.lock import StudyLock
from expo_search.store.server import patient_storage, patiently
from expo_search.store.settings import Settings, compare_settings
from expo_search.store.tables import Base, CompletionRow, PromptRow, SwitchRow
from expo_search.text import shown, storable

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

T = TypeVar("T")
_ATTEMPTS, _BETWEEN_ATTEMPTS_S = 5, 0.2  # to make tables that others make as well


@dataclass(frozen=True)
class Stored:
    """A completion from the database, with its reward once scored."""

    position: int
    completion: Completion
    reward: float | None


class Store:
    """One study in one database. Creating it makes missing tables; `study` is Optuna's own object.

    With `read_only` nothing is written, ever, and the study must be there.

    `note` is a line for the user on a database that is slower or less safe than it could be, or None.
    """

    def __init__(self, url: str, name: str, *, read_only: bool = False) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.name = url, name
        self.study: Study
        self.storage: RDBStorage
        self._engine = reading_engine(url) if read_only else make_engine(url)
        self.note: str | None = None
        if read_only:
            self._open_to_read()
        else:
            self._open()
        self._study_id = self.storage.get_study_id_from_name(name)
        self._lock = StudyLock(self._engine, url, self._study_id, name)

    def _open(self) -> None:
        import optuna

        url, name = self.url, self.name
        with store_faults(url):
            if sqlite_path(url) is not None and (mode := use_write_ahead_log(self._engine)) != "wal":
                self.note = (
                    f"the file system of {shown(url)} has no write-ahead log: SQLite uses journal mode {mode!r}, in "
                    "which the search waits for a dashboard that is just reading"
                )
            self.storage = self._with_tables()
            raise_store_errors(self.storage.engine, url)
            # a file is there or is not; a server may come back
            is_file = self.storage.engine.dialect.name == "sqlite"
            storage = self.storage if is_file else patient_storage(optuna.storages.get_storage(self.storage))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True
                )

    def _with_tables(self) -> RDBStorage:
        """Optuna's storage, with our tables beside its own. Another process may be making them at this moment."""
        import optuna

        for attempt in itertools.count(1):
            try:
                with store_faults(self.url):
                    Base.metadata.create_all(self._engine)
                    options = {"connect_args": connect_args(self.url)}
                    return optuna.storages.RDBStorage(self.url, engine_kwargs=options)
            except StoreError as fault:
                if attempt == _ATTEMPTS or "already exists" not in fault.found:
                    raise
            time.sleep(_BETWEEN_ATTEMPTS_S)
        raise AssertionError

    def _open_to_read(self) -> None:
        import optuna

        storage = reading_storage(self.url)
        if storage is None:
            raise StoreError(
                where=f"--storage {shown(self.url)}",
                found="no studies",
                expected=f"a database with study {self.name} in it",
                do="check the path",
            )
        self.storage = storage
        with store_faults(self.url):
            self.study = optuna.load_study(study_name=self.name, storage=self.storage)

    def close(self) -> None:
        """Let go of the database's connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()
        self._engine.dispose()

    @property
    def attributes(self) -> StudyAttributes:
        """What is kept with the study beside its trials, read now."""
        return StudyAttributes.of(self.study.user_attrs)

    def keep(self, attributes: StudyAttributes) -> None:
        """Keep what is not None in these with the study, in the place of what it has."""
        attributes.keep_in(self.study)

    def pin_settings(self, settings: Settings, spec: Mapping[str, Any]) -> None:
        """Keep what a new study is made under: `settings`, which every resume must agree with, and the whole spec.

        Raises:
            SettingsChanged: the study has other settings already.
        """
        there = self.attributes.settings
        if there is not None:
            compare_settings(there, settings, name=self.name)
        self.keep(StudyAttributes(settings=settings, spec=spec))

    def put_prompts(self, part: Part, prompts: Sequence[Prompt]) -> None:
        """Keep the texts beside the answers, once."""
        query = sa.select(PromptRow.position).where(PromptRow.study_id == self._study_id, PromptRow.part == part)

        def put(session: Session) -> None:
            there = set(session.scalars(query))
            rows = [
                {"study_id": self._study_id, "part": part, "position": i, "prompt_id": p.id, "text": p.text}
                for i, p in enumerate(prompts)
                if i not in there
            ]
            if rows:
                session.execute(sa.insert(PromptRow), rows)

        self._do(put)

    def prompts(self, part: Part) -> list[Prompt]:
        """The stored prompts of a part in their order; empty where none were put."""
        query = sa.select(PromptRow).where(PromptRow.study_id == self._study_id, PromptRow.part == part)
        ordered = query.order_by(PromptRow.position)
        return self._do(lambda session: [Prompt(r.prompt_id, r.text) for r in session.scalars(ordered)])

    def pin_weights(self, trial: int, part: Part, alpha: float, fingerprint: str) -> None:
        """Keep which weights make a trial's answers, before the first of them.

        Raises:
            SettingsChanged: answers of this trial are stored that other weights made.
        """

        def pin(session: Session) -> None:
            row = session.get(SwitchRow, (self._study_id, trial, part))
            if row is None:
                session.add(
                    SwitchRow(study_id=self._study_id, trial=trial, part=part, alpha=alpha, fingerprint=fingerprint)
                )
            elif (row.alpha, row.fingerprint) != (alpha, fingerprint):
                raise SettingsChanged(
                    where=f"study {self.name}, trial {trial}",
                    found=f"weights {fingerprint} at alpha {alpha:g}",
                    expected=f"{row.fingerprint} at alpha {row.alpha:g}, which made the stored answers",
                    do="give the checkpoints it was made with, or another --study-name",
                )

        self._do(pin)

    def add_completions(self, trial: int, part: Part, completions: Mapping[int, Completion]) -> None:
        """Keep answers, keyed by the position of their prompt, in one transaction."""
        key = {"study_id": self._study_id, "trial": trial, "part": part}
        rows = [
            key
            | {
                "position": position,
                "text": storable(c.text),
                "n_tokens": c.n_tokens,
                "finish_reason": c.finish_reason,
            }
            for position, c in completions.items()
        ]
        there = sa.select(sa.func.count()).where(
            *_of(self._study_id, trial, part), CompletionRow.position.in_(completions)
        )
        tried = False

        def add(session: Session) -> None:
            nonlocal tried
            if not tried or not session.scalar(there):  # all or none: the commit before may have been made
                session.execute(sa.insert(CompletionRow), rows)
            tried = True
            self._lock.beat(session)

        self._do(add)

    def add_rewards(self, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        """Keep rewards of stored answers, in one transaction."""
        key = {"study_id": self._study_id, "trial": trial, "part": part}
        rows = [key | {"position": position, "reward": reward} for position, reward in rewards.items()]

        def add(session: Session) -> None:
            session.execute(sa.update(CompletionRow), rows)
            self._lock.beat(session)

        self._do(add)

    def completions(self, trial: int, part: Part, prompts: Sequence[Prompt]) -> list[Stored]:
        """The answers of a trial to `prompts`, the part's order or its front, by position."""
        row = CompletionRow
        query = sa.select(row.position, row.text, row.n_tokens, row.finish_reason, row.reward).where(
            *_of(self._study_id, trial, part), row.position < len(prompts)
        )
        return self._do(
            lambda session: [
                Stored(position, Completion(prompts[position], text, n_tokens, finish_reason), reward)
                for position, text, n_tokens, finish_reason, reward in session.execute(query.order_by(row.position))
            ]
        )

    def n_completions(self, trial: int, part: Part, n_prompts: int) -> int:
        """How many answers of a trial to the first n_prompts prompts are stored."""
        query = sa.select(sa.func.count()).where(*_of(self._study_id, trial, part), CompletionRow.position < n_prompts)
        return int(self._do(lambda session: session.scalar(query)) or 0)

    def n_tokens(self, trial: int, part: Part) -> int:
        """Tokens of all stored answers of a trial."""
        query = sa.select(sa.func.coalesce(sa.func.sum(CompletionRow.n_tokens), 0)).where(
            *_of(self._study_id, trial, part)
        )
        return int(self._do(lambda session: session.scalar(query)) or 0)

    def rated(self, trial: int, part: Part) -> dict[int, Rated]:
        """Position -> reward and length of the scored answers of a trial."""
        query = sa.select(CompletionRow.position, CompletionRow.reward, CompletionRow.n_tokens).where(
            *_of(self._study_id, trial, part), CompletionRow.reward.is_not(None)
        )
        found = self._do(lambda session: session.execute(query).all())
        return {position: Rated(reward, n) for position, reward, n in found if reward is not None}

    def drop(self, part: Part) -> None:
        """Forget a part's prompts and answers (another confirmation, with other prompts)."""

        def forget(session: Session) -> None:
            for table in (PromptRow, CompletionRow, SwitchRow):
                session.execute(sa.delete(table).where(table.study_id == self._study_id, table.part == part))

        self._do(forget)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the study for this process; a lock whose process is gone is taken over.

        Raises:
            StoreError: another live process holds it.
        """
        with self._lock.held():
            yield

    @property
    def study_id(self) -> int:
        """Optuna's number of the study, which keys our tables."""
        return int(self._study_id)

    def reading(self, query: Callable[[Session], T]) -> T:
        """Do what only reads, in a transaction; again where the connection was lost meanwhile."""
        return self._do(query)

    def writing(self, work: Callable[[Session, bool], None]) -> None:
        """Do what writes, in a transaction, with a sign of life; again where the connection was lost meanwhile.

        `work` is told whether it was tried before: the commit of then may have been made.
        """
        tried = False

        def write(session: Session) -> None:
            nonlocal tried
            work(session, tried)
            tried = True
            self._lock.beat(session)

        self._do(write)

    def _do(self, work: Callable[[Session], T]) -> T:
        """Do a transaction, and the whole of it again where the connection was lost meanwhile."""

        def once() -> T:
            with store_faults(self.url), Session(self._engine) as session, session.begin():
                return work(session)

        return patiently(once)


def _of(study_id: int, trial: int, part: Part) -> tuple[sa.ColumnElement[bool], ...]:
    return CompletionRow.study_id == study_id, CompletionRow.trial == trial, CompletionRow.part == part
