"""finished trials -> a static picture of the gain over alpha = 0 against alpha, as PNG or SVG.

Drawn by matplotlib: Plotly draws a static picture only with a browser installed (kaleido drives Chrome).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.layout import BLACK, BLUE, CHOSEN, CONFIRMED, GAIN, Band, Scene, Style, half_bar
from expo_search.results.verdict import Verdict
from expo_search.stats.paired import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curve_png(
    evaluations: Sequence[Evaluation], verdict: Verdict, *, band: Band | None = None, title: str | None = None
) -> bytes:
    """A picture of the curve, PNG, 1200 x 675 pixels. The confirmation is the verdict's."""
    return _render(evaluations, verdict, band, title, "png")


def curve_svg(
    evaluations: Sequence[Evaluation], verdict: Verdict, *, band: Band | None = None, title: str | None = None
) -> str:
    """The same as SVG: an `svg` element, letters drawn as paths, so that it needs no font and no network."""
    return svg_element(_render(evaluations, verdict, band, title, "svg"))


def _render(
    evaluations: Sequence[Evaluation], verdict: Verdict, band: Band | None, title: str | None, kind: str
) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150)  # not pyplot, which keeps figures alive
    _draw(figure, Scene(evaluations, verdict, band), title)
    return file_of(figure, kind)


def file_of(figure: Figure, kind: str) -> bytes:
    """A figure as "png" or "svg", without date and random ids: one curve gives one file."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "expo-search"}):
        figure.savefig(out, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return out.getvalue()


def svg_element(file: bytes) -> str:
    """Of an SVG file the element alone, which a page can hold."""
    svg = file.decode()
    return svg[svg.index("<svg") :]


def _draw(figure: Figure, scene: Scene, title: str | None) -> None:
    axes, axis = figure.add_axes((0.1, 0.24, 0.88, 0.68)), scene.axis  # a layout engine would draw it all twice
    axes.set_xlim(*scene.x_range)
    axes.set_ylim(*scene.y_range)
    axes.axhline(0, color=BLACK, linewidth=0.8, label="alpha = 0")
    if scene.band is not None:
        x = axis.positions(scene.band.alpha)
        axes.fill_between(x, scene.band.low, scene.band.high, color=BLUE, alpha=0.15, linewidth=0, label="fit, 95 %")
        axes.plot(x, scene.band.mean, color=BLUE, linewidth=1)
    for kind, members in scene.groups.items():
        _draw_group(axes, kind, [(axis.position(e.alpha), e.gain) for e in members], scene.floor)
    if scene.verdict.confirmed is not None:
        c = scene.verdict.confirmed
        _draw_group(axes, CONFIRMED, [(axis.position(c.alpha), c.estimate)], scene.floor)
    if scene.chosen is not None:
        alpha, gain = scene.chosen
        axes.axvline(axis.position(alpha), color=BLACK, linewidth=0.8, linestyle=":")
        axes.plot(
            axis.position(alpha), gain, CHOSEN.marker, markersize=14, markerfacecolor="none",
            markeredgecolor=CHOSEN.colour, label=f"{CHOSEN.words}: alpha = {alpha:.4g}", linestyle="none",
        )  # fmt: skip
    ticks = axis.ticks()
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("alpha")
    axes.set_ylabel(GAIN[scene.verdict.objective])
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    figure.legend(loc="lower center", ncols=3, fontsize=8, frameon=False)


def _draw_group(axes: Axes, kind: Style, points: Sequence[tuple[float, Estimate]], floor: float) -> None:
    x, y = [p for p, _ in points], [max(g.mean, floor) for _, g in points]
    bars = [half_bar(g) if g.mean >= floor else 0.0 for _, g in points]
    face = "none" if kind.symbol.endswith("open") else kind.colour
    axes.errorbar(
        x, y, yerr=bars, fmt=kind.marker, color=kind.colour,
        markerfacecolor=face, markersize=6, elinewidth=1, capsize=2, label=kind.words,
    )  # fmt: skip
    for here, (_, gain) in zip(x, points, strict=True):
        if gain.mean < floor:  # lies below the picture: its number, and an arrow down
            number = axes.annotate(f"{gain.mean:+.2f}", (here, floor), xytext=(0, 8), textcoords="offset points")
            number.set(rotation=90, horizontalalignment="center", fontsize=8, color=kind.colour)
            arrow = {"arrowstyle": "->", "color": kind.colour}
            axes.annotate("", (here, axes.get_ylim()[0]), xytext=(here, floor), arrowprops=arrow)
