"""Optuna's tables, and ours beside them, in one database: nothing that is finished is ever lost.

Completions and rewards are rows of `expo_completions` before their trial is told; a run that was killed finds them
and goes on at the first prompt that has none. SQLite runs in write-ahead mode with a long lock timeout: with the
defaults a dashboard's open read transaction ends a study at `tell` and loses its value.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.database import connect_args, make_engine, sqlite_path, store_faults
from expo_search.errors import SettingsChanged, StoreError
from expo_search.evaluator import Completion
from expo_search.prompts import Prompt
from expo_search.tables import Base, CompletionRow, LockRow, PromptRow, SwitchRow

if TYPE_CHECKING:
    from optuna import Study

Part = Literal["search", "confirm"]
SETTINGS = "expo_settings"
SPEC = "expo_spec"
_LOCK_STALE_S = 900  # a lock of another machine that showed no sign of life for so long


@dataclass(frozen=True)
class Stored:
    """A completion from the database, with its reward once scored."""

    position: int
    completion: Completion
    reward: float | None


class Store:
    """One study in one database. Creating it makes missing tables; `study` is Optuna's own object."""

    def __init__(self, url: str, name: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.name = url, name
        self._engine = make_engine(url)
        with store_faults(url):
            if sqlite_path(url) is not None:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            Base.metadata.create_all(self._engine)
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": connect_args(url)})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study: Study = optuna.create_study(
                    study_name=name, storage=self.storage, direction="maximize", load_if_exists=True
                )
            self._study_id = self.storage.get_study_id_from_name(name)

    def close(self) -> None:
        """Let go of the database's connections."""
        self.storage.remove_session()
        self._engine.dispose()

    @property
    def settings(self) -> dict[str, Any] | None:
        """What the stored trials were made under, or None for a new study."""
        found: dict[str, Any] | None = self.study.user_attrs.get(SETTINGS)
        return found

    def pin_settings(self, settings: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        """Keep what a new study is made under: `settings`, which every resume must agree with, and the whole spec.

        Raises:
            SettingsChanged: the study has other settings already.
        """
        compare_settings(self.settings or {}, settings, name=self.name)
        if self.settings != settings:
            self.study.set_user_attr(SPEC, dict(spec))
            self.study.set_user_attr(SETTINGS, dict(settings))

    def put_prompts(self, part: Part, prompts: Sequence[Prompt]) -> None:
        """Keep the texts beside the answers, once."""
        rows = [
            PromptRow(study_id=self._study_id, part=part, position=i, prompt_id=p.id, text=p.text)
            for i, p in enumerate(prompts)
        ]
        with self._session() as session:
            for row in rows:
                session.merge(row)

    def prompts(self, part: Part) -> list[Prompt]:
        query = sa.select(PromptRow).where(PromptRow.study_id == self._study_id, PromptRow.part == part)
        with self._session() as session:
            return [Prompt(r.prompt_id, r.text) for r in session.scalars(query.order_by(PromptRow.position))]

    def pin_weights(self, trial: int, part: Part, alpha: float, fingerprint: str) -> None:
        """Keep which weights make a trial's answers, before the first of them.

        Raises:
            SettingsChanged: answers of this trial are stored that other weights made.
        """
        with self._session() as session:
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

    def add_completions(self, trial: int, part: Part, completions: Mapping[int, Completion]) -> None:
        """Keep answers, keyed by the position of their prompt, in one transaction."""
        with self._session() as session:
            session.add_all(
                CompletionRow(
                    study_id=self._study_id,
                    trial=trial,
                    part=part,
                    position=position,
                    text=_storable(c.text),
                    n_tokens=c.n_tokens,
                    finish_reason=c.finish_reason,
                )
                for position, c in completions.items()
            )
            self._beat(session)

    def add_rewards(self, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        """Keep rewards of stored answers, in one transaction."""
        with self._session() as session:
            for position, reward in rewards.items():
                row = session.get_one(CompletionRow, (self._study_id, trial, part, position))
                row.reward = reward
            self._beat(session)

    def completions(self, trial: int, part: Part, prompts: Sequence[Prompt]) -> list[Stored]:
        """The answers of a trial, by position; `prompts` is the part's order."""
        query = sa.select(CompletionRow).where(
            CompletionRow.study_id == self._study_id, CompletionRow.trial == trial, CompletionRow.part == part
        )
        with self._session() as session:
            return [
                Stored(r.position, Completion(prompts[r.position], r.text, r.n_tokens, r.finish_reason), r.reward)
                for r in session.scalars(query.order_by(CompletionRow.position))
            ]

    def rewards(self, trial: int, part: Part) -> dict[int, float]:
        """Position -> reward of the scored answers of a trial."""
        query = sa.select(CompletionRow.position, CompletionRow.reward).where(
            CompletionRow.study_id == self._study_id,
            CompletionRow.trial == trial,
            CompletionRow.part == part,
            CompletionRow.reward.is_not(None),
        )
        with self._session() as session:
            return {position: reward for position, reward in session.execute(query) if reward is not None}

    def drop(self, part: Part) -> None:
        """Forget a part's prompts and answers (another confirmation, with other prompts)."""
        with self._session() as session:
            for table in (PromptRow, CompletionRow, SwitchRow):
                session.execute(sa.delete(table).where(table.study_id == self._study_id, table.part == part))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the study for this process; a lock whose process is gone is taken over.

        Raises:
            StoreError: another live process holds it.
        """
        import psutil

        me = psutil.Process()
        now = datetime.now(UTC)
        with self._session() as session:
            row = session.get(LockRow, self._study_id)
            if row is not None and _holds(row):
                raise StoreError(
                    where=f"study {self.name} in {self.url}",
                    found=f"a search by process {row.pid} on {row.host} since {row.since}",
                    expected="one search at a time",
                    do="wait for it, or search under another --study-name",
                )
            session.merge(
                LockRow(
                    study_id=self._study_id,
                    host=socket.gethostname(),
                    pid=me.pid,
                    started=me.create_time(),
                    since=now.isoformat(timespec="seconds"),
                    alive_at=now.timestamp(),
                )
            )
        try:
            yield
        finally:
            with self._session() as session:
                session.execute(sa.delete(LockRow).where(LockRow.study_id == self._study_id, LockRow.pid == me.pid))

    def _beat(self, session: Session) -> None:
        session.execute(
            sa.update(LockRow).where(LockRow.study_id == self._study_id).values(alive_at=datetime.now(UTC).timestamp())
        )

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with store_faults(self.url), Session(self._engine) as session, session.begin():
            yield session


def compare_settings(stored: Mapping[str, Any], asked: Mapping[str, Any], *, name: str) -> None:
    """Trials of one study are made under one set of settings.

    Raises:
        SettingsChanged: names every setting that differs, with both values.
    """
    differing = [
        f"{key}: {stored[key]!r} there, {asked[key]!r} now"
        for key in sorted(stored.keys() & asked.keys())
        if stored[key] != asked[key]
    ]
    if differing:
        raise SettingsChanged(
            where=f"study {name}",
            found=f"other settings ({'; '.join(differing)})",
            expected="those it was made under",
            do="drop the differing options, or give another --study-name",
        )


def _holds(row: LockRow) -> bool:
    """Whether the process that wrote a lock is still there."""
    import psutil

    if row.host != socket.gethostname():
        return datetime.now(UTC).timestamp() - row.alive_at < _LOCK_STALE_S
    if row.pid == os.getpid():
        return False
    try:
        process = psutil.Process(row.pid)
        # killed, but not yet waited for by its parent (in a container, often for ever): gone as well
        return abs(process.create_time() - row.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _storable(text: str) -> str:
    """Lone surrogates and NUL cannot be stored in every database."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")
