"""Our tables beside Optuna's, keyed by its study id and trial number.

Their types lose nothing on SQLite, PostgreSQL and MySQL: on MySQL a plain Float has single precision, and a text
without a bound ends after 64 KiB.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# its own choice may hold no letters but Latin ones, and takes "a" for "A" in a key
_IN_MYSQL = {
    f"{server}_{what}": value
    for server in ("mysql", "mariadb")
    for what, value in (("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_TEXT = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


class Base(DeclarativeBase):
    """SQLAlchemy's registry of the tables below, apart from Optuna's."""

    __table_args__ = _IN_MYSQL


class PromptRow(Base):
    """A study's prompts: position in the order, id, text."""

    __tablename__ = "expo_prompts"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(sa.String(128))
    text: Mapped[str] = mapped_column(_TEXT)


class CompletionRow(Base):
    """One answer of one trial; `reward` is empty until it is scored."""

    __tablename__ = "expo_completions"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    trial: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(_TEXT)
    n_tokens: Mapped[int]
    finish_reason: Mapped[str] = mapped_column(sa.String(16))
    reward: Mapped[float | None] = mapped_column(sa.Double)


class SwitchRow(Base):
    """The weights that made a trial's answers: alpha and their fingerprint."""

    __tablename__ = "expo_switches"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    trial: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    alpha: Mapped[float] = mapped_column(sa.Double)
    fingerprint: Mapped[str] = mapped_column(_TEXT)


class CheckRewardRow(Base):
    """The reward that a second judge, or one of several reward models, gives a stored answer.

    `judge` is its key (see `session/settings.judge_key`).
    """

    __tablename__ = "expo_check_rewards"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    judge: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    trial: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    reward: Mapped[float] = mapped_column(sa.Double)


class LockRow(Base):
    """Who searches in a study just now: one process writes (see `lock.py`)."""

    __tablename__ = "expo_locks"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    started: Mapped[float] = mapped_column(sa.Double)
    since: Mapped[str] = mapped_column(sa.String(32))
    alive_at: Mapped[float] = mapped_column(sa.Double)


class BenchTaskRow(Base):
    """What a benchmark's answers in a study are made under, as JSON: data, sampling, checkers."""

    __tablename__ = "expo_bench_tasks"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(sa.String(160), primary_key=True)
    settings: Mapped[str] = mapped_column(_TEXT)


class BenchAlphaRow(Base):
    """The weights that made a study's benchmark answers at an alpha: their fingerprint."""

    __tablename__ = "expo_bench_alphas"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    alpha: Mapped[float] = mapped_column(sa.Double, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(_TEXT)


class BenchAnswerRow(Base):
    """One answer of a benchmark: to a turn of an item, at an alpha; or the likelihood of a text."""

    __tablename__ = "expo_bench_answers"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(sa.String(160), primary_key=True)
    alpha: Mapped[float] = mapped_column(sa.Double, primary_key=True)
    item: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    turn: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(_TEXT)
    n_tokens: Mapped[int]
    finish_reason: Mapped[str] = mapped_column(sa.String(16))
    log_probability: Mapped[float | None] = mapped_column(sa.Double)
    is_greedy: Mapped[bool | None]


class BenchScoreRow(Base):
    """The scores of one item of a benchmark at an alpha: JSON, metric -> [value, weight]."""

    __tablename__ = "expo_bench_scores"
    study_id: Mapped[int] = mapped_column(primary_key=True)
    task: Mapped[str] = mapped_column(sa.String(160), primary_key=True)
    alpha: Mapped[float] = mapped_column(sa.Double, primary_key=True)
    item: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    position: Mapped[int]
    scores: Mapped[str] = mapped_column(_TEXT)
