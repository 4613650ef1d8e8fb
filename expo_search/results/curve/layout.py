"""finished trials -> what every picture of the curve shows: axis, marks, range. The pictures themselves draw only.

A 95 % interval a trial, trials stopped early and trials that broke a guardrail apart from the others, the band of a
fit where there is one, the confirmation, and the alpha that the verdict recommends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.verdict import Verdict
from expo_search.stats.paired import Estimate, Kind

GAIN: dict[Kind, str] = {
    "reward": "gain over alpha = 0: mean reward",
    "win-rate": "gain over alpha = 0: win rate less ½",
    "length-controlled": "gain over alpha = 0: reward at equal lengths",
}
BLUE, ORANGE, GREY, GREEN, BLACK = "#0072B2", "#D55E00", "#7f7f7f", "#009E73", "#222222"
_WIDE = 20  # nonzero alphas that span more than this factor get an axis that is logarithmic away from 0


@dataclass(frozen=True)
class Band:
    """A fit of the gain: its mean and the ends of its interval at rising alphas, each of shape (points,)."""

    alpha: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Style:
    """How trials of one kind are drawn.

    Attributes:
        words: for the legend.
        marker, symbol: as matplotlib and as Plotly name it.
        character: in a terminal.
    """

    words: str
    colour: str
    marker: str
    symbol: str
    character: str


EVALUATED = Style("trial, 95 % interval", BLUE, "o", "circle", "●")
FEWER = Style("enough learnt from fewer prompts", BLUE, "D", "diamond-open", "◇")
STOPPED = Style("stopped early: hopeless or degenerate", GREY, "v", "triangle-down-open", "▽")
BROKEN = Style("broke a guardrail: cannot win", ORANGE, "X", "x", "×")
CONFIRMED = Style("measured on fresh prompts", GREEN, "s", "square", "■")
CHOSEN = Style("verdict", BLACK, "o", "circle-open", "▲")


def style(e: Evaluation) -> Style:
    """How a trial is drawn. A broken guardrail says more than an early stop."""
    if e.broken:
        return BROKEN
    return {"complete": EVALUATED, "enough": FEWER}.get(e.outcome, STOPPED)


@dataclass(frozen=True)
class AlphaAxis:
    """Where an alpha stands on an axis: linear, or inverse hyperbolic sine where the alphas span decades.

    The second is linear around 0 and logarithmic beyond, on both sides: alphas of 0, -0.3, 0.05 and 30 are all seen.
    """

    alphas: tuple[float, ...]

    @cached_property
    def width(self) -> float | None:
        """The half-width of the linear part; None on a linear axis."""
        sizes = sorted(abs(a) for a in self.alphas if a != 0)
        if not sizes or sizes[-1] / sizes[0] <= _WIDE:
            return None
        return max(sizes[0], sizes[-1] / 1e4)

    def position(self, alpha: float) -> float:
        """Where to draw an alpha: alpha itself, or asinh(alpha / width)."""
        return alpha if self.width is None else math.asinh(alpha / self.width)

    def positions(self, alphas: Sequence[float]) -> list[float]:
        """`position` of each."""
        return [self.position(a) for a in alphas]

    def ticks(self) -> dict[float, str]:
        """Position -> label; the labels are alphas, round ones, not too near to each other."""
        low, high = min(self.alphas, default=0.0), max(self.alphas, default=1.0)
        span = (self.position(high) - self.position(low)) or 1.0
        kept: list[float] = []
        for alpha in self._candidates(low, high, span):
            here = self.position(alpha)
            if low <= alpha <= high and all(abs(here - self.position(other)) >= 0.055 * span for other in kept):
                kept.append(alpha)
        return {self.position(a): f"{a:g}" for a in sorted(kept)}

    def _candidates(self, low: float, high: float, span: float) -> list[float]:
        """Round alphas, the more welcome ones first."""
        if self.width is None:
            step = _round_up(span / 8)
            return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
        decades = range(math.floor(math.log10(self.width)), math.ceil(math.log10(max(-low, high))) + 1)
        sizes = [float(f"{digit}e{decade}") for digit in (1, 3, 2, 5) for decade in decades]
        return [0.0, *sizes, *(-size for size in sizes)]


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    evaluations: Sequence[Evaluation]
    verdict: Verdict
    band: Band | None

    @cached_property
    def axis(self) -> AlphaAxis:
        """The alpha axis that suits all evaluated alphas."""
        return AlphaAxis(tuple(e.alpha for e in self.evaluations))

    @cached_property
    def groups(self) -> dict[Style, list[Evaluation]]:
        """Trials but the control, by how they are drawn, in the order of the legend."""
        groups: dict[Style, list[Evaluation]] = {EVALUATED: [], FEWER: [], STOPPED: [], BROKEN: []}
        for e in sorted(self.evaluations, key=lambda e: e.alpha):
            if e.trial != CONTROL:
                groups[style(e)].append(e)
        return {kind: members for kind, members in groups.items() if members}

    @property
    def chosen(self) -> tuple[float, float] | None:
        """(alpha, gain) of what the verdict recommends: the best trial's if it is better, else alpha = 0."""
        if self.verdict.best is None and self.verdict.n_tried == 0:
            return None
        recommended = self.verdict.recommended
        return (0.0, 0.0) if recommended is None else (recommended.alpha, recommended.gain.mean)

    @cached_property
    def floor(self) -> float:
        """Lowest gain that is drawn at its place: a collapsed model would press all others into one line."""
        ends = [(gain.mean - half, gain.mean, gain.mean + half) for gain, half in self._bars]
        lowest, top = min(low for low, _, _ in ends), max(high for _, _, high in ends)
        middle = sorted(mean for _, mean, _ in ends)[len(ends) // 2]
        return max(lowest, min(middle, 0.0) - 2 * top) if top > 0 else lowest

    @property
    def x_range(self) -> list[float]:
        """[low, high] in positions of the axis; alpha = 0 is always inside."""
        ends = [self.axis.position(e.alpha) for e in self.evaluations]
        return _with_margin(min([0.0, *ends]), max([0.0, *ends]))

    @property
    def y_range(self) -> list[float]:
        """[low, high] in gains: from `floor` to the highest end of an interval, with a margin."""
        return _with_margin(self.floor, max(gain.mean + half for gain, half in self._bars))

    def y_ticks(self, n_max: int) -> list[float]:
        """Round gains within the range, 0 among them, at least an n_max-th of the range apart."""
        low, high = self.y_range
        step = _round_up((high - low) / max(1, n_max))
        return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    @property
    def _bars(self) -> list[tuple[Estimate, float]]:
        """Everything with an error bar, and alpha = 0 itself."""
        gains = [e.gain for e in self.evaluations] + [Estimate(0.0, 0.0, 2)]
        if self.verdict.confirmed is not None:
            gains.append(self.verdict.confirmed.estimate)
        return [(gain, half_bar(gain)) for gain in gains]


def half_bar(gain: Estimate) -> float:
    """Half the length of an error bar; none where the error is not known."""
    half = gain.high - gain.mean
    return half if math.isfinite(half) else 0.0


def _with_margin(low: float, high: float) -> list[float]:
    margin = 0.05 * ((high - low) or 1.0)
    return [low - margin, high + margin]


def _round_up(size: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below a positive size."""
    decade = 10.0 ** math.floor(math.log10(size))
    return next(m * decade for m in (1, 2, 5, 10) if m * decade >= size * (1 - 1e-9))
