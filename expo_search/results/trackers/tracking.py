"""`--track A,B` -> trackers that are open, and what keeps a search from ending because one of them is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from expo_search.errors import StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.study_results import StudyResult
from expo_search.text import shown

TRACKERS = ("mlflow", "wandb", "tensorboard")
_SHOWN = 200  # characters of what another program says


class Tracker(Protocol):
    """One program that keeps experiments."""

    def update(self, study: StudyResult) -> None:
        """Write what it does not have yet of a study with one finished trial at least: trials, verdict, curve."""

    def close(self) -> None:
        """Write what is still on its way."""


class Tracking:
    """All trackers that a search was asked for, as one. One that fails is said once, and left out from then on."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        """`names`: of `TRACKERS`.

        Raises:
            StudyError: one that is not installed, does not know where to write to, or cannot be reached.
        """
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            self._open[name] = _open(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)
        self._open.clear()

    def update(self, read: Callable[[], StudyResult]) -> None:
        """Bring all of them up to date with a study; it is not read where there is nobody to tell."""
        if not self._open:
            return
        study = read()
        if study.evaluations:
            for name, tracker in list(self._open.items()):
                self._try(name, lambda tracker=tracker: tracker.update(study))  # type: ignore[misc]

    def _try(self, name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as e:  # whatever another program raises: the search is worth more
            self._open.pop(name, None)
            self._say(
                f"--track {name}: {_first_line(e)}; the search goes on without it, and the same command writes it later"
            )


def tracker_names(text: str) -> list[str]:
    """The names between commas.

    Raises:
        StudyError: one that is no tracker's.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TRACKERS:
            near = get_close_matches(name, TRACKERS, 1)
            raise StudyError(
                where=f"--track {name}",
                found="no tracker of that name",
                expected=f"one or more of {', '.join(TRACKERS)}, with commas between",
                do=f"did you mean {near[0]}?" if near else "give one of them, or leave it out",
            )
    return names


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of trackers are there; none is opened.

    Raises:
        StudyError: one is not.
    """
    for name in names:
        _module(name)


def _module(name: str) -> Any:
    try:
        return import_module(f"expo_search.results.trackers.{name}_runs")
    except ImportError as e:
        raise StudyError(
            where=f"--track {name}",
            found=f"not installed ({e})",
            expected=f"the package {name} beside expo-search",
            do='pip install "expo-search[track]", which brings all three',
        ) from None
    except Exception as e:  # whatever another program raises
        raise _unusable(name, e) from None


def _unusable(name: str, fault: Exception) -> StudyError:
    return StudyError(
        where=f"--track {name}",
        found=f"it cannot be written to ({_first_line(fault)})",
        expected="one that can",
        do="see to its server and its settings, or leave it out",
    )


def _open(name: str) -> Tracker:
    module = _module(name)
    try:
        tracker: Tracker = module.open_tracker()
    except StudyError:
        raise
    except Exception as e:  # whatever another program raises
        raise _unusable(name, e) from None
    return tracker


def _first_line(fault: Exception) -> str:
    return shown((str(fault).strip() or type(fault).__name__).splitlines()[0])[:_SHOWN]


def identity(study: StudyResult) -> str:
    """What tells a study from any other, of the same name too, wherever its database lies: sixteen hex digits.

    Of its name and of what was measured at alpha = 0, times included, which no other study has.
    """
    control = next(e for e in study.evaluations if e.trial == CONTROL)
    text = json.dumps([study.name, control.attributes()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def metrics(e: Evaluation) -> dict[str, float]:
    """One trial's numbers, in units of the reward model, tokens and seconds; shares are 0..1."""
    seconds = e.switch_s + e.generate_s + e.score_s + e.other_s
    return {
        "gain": e.gain.mean,
        "gain_low": e.gain.low,
        "gain_high": e.gain.high,
        "reward": e.reward.mean,
        "win_rate": e.win_rate.mean,
        "mean_length": e.mean_length,
        "share_cut": e.share_cut,
        "prompts": float(e.gain.n),
        "tokens": float(e.n_tokens),
        "seconds": seconds,
    }


def verdict_text(study: StudyResult) -> str:
    """The verdict and what stands beside it, a line each."""
    return "\n\n".join([study.verdict.sentence(), *study.remarks])
