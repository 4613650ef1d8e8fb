"""finished trials -> the gain over alpha = 0 against alpha as text, for a terminal.

Of a fit only the mean is drawn: its band would hide the bars of the trials where a picture is 18 lines high.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.layout import CHOSEN, CONFIRMED, GAIN, Band, Scene, half_bar
from expo_search.results.verdict import Verdict

_FIT = "·"
_AROUND = 5  # lines of title, frame, ticks and label
_BETWEEN = "   "  # entries of the legend


def terminal_curve(
    evaluations: Sequence[Evaluation], verdict: Verdict, *, band: Band | None = None, width: int = 90, height: int = 18
) -> str:
    """The curve, in `height` lines, and its legend below, of at most `width` characters; without colour codes."""
    import plotext

    scene = Scene(evaluations, verdict, band)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # else a smaller terminal, or 80 by 24 where there is none, takes precedence
    plotext.plot_size(width, height)
    plotext.xlim(*scene.x_range)
    plotext.ylim(*scene.y_range)
    ticks = scene.axis.ticks()
    plotext.xticks(list(ticks), list(ticks.values()))
    gains = scene.y_ticks((height - _AROUND) * 2 // 3)  # two in one line would hide each other
    plotext.yticks(gains, [f"{gain:+g}" if gain else "0" for gain in gains])
    plotext.xlabel("alpha")
    plotext.title(f"{GAIN[verdict.objective]} (bars: 95 % interval)")
    _draw(scene)
    picture = str(plotext.uncolorize(plotext.build())).rstrip("\n")
    return "\n".join([picture, *_legend(scene, width)])


def _draw(scene: Scene) -> None:
    """On plotext's figure. Marks come after the bars and the fit, which would cover them."""
    import plotext

    plotext.horizontal_line(0)
    if scene.band is not None:
        plotext.plot(scene.axis.positions(scene.band.alpha), list(scene.band.mean), marker=_FIT)
    marks = [(kind, e.alpha, e.gain) for kind, members in scene.groups.items() for e in members]
    if scene.verdict.confirmed is not None:
        marks.append((CONFIRMED, scene.verdict.confirmed.alpha, scene.verdict.confirmed.estimate))
    inside = [(scene.axis.position(alpha), gain) for _, alpha, gain in marks if gain.mean >= scene.floor]
    plotext.error([x for x, _ in inside], [g.mean for _, g in inside], yerr=[2 * half_bar(g) for _, g in inside])
    for kind, alpha, gain in marks:
        x = scene.axis.position(alpha)
        if gain.mean >= scene.floor:
            plotext.scatter([x], [gain.mean], marker=kind.character)
        elif x > sum(scene.x_range) / 2:  # lies below the picture: its number beside it, on the side that has room
            plotext.text(f"↓ {gain.mean:+.2f} {kind.character}", x, scene.y_range[0], alignment="right")
        else:
            plotext.text(f"{kind.character} {gain.mean:+.2f} ↓", x, scene.y_range[0], alignment="left")
    if scene.chosen is not None:
        # on the axis: in the place of the trial's own mark one of the two would not be seen
        plotext.scatter([scene.axis.position(scene.chosen[0])], [scene.y_range[0]], marker=CHOSEN.character)


def _legend(scene: Scene, width: int) -> list[str]:
    entries = [f"{kind.character} {kind.words}" for kind in scene.groups]
    if scene.verdict.confirmed is not None:
        entries.append(f"{CONFIRMED.character} {CONFIRMED.words}")
    if scene.band is not None:
        entries.append(f"{_FIT} fit")
    if scene.chosen is not None:
        entries.append(f"{CHOSEN.character} {CHOSEN.words}: alpha = {scene.chosen[0]:.4g}")
    entries += [
        f"↓ not in the picture, below it: alpha = {e.alpha:.4g}, gain {e.gain.mean:+.4g}"
        for members in scene.groups.values()
        for e in members
        if e.gain.mean < scene.floor
    ]
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(_BETWEEN) + len(entry) <= width:
            lines[-1] += _BETWEEN + entry
        else:
            lines += wrap(entry, width)
    return lines
