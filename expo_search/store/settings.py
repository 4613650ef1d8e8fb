"""What all trials of one study are made under: everything that changes a reward, or what the sampler sees of it.

A study keeps them flat, as `table.key`, and every resume must agree with what it keeps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from expo_search.errors import SettingsChanged

Value = str | int | float | bool | list[Any] | None  # of one setting, as JSON has it
# of studies that are older than the setting, but have others of its table: what there was then
_BEFORE: dict[str, Value] = {"engine.batch_invariant": False, "reward.backend": "transformers", "reward.scorer": ""}

# a base with an adapter as older versions named it, by the spelling of their paths; and the hash of its header
_AS_SPELLED = re.compile(r".+@\w+\+[0-9a-f]{16}(#[0-9a-f]{16})")


class _Table(BaseModel):
    # what another version kept, and this one does not know, stays
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class PairSettings(_Table):
    """Names and header hashes of the three checkpoints; how an answer ends; hash of the chat template."""

    aligned: str = ""
    sft: str = ""
    reward_model: str = ""
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    chat_template: str = ""


class FilesSettings(_Table):
    """Hashes of samples of the checkpoints' bytes."""

    aligned: str = ""
    sft: str = ""
    reward_model: str = ""


class WeightsSettings(_Table):
    """Fingerprints of the two sources in the engine's memory."""

    aligned: str = ""
    sft: str = ""


class PromptsSettings(_Table):
    """How many prompts the search has, and the hash of their ids and texts in order."""

    n: int = 0
    hash: str = ""


class RewardSettings(_Table):
    """How answers are rated; hash of the reward model's chat template. `scorer`: what rates in its place, or "".

    `combine`: of several reward models; in a setting that differs between them each has its value, in their order.
    """

    backend: str = ""
    max_tokens: int | list[int] = 0
    arithmetic: str = ""
    chat_template: str | list[str] = ""
    scorer: str = ""
    combine: str = ""


class EngineSettings(_Table):
    """What changes an engine's answers; fingerprints are by tensor-parallel rank."""

    dtype: str = ""
    arithmetic: str = ""
    max_model_len: int = 0
    tensor_parallel: int = 1
    batch_invariant: bool = False


class FreeTable(_Table):
    """A table of the study file, as it is there."""


class Settings(BaseModel):
    """The settings, by table; only what was set is kept and compared."""

    model_config = ConfigDict(frozen=True, extra="allow")

    pair: PairSettings = PairSettings()
    files: FilesSettings = FilesSettings()
    weights: WeightsSettings = WeightsSettings()
    prompts: PromptsSettings = PromptsSettings()
    sampling: FreeTable = FreeTable()
    guardrails: FreeTable = FreeTable()
    search: FreeTable = FreeTable()
    reward: RewardSettings = RewardSettings()
    engine: EngineSettings = EngineSettings()

    def flat(self) -> dict[str, Value]:
        """`table.key` -> value, as the database and `expo.json` have it."""
        tables = self.model_dump(mode="json", exclude_unset=True)
        return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}

    def flat_as_of_now(self) -> dict[str, Value]:
        """As `flat`, with the settings that a study is too old to have kept: what there was before a choice."""
        kept = self.flat()
        tables = {key.partition(".")[0] for key in kept}
        return {key: value for key, value in _BEFORE.items() if key.partition(".")[0] in tables} | kept

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> Self:
        """Inverse of `flat`."""
        tables: dict[str, dict[str, Any]] = {}
        for name, value in flat.items():
            table, _, key = name.partition(".")
            tables.setdefault(table, {})[key] = value
        return cls.model_validate(tables)

    def updated(self, other: Settings) -> Settings:
        """These, with what the other ones set."""
        return Settings.from_flat(self.flat() | other.flat())


def differing(stored: Settings, asked: Settings) -> dict[str, tuple[Value, Value]]:
    """What both have and is not the same: `table.key` -> the stored value and the other one."""
    there, now = stored.flat_as_of_now(), asked.flat()
    return {
        key: (there[key], now[key])
        for key in sorted(there.keys() & now.keys())
        if there[key] != now[key] and not _names_the_same(there[key], now[key])
    }


def _names_the_same(stored: Value, now: Value) -> bool:
    """Whether an older version's name of a base with an adapter has the same header; their bytes are compared too."""
    spelled = _AS_SPELLED.fullmatch(stored) if isinstance(stored, str) else None
    return spelled is not None and isinstance(now, str) and now.endswith(spelled[1])


def compare_settings(
    stored: Settings,
    asked: Settings,
    *,
    name: str,
    do: str = "drop the differing options, or give another --study-name",
) -> None:
    """Trials of one study are made under one set of settings. `do`: the advice to who has others.

    Raises:
        SettingsChanged: names every setting that differs, with both values.
    """
    others = [f"{key}: {there!r} there, {now!r} now" for key, (there, now) in differing(stored, asked).items()]
    if others:
        raise SettingsChanged(
            where=f"study {name}",
            found=f"other settings ({'; '.join(others)})",
            expected="those it was made under",
            do=do,
        )
