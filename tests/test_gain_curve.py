"""The curve through the gains: through 0 at alpha = 0, near the truth where trials are, not bent by a collapse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from fakes import make_evaluation
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from expo_search.evaluation.result import Evaluation, Outcome
from expo_search.stats import gain_curve
from expo_search.stats.gain_curve import Fit, collapsed, fit, noise_covariance

CONTROL = make_evaluation(0, 0.0, 0.0, 0.0)
ALPHAS = [0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0]


def hill(alpha: float) -> float:
    """Highest, 0.3, at 0.4; 0 at 0 and at 0.96."""
    return float(0.3 * (1 - (np.log1p(alpha / 0.4) / np.log(2) - 1) ** 2))


def trial(
    number: int,
    alpha: float,
    gain: float,
    se: float = 0.02,
    outcome: Outcome = "complete",
    covariances: Mapping[str, float] | None = None,
) -> Evaluation:
    return replace(make_evaluation(number, alpha, gain, se), outcome=outcome, covariances=covariances or {})


def trials(
    alphas: Sequence[float] = ALPHAS,
    *,
    truth: Callable[[float], float] = hill,
    se: float = 0.02,
    seed: int | None = None,
) -> list[Evaluation]:
    """A control and a trial an alpha; with a seed each has an error of its own."""
    rng = np.random.default_rng(seed)
    errors = np.zeros(len(alphas)) if seed is None else se * rng.standard_normal(len(alphas))
    return [CONTROL, *(trial(i, a, truth(a) + e, se) for i, (a, e) in enumerate(zip(alphas, errors, strict=True), 1))]


def test_the_gain_at_alpha_0_is_0_without_doubt() -> None:
    found = fit(trials(), 0.0, 1.0)
    at_0 = found.at(0.0)
    assert found.alphas[at_0] == 0.0
    # the kernel matrix is regularised by 1e-8 of its size
    assert abs(found.mean[at_0]) < 1e-4
    assert found.sd[at_0] < 1e-3


def test_the_curve_lies_near_a_smooth_truth_and_says_how_near() -> None:
    within, off = [], []
    for seed in range(20):
        found = fit(trials(seed=seed), 0.0, 1.0)
        truth = np.array([hill(a) for a in found.alphas])
        off.append(np.sqrt(np.mean((found.mean - truth) ** 2)))
        within.append(np.mean(np.abs(found.mean - truth) <= 1.96 * found.sd + 1e-4))
    assert np.mean(off) < 0.02, "no worse than a single trial"
    # pointwise 95 % bands of 20 fits, whose points are correlated within a fit
    assert 0.85 < np.mean(within) <= 1.0


def test_more_trials_and_smaller_errors_narrow_the_band() -> None:
    few = fit(trials(ALPHAS[::3]), 0.0, 1.0)
    many = fit(trials(), 0.0, 1.0)
    precise = fit(trials(se=0.002), 0.0, 1.0)
    assert precise.sd.mean() < many.sd.mean() < few.sd.mean()


@pytest.mark.parametrize("alphas", [ALPHAS, [25.0, 0.1, 3.0], [-0.5, -0.05, 0.25, 1.0], [1 / 3]])
def test_the_grid_ascends_over_the_range_and_holds_every_evaluated_alpha(alphas: list[float]) -> None:
    low, high = min(0.0, *alphas), max(alphas)
    found = fit([CONTROL, *(trial(i, a, 0.1) for i, a in enumerate(alphas, 1))], low, high)
    assert (np.diff(found.alphas) > 0).all()
    assert (found.alphas[0], found.alphas[-1]) == pytest.approx((low, high), rel=1e-9)
    for alpha in [0.0, *alphas]:  # the warped axis is rounded to 12 digits
        assert found.alphas[found.at(alpha)] == pytest.approx(alpha, rel=1e-9, abs=1e-9)


def test_the_axis_is_finer_near_0_as_optima_span_orders_of_magnitude() -> None:
    found = fit(trials([0.1, 25.0], truth=lambda _: 0.1), 0.0, 25.0)
    steps = np.diff(found.alphas)
    assert steps[-2] > 3 * steps[0]
    assert np.diff(found.warped) == pytest.approx(found.warped[-1] / 95, rel=0.01, abs=found.warped[-1] / 90)


@pytest.mark.parametrize(("fallen", "outcome"), [(2.0, "degenerate"), (2.0, "complete"), (-1.0, "complete")])
def test_a_collapsed_trial_leaves_the_good_side_as_it_was(fallen: float, outcome: Outcome) -> None:
    good = trials(seed=1)
    before = fit(good, 0.0, 1.0)
    after = fit([*good, trial(9, fallen, -5.0, 0.02, outcome)], 0.0, 1.0)
    moved = np.abs(np.interp(before.alphas, after.alphas, after.mean) - before.mean)
    assert moved.max() < 0.01, "half a standard error of one trial"
    as_data = fit([*good, trial(9, fallen, -0.25, 0.02)], 0.0, 1.0)  # no collapse: this one counts
    assert np.abs(np.interp(before.alphas, as_data.alphas, as_data.mean) - before.mean).max() > moved.max()


@pytest.mark.parametrize("fallen", [2.0, -2.0])
def test_a_collapse_beyond_the_good_trials_holds_the_curve_back(fallen: float) -> None:
    rising = [CONTROL, *(trial(i, math.copysign(a, fallen), 0.3 * a) for i, a in enumerate((0.2, 0.4, 0.6), 1))]
    low, high = sorted((0.0, fallen))
    free = fit(rising, low, high)
    bounded = fit([*rising, trial(9, fallen, -5.0, outcome="degenerate")], low, high)
    assert bounded.mean[bounded.at(fallen)] < 0.5 * free.mean[free.at(fallen)]


@pytest.mark.parametrize(
    "known",
    [
        [],
        [CONTROL],
        [CONTROL, trial(1, 0.5, -5.0)],
        [CONTROL, trial(1, 0.5, -5.0), trial(2, -0.5, -5.0, outcome="degenerate")],
        [CONTROL, trial(1, 0.5, 0.0, 0.0), trial(2, 1.0, 0.0, 0.0)],
        [CONTROL, trial(1, 0.5, 0.3, 0.0), trial(2, 0.5, 0.3, 0.0)],
    ],
    ids=["no trial", "control alone", "one collapsed", "all collapsed", "no error, no gain", "one alpha twice"],
)
def test_a_history_that_says_little_still_gives_a_curve(known: list[Evaluation]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(known, -1.0, 1.0)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.sd).all()
    assert sum(m.weight for m in found.members) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("e", "is_collapsed"),
    [
        (trial(2, 2.0, 0.0, outcome="degenerate"), True),
        (trial(2, 2.0, -5.0), True),
        (trial(2, 2.0, -5.0, outcome="hopeless"), True),
        (trial(2, 2.0, -0.1), False),
        (trial(2, 2.0, -0.1, outcome="hopeless"), False),
        (trial(2, 2.0, -5.0, 4.0), False),  # it may be chance
        (trial(2, 2.0, 0.2), False),
        (CONTROL, False),
    ],
)
def test_a_collapse_is_far_below_alpha_0_or_degenerate(e: Evaluation, is_collapsed: bool) -> None:
    assert collapsed(e, [CONTROL, trial(1, 1.0, 0.3), e]) == is_collapsed


def test_errors_have_the_covariance_that_was_measured_over_the_prompts() -> None:
    found = noise_covariance([trial(1, 0.2, 0.1, 0.03), trial(2, 0.4, 0.1, 0.02, covariances={"1": 4e-4, "7": 1.0})])
    # variances with the 99 / 97 of Student's t; covariances shrunk by 3 % towards independence
    assert found == pytest.approx(np.array([[9e-4 * 99 / 97, 0.97 * 4e-4], [0.97 * 4e-4, 4e-4 * 99 / 97]]), rel=1e-6)


def test_covariances_that_cannot_be_are_made_possible() -> None:
    contradiction = {"1": 4e-4, "2": -4e-4}
    known = [
        trial(1, 0.2, 0.1),
        trial(2, 0.4, 0.1, covariances={"1": 4e-4}),
        trial(3, 0.6, 0.1, covariances=contradiction),
        trial(4, 0.8, 0.1, 0.0),
    ]
    assert np.linalg.eigvalsh(noise_covariance(known)).min() > 0
    assert np.isfinite(fit([CONTROL, *known], 0.0, 1.0).mean).all()
    assert noise_covariance([]).shape == (0, 0)


def doubt(found: Fit, a: float, b: float) -> float:
    """Standard deviation of the difference of the gains at two alphas."""
    i, j = found.at(a), found.at(b)
    variances = [m.covariance[i, i] + m.covariance[j, j] - 2 * m.covariance[i, j] for m in found.members]
    means = [m.mean[i] - m.mean[j] for m in found.members]
    weights = [m.weight for m in found.members]
    square = sum(w * (v + d * d) for w, v, d in zip(weights, variances, means, strict=True))
    return math.sqrt(square - sum(w * d for w, d in zip(weights, means, strict=True)) ** 2)


def test_alphas_measured_on_the_same_prompts_are_told_apart_better_than_their_own_errors_say() -> None:
    apart = [CONTROL, trial(1, 0.2, 0.3, 0.1), trial(2, 1.0, 0.1, 0.1)]
    paired = [*apart[:2], trial(2, 1.0, 0.1, 0.1, covariances={"1": 0.0095})]
    assert doubt(fit(paired, 0.0, 1.0), 0.2, 1.0) < 0.6 * doubt(fit(apart, 0.0, 1.0), 0.2, 1.0)


def test_another_trial_is_worth_something_only_where_something_may_be_learnt() -> None:
    found = fit(trials(ALPHAS[::2]), 0.0, 1.0)
    candidates = np.arange(len(found.alphas))
    known = np.array([found.at(a) for a in ALPHAS[::2]])
    worth = found.worth(candidates, known, noise=0.02**2)
    assert worth.min() > -1e-9
    assert worth[found.at(0.0)] < 1e-3 * worth.max()
    assert 0.1 < found.alphas[worth.argmax()] < 0.8, "where the curve is high"
    assert (found.worth(candidates, known, noise=1.0) < worth.max()).all(), "noise makes a trial worth less"


def test_the_true_best_is_expected_above_the_best_known_by_less_the_more_is_known() -> None:
    few, many = (fit(trials(a, se=0.005), 0.0, 1.0) for a in (ALPHAS[::3], ALPHAS))
    assert few.expected_best() > few.mean.max()
    assert many.expected_best() - many.mean.max() < few.expected_best() - few.mean.max()
    assert many.expected_best() == pytest.approx(0.3, abs=0.02)


def test_each_member_is_the_gaussian_process_of_scikit_learn_and_weighs_as_likely_as_that_is() -> None:
    """Errors that are independent, which is all that scikit-learn knows: a variance a trial."""
    errors = np.array([0.01, 0.04, 0.02, 0.03, 0.02, 0.05, 0.01])
    known = [CONTROL, *(trial(i, a, hill(a), se) for i, (a, se) in enumerate(zip(ALPHAS, errors, strict=True), 1))]
    found = fit(known, 0.0, 1.0)

    n = np.array([t.gain.n for t in known[1:]])
    variances = errors**2 * (n - 1) / (n - 3)  # of Student's t
    gains = np.array([hill(a) for a in ALPHAS])
    size = math.sqrt(max(np.mean(gains**2), np.median(variances)))
    x = np.log1p(np.array([0.0, *ALPHAS]) / (max(ALPHAS) / 4))
    center, width = gain_curve._LENGTH_PRIOR
    posteriors, logs = [], []
    for length in gain_curve._LENGTHS:
        for amplitude in gain_curve._AMPLITUDES * size:
            kernel = ConstantKernel(amplitude**2, "fixed") * RBF(length, "fixed")
            jitter = gain_curve._JITTER * amplitude**2 + 1e-12
            process = GaussianProcessRegressor(kernel, alpha=np.array([0.0, *variances]) + jitter, optimizer=None)
            process.fit(x[:, None], np.array([0.0, *gains]))
            posteriors.append(process.predict(found.warped[:, None], return_cov=True))
            logs.append(process.log_marginal_likelihood_value_ - 0.5 * (math.log(length / center) / width) ** 2)
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    kept = np.flatnonzero(weights >= gain_curve._LEAST_WEIGHT)

    assert len(found.members) == len(kept) > 1
    for member, i in zip(found.members, kept, strict=True):
        # the matrix is conditioned like 1 / jitter, 1e8: eight of sixteen digits are left
        assert member.weight == pytest.approx(weights[i] / weights[kept].sum(), rel=1e-6)
        assert member.mean == pytest.approx(posteriors[i][0], abs=1e-6)
        assert member.covariance == pytest.approx(posteriors[i][1], abs=1e-6)
