"""lm-evaluation-harness, the package of other people's checkers and tasks: whether it is there, and its version."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

from expo_search.errors import StudyError

INSTALL = 'pip install "expo-search[bench]"'


def need_harness(task: str, *modules: str) -> str:
    """The installed version, as settings name it, where lm-eval and these further modules can be imported.

    Raises:
        StudyError: one of them is not installed.
    """
    missing = [name for name in ("lm_eval", *modules) if find_spec(name) is None]
    if missing:
        raise StudyError(
            where=f"task {task}",
            found=f"no {', '.join(missing)}",
            expected="lm-evaluation-harness, whose checkers it takes",
            do=INSTALL,
        )
    return f"lm-eval {version('lm_eval')}"
