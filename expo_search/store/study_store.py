"""Optuna's tables, and ours beside them, in one database: nothing that is finished is ever lost.

Completions and rewards are rows of `expo_completions` before their trial is told; a run that was killed finds them
and goes on at the first prompt that has none. SQLite runs in write-ahead mode with a long lock timeout: with the
defaults a dashboard's open read transaction ends a study at `tell` and loses its value.
"""

from __future__ import annotations

import itertools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from expo_search.errors import StoreError
from expo_search.store.address import sqlite_path
from expo_search.store.answer_rows import AnswerTables
from expo_search.store.attributes import StudyAttributes
from expo_search.store.behind import Writer
from expo_search.store.database import (
    connect_args,
    guard,
    make_engine,
    reading_engine,
    reading_storage,
    store_faults,
    use_write_ahead_log,
)
from expo_search.store.optuna_rows import AttributeRow, write_attributes
from expo_search.store.recent import Recent
from expo_search.store.server import Patience, patient_storage, was_made_meanwhile
from expo_search.store.settings import Settings, compare_settings
from expo_search.store.tables import Base
from expo_search.text import shown

if TYPE_CHECKING:
    import sqlalchemy as sa
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState

_ATTEMPTS, _BETWEEN_ATTEMPTS_S = 5, 0.2  # to make tables that others make as well


class Store(AnswerTables):
    """One study in one database. Creating it makes missing tables; `study` is Optuna's own object.

    With `read_only` nothing is written, ever, and the study must be there. `say` gets a line when a server is lost, and
    when it is back.

    `note` is a line for the user on a database that is slower or less safe than it could be, or None.
    """

    def __init__(
        self, url: str, name: str, *, read_only: bool = False, say: Callable[[str], None] = lambda _: None
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.name = url, name
        self.study: Study
        self.storage: RDBStorage
        self._direct: Study
        engine, patiently = reading_engine(url) if read_only else make_engine(url), Patience(say)
        self.note: str | None = None
        if read_only:
            self._open_to_read()
        else:
            self._open(engine, patiently)
        super().__init__(engine, url, self.storage.get_study_id_from_name(name), name, patiently)

    def _open(self, engine: sa.Engine, patiently: Patience) -> None:
        import optuna

        url, name = self.url, self.name
        with store_faults(url):
            if sqlite_path(url) is not None and (mode := use_write_ahead_log(engine)) != "wal":
                self.note = (
                    f"the file system of {shown(url)} has no write-ahead log: SQLite uses journal mode {mode!r}, in "
                    "which the search waits for a dashboard that is just reading"
                )
            self.storage = self._with_tables(engine)
            guard(self.storage.engine, url)
            # a file is there or is not; a server may come back
            is_file = self.storage.engine.dialect.name == "sqlite"
            storage = self.storage if is_file else patient_storage(optuna.storages.get_storage(self.storage), patiently)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True
                )

    def _with_tables(self, engine: sa.Engine) -> RDBStorage:
        """Optuna's storage, with our tables beside its own. Another process may be making them at this moment."""
        import optuna

        for attempt in itertools.count(1):
            try:
                with store_faults(self.url):
                    Base.metadata.create_all(engine)
                    options = {"connect_args": connect_args(self.url)}
                    return optuna.storages.RDBStorage(self.url, engine_kwargs=options)
            except StoreError as fault:
                if attempt == _ATTEMPTS or not was_made_meanwhile(fault.__cause__):
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
        try:
            with store_faults(self.url):
                self.study = optuna.load_study(study_name=self.name, storage=self.storage)
        except KeyError:
            raise StoreError(
                where=f"study {self.name}",
                found=f"no study of that name in {shown(self.url)}",
                expected="one that is there",
                do="see `expo-search show`, or check the name",
            ) from None

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
        self.check_owned()
        attributes.keep_in(self.study)

    def keep_with_trial(self, trial: Trial, attributes: Mapping[str, Any]) -> None:
        """Keep a running trial's attributes, all of them or none; `trial` itself need not know of them."""
        if self._writer is not None:  # which writes together what comes together
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            return
        rows = [AttributeRow("trial user", lambda: trial._trial_id, k, json.dumps(v)) for k, v in attributes.items()]
        self._do_as_owner(lambda session: write_attributes(session, rows))

    def tell(self, trial: Trial, value: float | None = None, state: TrialState | None = None) -> None:
        """Tell Optuna how a trial ended. Raises as `check_owned`."""
        self.check_owned()
        self.study.tell(trial, value, state=state)

    def pin_settings(self, settings: Settings, spec: Mapping[str, Any]) -> None:
        """Keep what a new study is made under: `settings`, which every resume must agree with, and the whole spec.

        Raises:
            SettingsChanged: the study has other settings already.
        """
        there = self.attributes.settings
        if there is not None:
            compare_settings(there, settings, name=self.name)
        self.keep(StudyAttributes(settings=settings, spec=spec))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the study for this process; a lock whose process is gone is taken over.

        Within it, what is kept on a server is written behind the search; at its end all of it is written.

        Raises:
            StoreError: another live process holds it.
        """
        with self._lock.held():
            if self._writer is not None or self._engine.dialect.name == "sqlite":
                yield
                return
            with self._writing_behind():
                yield

    @contextmanager
    def _writing_behind(self) -> Iterator[None]:
        import optuna

        from expo_search.store.mirror import MirroredStorage

        direct, writer = self.study, Writer(self._do_as_owner)
        try:
            mirror = MirroredStorage(direct._storage, direct._study_id, self.name, writer)
            self.study = optuna.load_study(study_name=self.name, storage=mirror)
            self._writer, self._recent, self._direct = writer, Recent(), direct
            yield
        finally:
            self._writer = self._recent = None
            self.study = direct
            writer.close()

    def is_owned(self) -> bool:
        """Whether a live process, this one or another, searches the study. Writes nothing."""
        return self._patiently(self._lock.is_held)

    def check_owned(self) -> None:
        """Check that nobody has taken the study over, before Optuna writes to it; on a server, behind the search.

        Does nothing where the study is not held.

        Raises:
            StoreError: another process has; nothing more may be written.
        """
        self._write(self._lock.beat)

    def flush(self) -> None:
        """Wait until all that was kept is in the database.

        Raises:
            StoreError: something could not be written.
        """
        if self._writer is not None:
            self._writer.flush()

    def later(self, work: Callable[[Study], None]) -> None:
        """Read and set a study's attributes as the database has them, after all that was kept before.

        `work` gets a copy without trials, whose changes are written in one transaction: at once in a file, and behind
        the search on a server.
        """
        if self._writer is None:
            self._change_attributes(self.study, work)
        else:
            direct = self._direct
            self._writer.put_step(lambda: self._change_attributes(direct, work))

    def _change_attributes(self, study: Study, work: Callable[[Study], None]) -> None:
        from expo_search.store.attribute_copy import changed_attributes

        rows = changed_attributes(study, work)
        self._do_as_owner(lambda session: write_attributes(session, rows))
