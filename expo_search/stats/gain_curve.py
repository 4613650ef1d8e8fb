"""Finished trials -> the curve of the gain over alpha, with how sure it is: what the sampler and the report share.

A Gaussian process on a warped alpha axis. Its observations are paired gains, which share prompts: their errors go in
with the covariance that was measured over the prompts, so two alphas compared on the same prompts are told apart
better than their own intervals say. The gain at alpha = 0 is exactly 0. Kernel parameters are averaged over, not
optimised: with a handful of trials their likelihood is flat, and one maximum of it too sure of itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from expo_search.stats.paired import Estimate

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

N_GRID = 96
_LENGTHS = np.array([0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8])  # on the warped axis, on which a doubling is at most 0.69
_LENGTH_PRIOR = (1.3, 0.6)  # of the logarithm of a length: exp(mean), standard deviation
_AMPLITUDES = np.array([0.5, 1.0, 2.0, 4.0])  # in units of the observed gains' size
_LEAST_WEIGHT = 0.01
_SHARED = 0.97  # measured covariances are shrunk a little towards independence
_JITTER = 1e-8


class Finished(Protocol):
    """What the fit needs of a trial (an `evaluation.result.Evaluation` has it)."""

    @property
    def trial(self) -> int:
        """Its number, by which `covariances` names it; a repetition has that of the trial it repeats."""

    @property
    def alpha(self) -> float:
        """0 is the control."""

    @property
    def gain(self) -> Estimate:
        """Over alpha = 0, paired by prompt."""

    @property
    def outcome(self) -> str:
        """Why it ended: "complete", "enough", "hopeless" or "degenerate"."""

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the guardrails that it breaks."""

    @property
    def covariances(self) -> Mapping[str, float]:
        """Of its gain's error with other trials', by their number as text, in the gain's unit squared."""


@dataclass(frozen=True)
class Member:
    """The posterior under one pair of kernel parameters: weight, mean (G,), covariance (G, G)."""

    weight: float
    mean: Array
    covariance: Array


@dataclass(frozen=True)
class Fit:
    """The curve on G alphas, among them every evaluated one.

    Attributes:
        alphas: (G,), ascending. `warped`: (G,), the same on the axis of the fit.
        mean, sd: (G,), of the gain.
        members: the posteriors that `mean` and `sd` average.
    """

    alphas: Array
    warped: Array
    mean: Array
    sd: Array
    members: tuple[Member, ...]

    def at(self, alpha: float) -> int:
        """The index of an alpha of the grid."""
        return int(np.abs(self.alphas - alpha).argmin())

    def expected_best(self) -> float:
        """The expected gain at the true best alpha, were it known (by simulation with a fixed seed)."""
        draws = np.random.default_rng(0).standard_normal((128, len(self.alphas)))
        total = 0.0
        for m in self.members:
            values, vectors = np.linalg.eigh(m.covariance)
            root = vectors * np.sqrt(np.clip(values, 0, None))
            total += m.weight * float((m.mean + draws @ root.T).max(axis=1).mean())
        return total

    def worth(self, candidates: Indices, known: Indices, noise: float) -> Array:
        """What evaluating each candidate is expected to add to the gain of the best evaluated alpha.

        The knowledge gradient over the evaluated alphas and the candidate itself (Frazier 2009): noise-aware, and 0
        where nothing can be learnt that changes the choice.

        Args:
            candidates, known: indices into the grid.
            noise: variance of the error of one more trial.
        """
        nodes, weights = _NODES
        total = np.zeros(len(candidates))
        for m in self.members:
            variance = np.diag(m.covariance)[candidates]
            step = m.covariance[:, candidates] / np.sqrt(variance + noise)  # (G, C): change of the mean by one sd
            known_now = m.mean[known]
            later = known_now[:, None, None] + step[known][:, :, None] * nodes  # (K, C, Z)
            own = m.mean[candidates][:, None] + step[candidates, np.arange(len(candidates))][:, None] * nodes
            best = np.maximum(later.max(axis=0), own)  # (C, Z)
            total += m.weight * (best @ weights - known_now.max())
        return total


def _normal_nodes(n: int = 24) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


_NODES = _normal_nodes()


def collapsed(trial: Finished, trials: Sequence[Finished]) -> bool:
    """Whether a trial's model broke down: degenerate answers, or a gain too far below 0 to inform the fit."""
    best = max(0.0, max(t.gain.mean - t.gain.se for t in trials))
    return trial.outcome == "degenerate" or trial.gain.mean + 2 * trial.gain.se < -2 * max(best, trial.gain.se)


