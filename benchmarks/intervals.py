"""Which 95 % interval of a gain holds the truth most nearly 95 times in 100: Student's t, or a bootstrap?

    python benchmarks/intervals.py

Draws n prompts with replacement from the recorded table of the demo pair's real answers, so that the truth is the
gain over all its prompts, and asks each kind of interval whether it holds it: t (`statistics.gain`, which
expo-search reports), the percentile bootstrap, and the bootstrap-t, whose resamples carry a standard error of their
own. For every objective; over the alphas of the table at which answers have not collapsed.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from recorded import Recorded

from expo_search.contracts import Rated
from expo_search.stats.paired import Kind, gain

SIZES = (16, 48, 192)
ALPHAS = (-0.5, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
WAYS = ("t", "percentile", "bootstrap-t")
Values = NDArray[np.float64]


def point_and_error(differences: Values, lengths: Values, kind: Kind) -> tuple[Values, Values]:
    """Gain and standard error of each row; as `statistics` defines them, but many samples at a time, the error of an
    intercept by its residuals."""
    n = differences.shape[-1]
    if kind == "win-rate":
        differences = np.sign(differences) / 2
    if kind != "length-controlled":
        return differences.mean(-1), differences.std(-1, ddof=1) / np.sqrt(n)
    x, y = lengths - lengths.mean(-1, keepdims=True), differences - differences.mean(-1, keepdims=True)
    spread = (x**2).sum(-1)
    slope = (x * y).sum(-1) / np.where(spread > 0, spread, 1)
    middle = lengths.mean(-1)
    residual = ((y - slope[..., None] * x) ** 2).sum(-1) / max(1, n - 2)
    error = np.sqrt(residual * (1 / n + middle**2 / np.where(spread > 0, spread, np.inf)))
    return differences.mean(-1) - slope * middle, error


def intervals(
    differences: Values, lengths: Values, kind: Kind, draws: int, rng: np.random.Generator
) -> dict[str, Values]:
    """The two bootstraps' intervals of one sample."""
    picked = rng.integers(0, len(differences), (draws, len(differences)))
    point, error = point_and_error(differences, lengths, kind)
    points, errors = point_and_error(differences[picked], lengths[picked], kind)
    pivots = (points - point) / np.where(errors > 0, errors, np.inf)
    upper, lower = np.quantile(pivots, (0.975, 0.025))
    return {
        "percentile": np.quantile(points, (0.025, 0.975)),
        "bootstrap-t": np.array([point - upper * error, point - lower * error]),
    }


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500, help="for each alpha, size and objective")
    parser.add_argument("--draws", type=int, default=1000, help="of a bootstrap")
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "demo_table.csv")
    o = parser.parse_args()
    rows = Recorded(o.table, 0, 10**6)._rows
    control, rng = rows[0.0], np.random.default_rng(0)
    print(f"Coverage of 95 % intervals, {len(ALPHAS)} alphas x {o.samples} samples of {o.table.name}")
    print(f"  {'objective':18}{'prompts':>8}" + "".join(f"{way:>18}" for way in WAYS))
    for kind in get_args(Kind):
        for n in SIZES:
            held: Counter[str] = Counter()
            for alpha in ALPHAS:
                pairs = [(rows[alpha][i], control[i]) for i in sorted(control)]
                differences = np.array([float(a["reward"]) - float(c["reward"]) for a, c in pairs])
                lengths = np.array([float(a["n_tokens"]) - float(c["n_tokens"]) for a, c in pairs])
                truth = float(point_and_error(differences, lengths, kind)[0])
                for _ in range(o.samples):
                    i = rng.integers(0, len(pairs), n)
                    ours = gain(
                        {k: Rated(float(differences[j]), int(lengths[j])) for k, j in enumerate(i)},
                        dict.fromkeys(range(n), Rated(0.0, 0)),
                        kind,
                    )
                    held["t"] += ours.low <= truth <= ours.high
                    for way, (low, high) in intervals(differences[i], lengths[i], kind, o.draws, rng).items():
                        held[way] += bool(low <= truth <= high)
            of = len(ALPHAS) * o.samples
            shares = [held[way] / of for way in WAYS]
            cells = [f"{p:.1%} ± {np.sqrt(p * (1 - p) / of):.1%}" for p in shares]
            print(f"  {kind:18}{n:8}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
