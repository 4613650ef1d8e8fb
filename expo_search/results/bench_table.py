"""A study's benchmarks -> a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_search.bench.comparison import Compared
from expo_search.bench.result import BenchResult

if TYPE_CHECKING:
    from rich.table import Table


def bench_table(bench: BenchResult) -> Table:
    """A row a metric and alpha: the means, how far they differ, its interval; the metric that decides first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = bench_rows(bench)
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in rows[0] if rows else ():
        left = heading in ("task", "metric", "")
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        table.add_row(*row.values())
    return table


def bench_rows(bench: BenchResult) -> list[dict[str, str]]:
    """The table's rows, by heading; a task that nothing is compared of says why in its last cell."""
    rows = [_row(c, bench) for c in bench.compared]
    for task in bench.tasks:
        if not any(c.task == task.name for c in bench.compared):
            at = ", ".join(f"{alpha:.4g} ({n})" for alpha, n in task.n_items.items())
            remark = f"answered at {at}" + ("" if task.metrics else "; it is judged elsewhere")
            rows.append(dict.fromkeys(_HEADINGS, "") | {"task": task.title, "": remark})
    return rows


_HEADINGS = ("task", "metric", "alpha", "items", "alpha = 0", "at alpha", "difference", "95 % interval", "")


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
    return dict(zip(_HEADINGS, values, strict=True))
