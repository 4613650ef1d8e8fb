"""finished trials -> a Plotly figure of the gain over alpha = 0 against alpha, for the dashboard."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.layout import (
    BLACK,
    BLUE,
    CHOSEN,
    CONFIRMED,
    GAIN,
    AlphaAxis,
    Band,
    Scene,
    Style,
    half_bar,
)
from expo_search.results.verdict import Verdict
from expo_search.stats.paired import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plotly_curve(evaluations: Sequence[Evaluation], verdict: Verdict, *, band: Band | None = None) -> go.Figure:
    """The same curve to look into: what a trial measured shows under the pointer.

    Raises:
        ImportError: plotly is not installed (extra `dashboard`).
    """
    import plotly.graph_objects as go

    scene = Scene(evaluations, verdict, band)
    figure = go.Figure()
    if band is not None:
        _add_band(figure, band, scene.axis)
    for kind, members in scene.groups.items():
        points = [(e.alpha, e.gain, _hover(e)) for e in members]
        figure.add_trace(go.Scatter(_trace(kind, points, scene.axis)))
    if verdict.confirmed is not None:
        c = verdict.confirmed
        text = f"alpha = {c.alpha:.6g}<br>{CONFIRMED.words}<br>{_interval(c.estimate)}"
        figure.add_trace(go.Scatter(_trace(CONFIRMED, [(c.alpha, c.estimate, text)], scene.axis)))
    if scene.chosen is not None:
        alpha, gain = scene.chosen
        figure.add_trace(
            go.Scatter(
                x=[scene.axis.position(alpha)],
                y=[gain],
                mode="markers",
                hoverinfo="skip",
                name=f"{CHOSEN.words}: alpha = {alpha:.4g}",
                marker={"symbol": CHOSEN.symbol, "size": 18, "color": CHOSEN.colour, "line": {"width": 2}},
            )
        )
        figure.add_vline(scene.axis.position(alpha), line={"dash": "dot", "width": 1, "color": BLACK})
    for e in evaluations:
        if e.gain.mean < scene.floor:  # lies below the first view
            x = scene.axis.position(e.alpha)
            figure.add_annotation(x=x, y=scene.y_range[0], text=f"{e.gain.mean:+.2f}", ax=0, ay=-30, arrowhead=2)
    figure.add_hline(0, line={"width": 1, "color": BLACK}, annotation_text="alpha = 0", annotation_font_size=10)
    ticks = scene.axis.ticks()
    figure.update_layout(
        template="none",  # Plotly's own is 7 kB in every stored figure
        title={"text": "Gain over alpha = 0", "x": 0.02},
        xaxis={
            "title": {"text": "alpha"},
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
            "zeroline": False,
            "range": scene.x_range,
        },
        yaxis={"title": {"text": GAIN[verdict.objective]}, "zeroline": False, "range": scene.y_range},
        legend={"orientation": "h", "y": -0.25},
        margin={"l": 60, "r": 20, "t": 40, "b": 60},
        hovermode="closest",
    )
    return figure


def _add_band(figure: go.Figure, band: Band, axis: AlphaAxis) -> None:
    import plotly.graph_objects as go

    x = axis.positions(band.alpha)
    edge = {"x": x, "mode": "lines", "hoverinfo": "skip", "legendgroup": "fit"}
    figure.add_trace(go.Scatter(edge, y=list(band.low), line={"width": 0}, showlegend=False))
    shade = {"fill": "tonexty", "fillcolor": "rgba(0,114,178,0.15)"}
    figure.add_trace(go.Scatter(edge, y=list(band.high), line={"width": 0}, name="fit, 95 %", **shade))
    figure.add_trace(go.Scatter(edge, y=list(band.mean), line={"width": 1, "color": BLUE}, showlegend=False))


def _trace(kind: Style, points: Sequence[tuple[float, Estimate, str]], axis: AlphaAxis) -> dict[str, Any]:
    return {
        "x": [axis.position(alpha) for alpha, _, _ in points],
        "y": [gain.mean for _, gain, _ in points],
        "error_y": {"array": [half_bar(gain) for _, gain, _ in points], "width": 3},
        "text": [text for _, _, text in points],
        "hovertemplate": "%{text}<extra></extra>",
        "mode": "markers",
        "marker": {"symbol": kind.symbol, "color": kind.colour, "size": 9},
        "name": kind.words,
    }


def _hover(e: Evaluation) -> str:
    """HTML, of numbers and our own words; names of guardrails are escaped all the same."""
    lines = [f"trial {e.trial}: alpha = {e.alpha:.6g}", _interval(e.gain), f"mean reward {e.reward.mean:.4f}"]
    lines += [f"{e.mean_length:.0f} tokens an answer, {e.share_cut:.0%} cut off", f"{e.gain.n} prompts"]
    lines += [e.remark] if e.remark else []
    return "<br>".join(html.escape(line) for line in lines)


def _interval(gain: Estimate) -> str:
    return f"gain {gain.mean:+.4f}, 95 % interval [{gain.low:+.4f}, {gain.high:+.4f}]"
