"""A study's benchmarks -> the alignment tax as a curve: each task's difference from alpha = 0 against alpha.

Drawn where a task was answered at two alphas beside 0 at least: one is told by its sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from expo_search.bench.comparison import Compared
from expo_search.bench.result import BenchResult
from expo_search.results.curve.layout import BLACK, BLUE, GREEN, ORANGE, AlphaAxis
from expo_search.results.curve.static import file_of, svg_element

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST = 2  # alphas beside 0
_COLUMNS = 3
_COLOURS = {"a gain": GREEN, "a loss": ORANGE}
_CHARACTERS = {"a gain": "▲", "a loss": "▼"}
_TITLE = "difference from alpha = 0, 95 % interval"


def tax_panels(bench: BenchResult) -> dict[str, list[Compared]]:
    """Task -> what decides it at each alpha beside 0, at rising alphas; tasks with one alpha alone are left out."""
    panels: dict[str, list[Compared]] = {}
    for c in sorted((c for c in bench.compared if c.decides), key=lambda c: c.alpha):
        panels.setdefault(c.task, []).append(c)
    return {task: at for task, at in panels.items() if len(at) >= _LEAST}


def tax_svg(bench: BenchResult) -> str:
    """A picture with a panel a task, as `curve_svg` draws; empty where there is no curve to draw."""
    panels = tax_panels(bench)
    if not panels:
        return ""
    from matplotlib.figure import Figure

    n_columns = min(_COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(8, 0.6 + 2.4 * n_rows), dpi=150, layout="constrained")
    for i, at in enumerate(panels.values()):
        _draw(figure.add_subplot(n_rows, n_columns, i + 1), at)
    figure.suptitle(_TITLE, fontsize=10, x=0.01, horizontalalignment="left")
    return svg_element(file_of(figure, "svg"))


def _draw(axes: Axes, at: Sequence[Compared]) -> None:
    axis = AlphaAxis((0.0, *(c.alpha for c in at)))
    scale = _scale(at)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    x = axis.positions([c.alpha for c in at])
    line = sorted([(axis.position(0.0), 0.0), *zip(x, [scale * c.difference for c in at], strict=True)])
    axes.plot([p for p, _ in line], [d for _, d in line], color=BLUE, linewidth=0.8)
    for here, c in zip(x, at, strict=True):
        colour = _COLOURS.get(c.word, BLUE)
        below, above = (scale * half for half in _halves(c))
        axes.errorbar(
            [here], [scale * c.difference], yerr=[[below], [above]], fmt="o",
            color=colour, markersize=5, elinewidth=1, capsize=2,
        )  # fmt: skip
    ticks = axis.ticks()
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("alpha", fontsize=8)
    axes.set_ylabel("points" if scale > 1 else "score", fontsize=8)
    axes.set_title(at[0].title, fontsize=9, loc="left", parse_math=False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def terminal_tax(bench: BenchResult, *, width: int = 90, height: int = 14) -> str:
    """The same as text, a picture a task, each `height` lines high; empty where there is none to draw."""
    panels = tax_panels(bench)
    pictures = [_text(at, width, height) for at in panels.values()]
    if pictures:
        words = {c.word for at in panels.values() for c in at}
        shown = [("●", "no evidence of a loss"), ("▲", "a gain"), ("▼", "a loss")]
        pictures.append("   ".join(f"{mark} {word}" for mark, word in shown if word in words))
    return "\n".join(pictures)


def _text(at: Sequence[Compared], width: int, height: int) -> str:
    import plotext

    axis, scale = AlphaAxis((0.0, *(c.alpha for c in at))), _scale(at)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    x = axis.positions([c.alpha for c in at])
    differences = [scale * c.difference for c in at]
    low = [scale * (c.difference - _halves(c)[0]) for c in at]
    high = [scale * (c.difference + _halves(c)[1]) for c in at]
    ends = [0.0, *low, *high]
    margin = 0.05 * (max(ends) - min(ends) or 1.0)
    edge = 0.05 * ((max([0.0, *x]) - min([0.0, *x])) or 1.0)
    plotext.xlim(min([0.0, *x]) - edge, max([0.0, *x]) + edge)
    plotext.ylim(min(ends) - margin, max(ends) + margin)
    ticks = axis.ticks()
    plotext.xticks(list(ticks), list(ticks.values()))
    plotext.xlabel("alpha")
    unit = " in points" if scale > 1 else ""
    plotext.title(f"{at[0].title}: difference from alpha = 0{unit} (bars: 95 % interval)")
    plotext.horizontal_line(0)
    for here, *bar in zip(x, low, high, strict=True):
        plotext.plot([here, here], bar, marker="│")
    for here, d, c in zip(x, differences, at, strict=True):
        plotext.scatter([here], [d], marker=_CHARACTERS.get(c.word, "●"))
    return str(plotext.uncolorize(plotext.build())).rstrip("\n")


def _scale(at: Sequence[Compared]) -> float:
    """100 where all means are shares, which are told in percentage points."""
    return 100.0 if all(0 <= mean <= 1 for c in at for mean in (c.mean, c.control)) else 1.0


def _halves(c: Compared) -> tuple[float, float]:
    """How far the interval reaches below and above the difference; nothing where it has no end."""
    below, above = c.difference - c.low, c.high - c.difference
    return (max(0.0, below) if math.isfinite(below) else 0.0, max(0.0, above) if math.isfinite(above) else 0.0)