def fit(trials: Sequence[Finished], low: float, high: float) -> Fit:
    """Fit the curve between two alphas, to trials other than the control.

    Collapsed trials would bend the curve far away from them. On each side the nearest one beyond the others stands in
    it as "about as far below 0 as the best is above", with an error as large; the rest are left out.
    """
    good = [t for t in trials if t.alpha != 0 and not collapsed(t, trials)]
    scale = max((abs(t.alpha) for t in good), default=max(abs(low), abs(high))) / 4
    gains = [t.gain.mean for t in good]
    noise = noise_covariance(good)
    size = _size(good, trials)
    drop = max(size, max(gains, default=0.0))
    alphas = [t.alpha for t in good]
    for fallen in _fallen(trials):
        alphas, gains = [*alphas, fallen], [*gains, -drop]
        noise = np.pad(noise, (0, 1))
        noise[-1, -1] = drop**2
    x = _warp(np.array([0.0, *alphas]), scale)
    y = np.array([0.0, *gains])
    noise = np.pad(noise, (1, 0))
    grid = _warp(np.array([low, high]), scale)
    points = np.concatenate([np.linspace(grid[0], grid[1], N_GRID), _warp(np.array([t.alpha for t in trials]), scale)])
    u = np.unique(np.round(np.concatenate([points[(points >= grid[0]) & (points <= grid[1])], [0.0]]), 12))
    members = _members(x, y, noise, u, size)
    mean = np.sum([m.weight * m.mean for m in members], axis=0)
    square = np.sum([m.weight * (np.diag(m.covariance) + m.mean**2) for m in members], axis=0)
    return Fit(_unwarp(u, scale), u, mean, np.sqrt(np.clip(square - mean**2, 0, None)), members)


def _size(good: Sequence[Finished], trials: Sequence[Finished]) -> float:
    """The gains' typical size, no smaller than their error; of collapsed trials only the error tells anything."""
    if good:
        square = max(np.mean([t.gain.mean**2 for t in good]), np.median(np.diag(noise_covariance(good))))
        return math.sqrt(square) or 1.0
    return max((t.gain.se for t in trials), default=0.0) or 1.0


def _fallen(trials: Sequence[Finished]) -> list[float]:
    """The collapsed alpha nearest to 0 beyond the good ones, above and below."""
    good = [0.0, *(t.alpha for t in trials if not collapsed(t, trials))]
    alphas = [t.alpha for t in trials if collapsed(t, trials)]
    above, below = [a for a in alphas if a > max(good)], [a for a in alphas if a < min(good)]
    return [*([min(above)] if above else []), *([max(below)] if below else [])]


def _members(x: Array, y: Array, noise: Array, u: Array, size: float) -> tuple[Member, ...]:
    from scipy.linalg import solve_triangular  # a fifth of a second, which commands that fit nothing need not wait

    posteriors, logs = [], []
    to_x, to_u, across = (np.square(a[:, None] - b[None, :]) for a, b in ((x, x), (u, u), (u, x)))
    for length in _LENGTHS:
        k_xx, k_uu, k_ux = (np.exp(-0.5 * d / length**2) for d in (to_x, to_u, across))
        for amplitude in _AMPLITUDES * size:
            v = amplitude**2
            a = v * k_xx + noise + _JITTER * v * np.eye(len(x))
            root = np.linalg.cholesky(a)
            z = solve_triangular(root, y, lower=True)
            w = solve_triangular(root, v * k_ux.T, lower=True)
            likelihood = -0.5 * float(z @ z) - float(np.log(np.diag(root)).sum())
            prior = -0.5 * (math.log(length / _LENGTH_PRIOR[0]) / _LENGTH_PRIOR[1]) ** 2
            posteriors.append((w.T @ z, v * k_uu - w.T @ w))
            logs.append(likelihood + prior)
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    kept = weights >= _LEAST_WEIGHT
    weights = np.where(kept, weights, 0) / weights[kept].sum()
    rows = zip(weights, posteriors, kept, strict=True)
    return tuple(Member(float(w), m, c) for w, (m, c), k in rows if k)


def noise_covariance(trials: Sequence[Finished]) -> Array:
    """Covariance of the errors of the trials' gains, (T, T); positive semidefinite."""
    n = len(trials)
    if n == 0:
        return np.zeros((0, 0))
    index = {str(t.trial): i for i, t in enumerate(trials)}
    c = np.zeros((n, n))
    for i, t in enumerate(trials):
        # a standard error from few prompts is itself uncertain: the variance of Student's t
        c[i, i] = t.gain.se**2 * max(1.0, (t.gain.n - 1) / max(1, t.gain.n - 3))
        for other, value in t.covariances.items():
            if other in index:
                c[i, index[other]] = c[index[other], i] = _SHARED * value
    values, vectors = np.linalg.eigh(c)
    floor = 1e-6 * max(float(values.max()), 0.0)
    return np.asarray((vectors * np.clip(values, floor, None)) @ vectors.T)


def _warp(alpha: Array, scale: float) -> Array:
    """Linear below `scale`, logarithmic above: published optima span 0.1 to 25, and widths go with the place."""
    return np.asarray(np.sign(alpha) * np.log1p(np.abs(alpha) / scale))


def _unwarp(u: Array, scale: float) -> Array:
    return np.asarray(np.sign(u) * np.expm1(np.abs(u)) * scale)
