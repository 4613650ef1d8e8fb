"""Where alpha is looked for: the range, the first step, the points that a study begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from expo_search.config.spec import SearchSpec

ALPHA = "alpha"  # the parameter's name in a study
N_START = 5
WIDEST = (-1.0, 64.0)  # alpha = -1 is the sft model; published optima reach 25
_DELTA_TIMES_ALPHA = 1e-3  # of the weights' norm: the first step when nothing is published


def bounds(search: SearchSpec, published_alpha: float | None) -> tuple[float, float]:
    """The range (low, high) as numbers.

    "auto" is the widest there is for `expo`, which narrows it itself, else 0 .. twice the published alpha, at least 1.
    """
    wide = search.sampler == "expo"
    given_low = None if isinstance(search.alpha_min, str) else search.alpha_min
    given_high = None if isinstance(search.alpha_max, str) else search.alpha_max
    if given_high is None:
        low = given_low if given_low is not None else WIDEST[0] if wide else 0.0
        return low, max(WIDEST[1] if wide else 1.0, 2 * (published_alpha or 0.0), 2 * low)
    if given_low is None:
        given_low = min(WIDEST[0] if wide else 0.0, given_high - 1.0)
    return given_low, given_high


def first_step(search: SearchSpec, published_alpha: float | None, relative_delta: float | None) -> float:
    """The first alpha above 0 to try.

    It is the published one; in a range that was given a quarter of it; else one that moves the weights by a thousandth
    of their norm, `relative_delta` being ||aligned - sft|| / ||aligned||.
    """
    low, high = bounds(search, published_alpha)
    if published_alpha is not None and max(low, 0) < published_alpha <= high:
        return published_alpha
    if search.alpha_max != "auto":
        return max(low, 0.0) + (high - max(low, 0.0)) / 4
    if not relative_delta:
        return 0.25
    # two digits: the norm's last bits differ between machines, and a resumed study must propose the same
    return float(f"{min(max(_DELTA_TIMES_ALPHA / relative_delta, 0.05), 4.0):.2g}")


def start_points(search: SearchSpec, published_alpha: float | None, n_trials: int) -> list[float]:
    """The alphas a study begins with: 0, the published one, then points that halve down from the upper end.

    Published optima span 0.1 to 25, so the points are spread on a logarithmic scale. A grid is all of its points.
    `expo` finds its own after 0.
    """
    low, high = bounds(search, published_alpha)
    if search.sampler == "expo":
        return [0.0]
    if search.sampler == "grid":
        taken = 1 + (published_alpha is not None and low <= published_alpha <= high) - (low == 0)
        n = max(1, n_trials - taken)
        wanted = [low + (high - low) * i / max(1, n - 1) for i in range(n)]
    elif search.sampler == "random":
        wanted = []
    else:
        wanted = [high / 4, high / 2, high / 8, high]
    if published_alpha is not None:
        wanted = [published_alpha, *wanted]
    points = [0.0]
    for alpha in wanted:
        if low <= alpha <= high and all(abs(alpha - p) > 1e-9 for p in points):
            points.append(alpha)
    return points if search.sampler == "grid" else points[:N_START]


def next_point(search: SearchSpec, points: Sequence[float], asked: Sequence[float]) -> float | None:
    """The next of the points that a study begins with which is not among the alphas asked already, if there is one.

    In their order. Of a grid in which others than its points were asked, as it was made for fewer trials before, the
    one farthest from all of these: not all of its points have a trial, and in their order the upper part had none.
    """

    def is_among(alpha: float, others: Sequence[float]) -> bool:
        return any(math.isclose(alpha, other, rel_tol=1e-5) for other in others)

    left = [p for p in points if not is_among(p, asked)]
    if search.sampler == "grid" and not all(is_among(a, points) for a in asked):
        return max(left, key=lambda p: min(abs(p - a) for a in asked), default=None)
    return next(iter(left), None)
