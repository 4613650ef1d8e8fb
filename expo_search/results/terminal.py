"""Finished trials -> a table for a terminal, and the seconds that they took."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import Verdict
from expo_search.search.standing import Left

if TYPE_CHECKING:
    from rich.table import Table


def trial_table(
    evaluations: Sequence[Evaluation], verdict: Verdict, width: int = 200, left: Sequence[Left] = ()
) -> Table:
    """Trials in the order in which they ran, then those that were left; that at the recommended alpha is marked.

    Columns that `width`, in characters, has no room for are left out, the last of `_LEAVE_OUT` first, so that no number
    and no word is broken.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = [cells(e) for e in evaluations]
    rows += [dict.fromkeys(rows[0], "") | _left_cells(each) for each in left] if rows else []
    sizes = {k: max([len(k), *(len(row[k]) for row in rows)]) + 3 for k in (rows[0] if rows else ())}
    words = max([len(word) for row in rows for word in row[""].split()], default=0)
    for heading in reversed(_LEAVE_OUT):
        remark = words + 3 if heading in _AT_LAST else min(sizes.get("", 0), _REMARK)  # a long one goes on below
        if sum(sizes.values()) - sizes.get("", 0) + remark > width:
            sizes.pop(heading, None)
    room = sum(sizes.values()) - (sizes.get("", words + 3) - words - 3)
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if room <= width else 0))
    for heading in sizes:
        least = None if heading else words
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading), min_width=least)
    for e, row in zip_longest(evaluations, rows):
        marked = e is not None and verdict.recommends(e)
        table.add_row(*(row[heading] for heading in sizes), style="bold green" if marked else "" if e else "dim")
    return table


_REMARK = 24  # characters
_AT_LAST = ("prompts", "reward")
_LEAVE_OUT = (*_AT_LAST, "equal length", "cut off", "tokens", "wins", "loops", "seconds")


def _left_cells(trial: Left) -> dict[str, str]:
    return {
        "trial": str(trial.trial),
        "alpha": "" if trial.alpha is None else f"{trial.alpha:.4g}",
        "prompts": f"{trial.n_answers} of {trial.n_prompts}",
        "": "not finished",
    }


def cells(e: Evaluation) -> dict[str, str]:
    """A trial's row of the table, by heading. The control is not compared with itself."""
    versus = e.trial != CONTROL
    return {
        "trial": str(e.trial),
        "alpha": f"{e.alpha:.4g}",
        "prompts": str(e.gain.n),
        "reward": f"{e.reward.mean:.4f}",
        "gain": f"{e.gain.mean:+.4f}" if versus else "",
        "95 % interval": f"[{e.gain.low:+.3f}, {e.gain.high:+.3f}]" if versus else "",
        "wins": f"{e.win_rate.mean:.0%}" if versus else "",
        "equal length": f"{e.length_controlled.mean:+.3f}" if versus else "",
        "tokens": f"{e.mean_length:.0f}",
        "cut off": f"{e.share_cut:.0%}",
        "loops": f"{e.share_repeating:.0%}",
        "seconds": f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
        "": e.remark,
    }


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
