"""finished trials -> what the words beside their numbers mean, for under a table; only words that stand there."""

from __future__ import annotations

from collections.abc import Sequence

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.layout import CHOSEN
from expo_search.results.verdict import Verdict

_REMARKS = {
    "enough": "enough: a part of the prompts had told the search enough; recommended only if none was answered whole",
    "hopeless": "hopeless: stopped, since it could not win any more",
    "degenerate": "degenerate: stopped, since answers loop or run to max_tokens",
}
EQUAL_LENGTH = "equal length: the gain over alpha = 0 if answers were as long as there, by a line through the prompts"
IN_ORDER = "in order: among the first of the search's prompts, whose order is random; picked for nothing in them"


def legend(evaluations: Sequence[Evaluation], verdict: Verdict, columns: Sequence[str] = ()) -> list[str]:
    """A line a word: the intervals, remarks and guardrails of these trials, and of the table's `columns`."""
    outcomes = {e.outcome for e in evaluations}
    lines = []
    if any(verdict.recommends(e) for e in evaluations):
        lines.append(f"{CHOSEN.character}: the alpha that the verdict recommends")
    if verdict.n_tried > 1:
        lines.append("95 % interval: of that alpha alone; only the verdict's is corrected for picking the best of them")
    if "equal length" in columns and verdict.n_tried:
        lines.append(EQUAL_LENGTH)
    lines += [line for outcome, line in _REMARKS.items() if outcome in outcomes]
    if any(e.broken for e in evaluations):
        lines.append("broke: answers got longer, looped or were cut off beyond a guardrail's limit; never recommended")
    return lines


def trial_cell(e: Evaluation, verdict: Verdict) -> str:
    """A trial's number, with the curve's mark where its alpha is the recommended one: a pipe shows no colour."""
    return f"{CHOSEN.character} {e.trial}" if verdict.recommends(e) else str(e.trial)
