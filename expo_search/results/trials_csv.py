"""finished trials -> CSV, one row a trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from expo_search.evaluation.result import Evaluation


def trials_csv(evaluations: Sequence[Evaluation]) -> str:
    """RFC 4180 with a header; numbers in full precision, guardrails joined by "; "."""
    out = io.StringIO()
    rows = [trial_row(e) for e in evaluations]
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(out, fieldnames=list(names or ["trial", "alpha"]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def trial_row(e: Evaluation) -> dict[str, Any]:
    """One trial's numbers by name, without those that depend on another trial."""
    values = {key: value for key, value in e.attributes().items() if not isinstance(value, Mapping)}
    values["broken"] = "; ".join(e.broken)
    ends = {"gain_low": e.gain.low, "gain_high": e.gain.high}
    excess = {f"excess_{name.replace(' ', '_')}": by for name, by in e.excess.items()}
    return {"trial": e.trial, "alpha": e.alpha, **values, **ends, **excess}
