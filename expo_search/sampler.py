"""past trials -> next alpha: Optuna's samplers, and the points a study starts with."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from expo_search.study import SearchSpec

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

N_START = 5


def make_sampler(search: SearchSpec, trial: int) -> BaseSampler:
    """The sampler for one trial. Its seed depends on the trial's number, not on how often the search was resumed.

    A Gaussian process by default: with enqueued start points the best of Optuna's samplers on smooth curves. Its
    objective is not declared deterministic: fixed seeds make a run repeatable, not the curve smooth.
    """
    import optuna

    seed = (search.seed + 7919 * trial) % 2**31
    if search.sampler in ("random", "grid"):  # a grid is enqueued whole (`start_points`); beyond it, at random
        return optuna.samplers.RandomSampler(seed=seed)
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_START, deterministic_objective=False)


def start_points(search: SearchSpec, published_alpha: float | None, n_trials: int) -> list[float]:
    """The alphas a study begins with: 0, the published one, then points that halve down from the upper end.

    Published optima span 0.1 to 25, so the points are spread on a logarithmic scale. A grid is all of its points.
    """
    low, high = search.alpha_min, search.alpha_max
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
