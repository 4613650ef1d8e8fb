"""Finished trials -> what `--json` prints and `expo.json` keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import Verdict
from expo_search.search.confirm import Confirmation

if TYPE_CHECKING:
    pass


def summary(study_name: str, evaluations: Sequence[Evaluation], verdict: Verdict) -> dict[str, Any]:
    """For machines: the verdict and every trial's numbers."""
    return {
        "study": study_name,
        "verdict": verdict.word,
        "best_alpha": verdict.best.alpha if verdict.best and verdict.word == "better" else 0.0,
        "best_trial": verdict.best.trial if verdict.best and verdict.word == "better" else CONTROL,
        "recommended": None if verdict.best is None else as_json(verdict.best),
        "interval_95": list(verdict.interval),
        "alphas_tried": verdict.n_tried,
        "objective": verdict.objective,
        "edge": verdict.edge,
        "confirmation": None if verdict.confirmed is None else confirmation_json(verdict.confirmed),
        "trials": [as_json(e) for e in evaluations],
    }


def as_json(e: Evaluation) -> dict[str, Any]:
    """One trial's numbers; the intervals are its own, not corrected for the number of alphas tried."""
    return {
        "trial": e.trial,
        "alpha": e.alpha,
        **e.attributes(),
        "gain_95": [0.0, 0.0] if e.trial == CONTROL else [e.gain.low, e.gain.high],
        "difference_95": [0.0, 0.0] if e.trial == CONTROL else [e.difference.low, e.difference.high],
    }


def confirmation_json(c: Confirmation) -> dict[str, Any]:
    """For machines."""
    return c.attributes() | {"difference_95": [c.estimate.low, c.estimate.high]}
