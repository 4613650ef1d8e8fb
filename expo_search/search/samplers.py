"""The sampler of one trial: this package's own, or one of Optuna's."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.samplers import BaseSampler, RandomSampler

from expo_search.config.spec import SearchSpec
from expo_search.search.alpha_range import N_START
from expo_search.search.expo_sampler import ExpoSampler

if TYPE_CHECKING:
    pass


def make_sampler(
    search: SearchSpec, trial: int, start: float | None = None, thorough: float | None = None
) -> BaseSampler:
    """The sampler for one trial. Its seed depends on the trial's number, not on how often the search was resumed.

    Optuna's Gaussian process is not told that the objective is deterministic: fixed seeds make a run repeatable, not
    the curve smooth.
    """
    seed = (search.seed + 7919 * trial) % 2**31
    if search.sampler == "expo":
        return ExpoSampler(start=start, seed=seed, thorough=thorough)
    if search.sampler in ("random", "grid"):  # a grid is enqueued whole (`start_points`); beyond it, at random
        return RandomSampler(seed=seed)
    if search.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=N_START)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=N_START, deterministic_objective=False)
