"""Our tables of one study: prompts, answers with their rewards, and which weights made them.

While the study is held on a server, what is written goes behind the search (`behind.py`), and what was written or read
a moment ago is read from memory (`recent.py`): a trial costs three round trips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from expo_search.contracts import Completion, Part, Prompt, Rated
from expo_search.errors import SettingsChanged
from expo_search.store.behind import Writer
from expo_search.store.database import store_faults
from expo_search.store.lock import StudyLock
from expo_search.store.recent import AnswerRow, Recent
from expo_search.store.server import Patience
from expo_search.store.tables import Base, CheckRewardRow, CompletionRow, PromptRow, SwitchRow
from expo_search.text import storable

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A completion from the database, with its reward once scored."""

    position: int
    completion: Completion
    reward: float | None


class AnswerTables:
    """The rows of one study. `Store` adds the study itself."""

    def __init__(self, engine: sa.Engine, url: str, study_id: int, name: str, patiently: Patience) -> None:
        self.url, self.name = url, name
        self._engine, self._study_id, self._patiently = engine, study_id, patiently
        self._lock = StudyLock(engine, url, study_id, name, patiently)
        self._writer: Writer | None = None
        self._recent: Recent | None = None  # beside the writer
        self._tables = set[str]()  # of those that a database may lack: the ones that are known to be there

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

        self._write_now(put)
        if self._recent is not None:
            self._recent.prompts.pop(part, None)

    def prompts(self, part: Part) -> list[Prompt]:
        """The stored prompts of a part in their order; empty where none were put."""
        kept = {} if self._recent is None else self._recent.prompts
        if part not in kept:
            query = sa.select(PromptRow).where(PromptRow.study_id == self._study_id, PromptRow.part == part)
            ordered = query.order_by(PromptRow.position)
            kept[part] = self._read(lambda session: [Prompt(r.prompt_id, r.text) for r in session.scalars(ordered)])
        return list(kept[part])

    def pin_weights(self, trial: int, part: Part, alpha: float, fingerprint: str) -> None:
        """Keep which weights make a trial's answers, before the first of them.

        Raises:
            SettingsChanged: answers of this trial are stored that other weights made.
        """
        key = (self._study_id, trial, part)

        def kept(session: Session) -> tuple[float, str] | None:
            row = session.get(SwitchRow, key)
            return None if row is None else (row.alpha, row.fingerprint)

        def pin(session: Session) -> None:
            if session.get(SwitchRow, key) is None:
                session.add(SwitchRow(**self._key(trial, part), alpha=alpha, fingerprint=fingerprint))

        before = self._read(kept)
        if before is None:
            self._write(pin)
        elif before != (float(alpha), fingerprint):  # a shape is in the fingerprint alone
            raise SettingsChanged(
                where=f"study {self.name}, trial {trial}",
                found=f"weights {fingerprint} at alpha {alpha:g}",
                expected=f"{before[1]} at alpha {before[0]:g}, which made the stored answers",
                do="give the checkpoints it was made with, or search again under another --study-name",
            )

    def add_completions(
        self, trial: int, part: Part, completions: Mapping[int, Completion], *, tried: bool = False
    ) -> None:
        """Keep answers, keyed by the position of their prompt, in one transaction.

        tried: the very same were given before, and who gave them was interrupted: they may be there, all or none.
        """
        key = self._key(trial, part)
        rows = {p: AnswerRow(storable(c.text), c.n_tokens, c.finish_reason) for p, c in completions.items()}
        values = [
            key | {"position": p, "text": r.text, "n_tokens": r.n_tokens, "finish_reason": r.finish_reason}
            for p, r in rows.items()
        ]
        there = sa.select(sa.func.count()).where(
            *_of(self._study_id, trial, part), CompletionRow.position.in_(completions)
        )

        def add(session: Session) -> None:
            nonlocal tried
            if not tried or not session.scalar(there):  # all or none: the commit before may have been made
                session.execute(sa.insert(CompletionRow), values)
            tried = True

        if self._recent is not None:
            self._recent.add((trial, part), rows)
        self._write(add)

    def add_rewards(self, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        """Keep rewards of stored answers, in one transaction."""
        row = CompletionRow
        its = (*_of(self._study_id, trial, part), row.position == sa.bindparam("its_position"))
        change = sa.update(row).where(*its).values(reward=sa.bindparam("its_reward"))
        values = [{"its_position": position, "its_reward": float(reward)} for position, reward in rewards.items()]

        def add(session: Session) -> None:
            if values:
                session.connection().execute(change, values)  # not one by one, as the session would

        if self._recent is not None:
            self._recent.rate((trial, part), rewards)
        self._write(add)

    def completions(self, trial: int, part: Part, prompts: Sequence[Prompt]) -> list[Stored]:
        """The answers of a trial to `prompts`, the part's order or its front, by position."""
        rows = self._rows_of(trial, part, len(prompts))
        return [
            Stored(position, Completion(prompts[position], row.text, row.n_tokens, row.finish_reason), row.reward)
            for position, row in sorted(rows.items(), key=lambda item: item[0])
            if position < len(prompts)
        ]

    def n_completions(self, trial: int, part: Part, n_prompts: int) -> int:
        """How many answers of a trial to the first n_prompts prompts are stored."""
        if self._recent is not None:
            return sum(position < n_prompts for position in self._rows_of(trial, part, n_prompts))
        query = sa.select(sa.func.count()).where(*_of(self._study_id, trial, part), CompletionRow.position < n_prompts)
        return int(self._read(lambda session: session.scalar(query)) or 0)

    def n_tokens(self, trial: int, part: Part) -> int:
        """Tokens of all stored answers of a trial."""
        if self._recent is not None:
            return sum(row.n_tokens for row in self._rows_of(trial, part, None).values())
        query = sa.select(sa.func.coalesce(sa.func.sum(CompletionRow.n_tokens), 0)).where(
            *_of(self._study_id, trial, part)
        )
        return int(self._read(lambda session: session.scalar(query)) or 0)

    def rated(self, trial: int, part: Part) -> dict[int, Rated]:
        """Position -> reward and length of the scored answers of a trial."""
        recent = None if self._recent is None else self._recent.rated((trial, part))
        if recent is not None:
            return recent
        query = sa.select(CompletionRow.position, CompletionRow.reward, CompletionRow.n_tokens).where(
            *_of(self._study_id, trial, part), CompletionRow.reward.is_not(None)
        )
        self._wait_for(trial, part)
        found = self._read(lambda session: session.execute(query.order_by(CompletionRow.position)).all())
        return {position: Rated(reward, n) for position, reward, n in found if reward is not None}

    @property
    def study_id(self) -> int:
        """Optuna's number of the study, which keys our tables."""
        return int(self._study_id)

    def reading(self, table: type[Base], query: Callable[[Session], T]) -> T | None:
        """Do one statement that reads one table; again where the connection was lost meanwhile.

        None where the database is older than that table and is only read.
        """
        name = table.__tablename__
        if name not in self._tables:
            if not self._do(lambda session: sa.inspect(session.connection()).has_table(name)):
                return None
            self._tables.add(name)  # it stays there
        return self._read(query)

    def writing(self, work: Callable[[Session, bool], None], *, tried: bool = False) -> None:
        """Do what writes, in a transaction, as owner; again where the connection was lost meanwhile.

        `work` is told whether it was tried before: the commit of then may have been made. `tried`: by the caller.
        """

        def write(session: Session) -> None:
            nonlocal tried
            work(session, tried)
            tried = True

        self._write_now(write)

    def drop(self, part: Part) -> None:
        """Forget a part's prompts and answers (another confirmation, with other prompts)."""

        def forget(session: Session) -> None:
            for table in (PromptRow, CompletionRow, SwitchRow, CheckRewardRow):
                session.execute(sa.delete(table).where(table.study_id == self._study_id, table.part == part))

        self._write_now(forget)
        if self._recent is not None:
            self._recent.forget(part)

    def _rows_of(self, trial: int, part: Part, n_prompts: int | None) -> dict[int, AnswerRow]:
        """A trial's answers by position: all of them where they are kept in memory, else those to the first prompts."""
        recent = self._recent
        known = None if recent is None else recent.rows((trial, part))
        if known is not None:
            return known
        row = CompletionRow
        query = sa.select(row.position, row.text, row.n_tokens, row.finish_reason, row.reward).where(
            *_of(self._study_id, trial, part)
        )
        if recent is None and n_prompts is not None:
            query = query.where(row.position < n_prompts)
        self._wait_for(trial, part)
        found = self._read(lambda session: session.execute(query).all())
        rows = {p: AnswerRow(text, n_tokens, reason, reward) for p, text, n_tokens, reason, reward in found}
        return rows if recent is None else recent.keep((trial, part), rows)

    def _wait_for(self, trial: int, part: Part) -> None:
        """Wait until answers of a trial that were written here can be read."""
        if self._writer is not None and self._recent is not None and self._recent.is_written((trial, part)):
            self._writer.flush()

    def _key(self, trial: int, part: Part) -> dict[str, int | str]:
        return {"study_id": self._study_id, "trial": trial, "part": part}

    def _write(self, work: Callable[[Session], None]) -> None:
        if self._writer is None:
            self._do_as_owner(work)
        else:
            self._writer.put(work)

    def _write_now(self, work: Callable[[Session], None]) -> None:
        if self._writer is not None:
            self._writer.flush()
        self._do_as_owner(work)

    def _read(self, work: Callable[[Session], T]) -> T:
        """Do one statement that reads; a server then needs no transaction around it, which takes two round trips."""
        is_file = self._engine.dialect.name == "sqlite"
        return self._do(work, self._engine if is_file else self._engine.execution_options(isolation_level="AUTOCOMMIT"))

    def _do_as_owner(self, work: Callable[[Session], None]) -> None:
        """Do a transaction with a sign of life, or none of it where another process has taken the study over.

        The sign comes first: the other one may have written the same rows, as it goes on with the same prompts, and
        the database's refusal of a second copy would tell nobody why.
        """

        def as_owner(session: Session) -> None:
            self._lock.beat(session)
            work(session)

        self._do(as_owner)

    def _do(self, work: Callable[[Session], T], engine: sa.Engine | None = None) -> T:
        """Do a transaction, and the whole of it again where the connection was lost meanwhile."""

        def once() -> T:
            with store_faults(self.url), Session(engine or self._engine) as session, session.begin():
                return work(session)

        return self._patiently(once)


def _of(study_id: int, trial: int, part: Part) -> tuple[sa.ColumnElement[bool], ...]:
    return CompletionRow.study_id == study_id, CompletionRow.trial == trial, CompletionRow.part == part
