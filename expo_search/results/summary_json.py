"""Finished trials -> what `--json` prints and `expo.json` keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expo_search.bench.result import BenchResult
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import Verdict
from expo_search.search.confirm import Confirmation


def summary(
    study_name: str,
    evaluations: Sequence[Evaluation],
    verdict: Verdict,
    bench: BenchResult | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """For machines: the verdict, every trial's numbers, and every benchmark's.

    `best_alpha`, `best_trial` and `recommended` are of the alpha that the verdict recommends, which may be 0;
    `best_other` is the best trial at another alpha than 0, of whose gain `interval_95` is, on the search's
    prompts; `verdict_by` says whose interval `verdict_interval_95` is, by which the verdict was judged. `shown_better`
    are the alphas that the search shows to be better than 0; `excess` of a trial is by how much it exceeds each
    guardrail's limit. Every key: docs/verdict.md.
    """
    recommended = next((e for e in evaluations if verdict.recommends(e)), None)
    return {
        "study": study_name,
        "verdict": verdict.word,
        "verdict_by": verdict.judged_by,
        "verdict_interval_95": list(verdict.judged_interval),
        "best_alpha": verdict.alpha,
        "best_trial": CONTROL if verdict.recommended is None else verdict.recommended.trial,
        "recommended": None if recommended is None else as_json(recommended),
        "best_other": None if verdict.best is None else as_json(verdict.best),
        "shown_better": list(verdict.better),
        "interval_95": list(verdict.interval),
        "alphas_tried": verdict.n_tried,
        "objective": verdict.objective,
        "edge": verdict.edge,
        "confirmation": None if verdict.confirmed is None else confirmation_json(verdict.confirmed),
        "trials": [as_json(e) for e in evaluations],
        "bench": (bench or BenchResult()).as_json(),
        "remarks": list(remarks),
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
