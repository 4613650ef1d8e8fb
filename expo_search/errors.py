"""Every error the package raises, one tree.

    ExpoError
    ├── StudyError         a study file, preset name or option
    ├── PromptsError       a prompts file or data set
    ├── PairError          the two checkpoints do not make a pair; a part of one is missing
    │   └── CheckpointError    one checkpoint folder or file
    ├── RewardError        the reward model or one of its rewards
    ├── StoreError         the database
    │   ├── SettingsChanged    a stored study was made under other settings
    │   └── ConnectionLost     no connection to its server: it broke, or none could be made
    ├── EngineError        the vLLM engine: not installed, does not fit, does not start
    │   └── EngineDied         it crashed, hung or ran out of memory at work
    └── MaterializeError   weights that cannot be switched, or a switch that had no effect

A message has four parts: where it is, what was found, what was expected, what to do. The command line prints it
as one line and exits with code 2; anything that is not an `ExpoError` is our own mistake and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class ExpoError(Exception):
    """Base of all errors; `str()` gives the one line a user sees."""

    def __init__(self, *, where: str, found: str, expected: str, do: str) -> None:
        self.where, self.found, self.expected, self.do = where, found, expected, do
        super().__init__(f"{where}: {found}; expected {expected}; {do}")

    def __reduce__(self) -> tuple[Callable[[], ExpoError], tuple[()]]:
        """Pickle by the four parts, so that an error comes whole from another process."""
        return partial(type(self), where=self.where, found=self.found, expected=self.expected, do=self.do), ()


class StudyError(ExpoError):
    """A study file, a preset name or an option of the command line."""


class PromptsError(ExpoError):
    """A prompts file or data set."""


class PairError(ExpoError):
    """Two checkpoints that do not make a pair, or parts of one that are missing."""


class CheckpointError(PairError):
    """One checkpoint's folder or files."""


class RewardError(ExpoError):
    """The reward model, or a reward that is not a finite number."""


class StoreError(ExpoError):
    """The database."""


class SettingsChanged(StoreError):
    """The stored study was made under other settings than those asked for."""


class ConnectionLost(StoreError):
    """There is no connection to a database server, which may come back (see `store/server.py`)."""


class EngineError(ExpoError):
    """The vLLM engine: not installed, no room, does not start."""


class EngineDied(EngineError):
    """The engine was at work and is no more: a new one may do better (see `search/loop.py`)."""


class MaterializeError(ExpoError):
    """A switch of alpha that cannot be made, or that had no effect."""
