"""Finished trials -> a table for a terminal, and the seconds that they took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.fitted_table import fitted_table
from expo_search.results.legend import trial_cell
from expo_search.results.verdict import Verdict
from expo_search.search.standing import Left

if TYPE_CHECKING:
    from rich.table import Table


HEADINGS = (
    "trial", "alpha", "prompts", "reward", "gain", "95 % interval", "wins", "equal length", "tokens", "cut off",
    "loops", "seconds", "",
)  # fmt: skip
# what tells least goes first; gains can be the length of answers alone, so what shows that goes at last
_LEAVE_OUT = ("seconds", "loops", "wins", "reward", "prompts")
_AT_LAST = ("tokens", "cut off", "equal length")


def trial_table(
    evaluations: Sequence[Evaluation], verdict: Verdict, width: int = 200, left: Sequence[Left] = ()
) -> Table:
    """Trials in the order in which they ran, then those that were left; that at the recommended alpha is marked.

    Columns that `width`, in characters, has no room for are left out, so that no number and no word is broken.
    """
    rows = [cells(e, verdict) for e in evaluations]
    styles = ["bold green" if verdict.recommends(e) else "" for e in evaluations]
    if rows:
        rows += [dict.fromkeys(rows[0], "") | _left_cells(each) for each in left]
        styles += ["dim"] * len(left)
    return fitted_table(rows, width, texts=("",), leave_out=_LEAVE_OUT, at_last=_AT_LAST, styles=styles)


def _left_cells(trial: Left) -> dict[str, str]:
    return {
        "trial": str(trial.trial),
        "alpha": "" if trial.alpha is None else f"{trial.alpha:.4g}",
        "prompts": f"{trial.n_answers} of {trial.n_prompts}",
        "": "not finished",
    }


def cells(e: Evaluation, verdict: Verdict) -> dict[str, str]:
    """A trial's row of the table, by heading. The control is not compared with itself."""
    versus = e.trial != CONTROL
    values = (
        trial_cell(e, verdict),
        f"{e.alpha:.4g}",
        str(e.gain.n),
        f"{e.reward.mean:.4f}",
        f"{e.gain.mean:+.4f}" if versus else "",
        f"[{e.gain.low:+.3f}, {e.gain.high:+.3f}]" if versus else "",
        f"{e.win_rate.mean:.0%}" if versus else "",
        f"{e.length_controlled.mean:+.3f}" if versus else "",
        f"{e.mean_length:.0f}",
        f"{e.share_cut:.0%}",
        f"{e.share_repeating:.0%}",
        f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
        e.remark,
    )
    return dict(zip(HEADINGS, values, strict=True))


def stage_seconds(evaluations: Sequence[Evaluation]) -> str:
    """Seconds by stage over all trials, and the share outside generating and scoring."""
    switch, generate, score, other = (
        sum(getattr(e, f"{k}_s") for e in evaluations) for k in ("switch", "generate", "score", "other")
    )
    total = switch + generate + score + other
    return (
        f"Seconds in trials: switch {switch:.1f}, generate {generate:.1f}, score {score:.1f}, other {other:.1f}; "
        f"outside generating and scoring {(switch + other) / max(total, 1e-9):.1%}."
    )
