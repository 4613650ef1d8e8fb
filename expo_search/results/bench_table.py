"""A study's benchmarks -> a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_search.bench.comparison import Compared
from expo_search.bench.result import BenchResult
from expo_search.results.fitted_table import fitted_table, headings

if TYPE_CHECKING:
    from rich.table import Table


HEADINGS = ("task", "metric", "alpha", "items", "alpha = 0", "at alpha", "difference", "95 % interval", "")
_TEXTS = ("task", "metric", "")
_LEAVE_OUT = ("alpha = 0", "at alpha", "items")


def bench_table(bench: BenchResult, width: int = 200) -> Table:
    """A row a metric and alpha: the means, how far they differ, its interval; the metric that decides first.

    Columns that `width`, in characters, has no room for are left out, the verdict's at last: the sentences have it.
    """
    rows = bench_rows(bench)
    one_alpha = len({c.alpha for c in bench.compared}) == 1  # the sentences name it
    at_last = ["", *(["alpha"] if one_alpha else [])]
    table = fitted_table(rows, width, texts=_TEXTS, leave_out=_LEAVE_OUT, at_last=at_last)
    if "" in headings(table):
        return table
    rows = [_without_remark(row) for row in rows]
    return fitted_table(rows, width, texts=_TEXTS, leave_out=_LEAVE_OUT, at_last=at_last)


def _without_remark(row: dict[str, str]) -> dict[str, str]:
    """A row without its last cell; where nothing is compared that moves to the metric, since no sentence has it."""
    said = {} if row["alpha"] else {"metric": row[""]}
    return {heading: cell for heading, cell in (row | said).items() if heading}


def bench_rows(bench: BenchResult) -> list[dict[str, str]]:
    """The table's rows, by heading; a task that nothing is compared of says why in its last cell."""
    rows = [_row(c, bench) for c in bench.compared]
    for task in bench.tasks:
        if not any(c.task == task.name for c in bench.compared):
            at = ", ".join(f"{alpha:.4g} ({n})" for alpha, n in task.n_items.items())
            how = "not finished" if task.unfinished else f"answered at {at}"
            remark = how + ("" if task.metrics or not task.n_items else "; it is not scored here")
            rows.append(dict.fromkeys(HEADINGS, "") | {"task": task.title, "": remark})
    return rows


def _row(c: Compared, bench: BenchResult) -> dict[str, str]:
    task = next(t for t in bench.tasks if t.name == c.task)
    titles = {m.name: m.title for m in task.metrics}
    low, high = (c.shown(x, signed=True) for x in (c.low, c.high))
    values = (
        task.title if c.decides else "",
        titles[c.metric],
        f"{c.alpha:.4g}",
        str(c.n),
        c.shown(c.control),
        c.shown(c.mean),
        c.shown(c.difference, signed=True),
        f"[{low}, {high}]",
        c.word if c.decides else "",
    )
    return dict(zip(HEADINGS, values, strict=True))
