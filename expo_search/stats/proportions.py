"""Right and wrong answers of two alphas to the same items -> difference, interval, test; correction for several tests.

Letters: of n items `gained` were answered right only by the first, `lost` only by the second. Items that both answered
right, or both wrong, tell nothing about the difference but how rare one is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of McNemar's exact test: of the items that differ, each half would go either way by chance.

    The binomial test of `gained` out of `gained + lost` at 1/2 (McNemar 1947; exact: Mosteller 1952); 1 where no item
    differs.
    """
    from scipy.stats import binomtest

    n = gained + lost
    return float(binomtest(gained, n, 0.5).pvalue) if n else 1.0


def paired_interval(gained: int, lost: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference (gained - lost) / n of two paired shares, -1 .. 1.

    Tango's score interval (Statistics in Medicine 17, 1998, 891-908): all differences that the score test does not
    reject, with the nuisance share at its maximum-likelihood value under each. It holds its level also with few items
    and with rare differences, where Wald's interval is far too narrow, and does not collapse where no item differs
    (Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014, 2850-2875, recommend it for every n).

    Raises:
        ValueError: no items, or more that differ than there are.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if n < 1 or min(gained, lost) < 0 or gained + lost > n:
        raise ValueError(f"{gained} gained and {lost} lost of {n} items")
    z = float(norm.ppf(0.5 + level / 2))

    def root(sign: int) -> float:
        """Where the score statistic, which falls as the difference rises, is sign * z."""
        inner = 1 - 1e-12
        ends = [_score(d, gained, lost, n) - sign * z for d in (-inner, inner)]
        if ends[0] <= 0 or ends[1] >= 0:
            return -1.0 if ends[0] <= 0 else 1.0
        return float(brentq(lambda d: _score(d, gained, lost, n) - sign * z, -inner, inner, xtol=1e-12))

    return root(1), root(-1)


def _score(d: float, gained: int, lost: int, n: int) -> float:
    """Tango's statistic, equation (8): how many standard errors the data lie above the difference d."""
    b = -gained - lost + (2 * n - gained + lost) * d
    c = -lost * d * (1 - d)
    share_lost = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)  # maximum likelihood, given d
    variance = n * (2 * share_lost + d * (1 - d))
    above = gained - lost - n * d
    return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above) if above else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, corrected so that any false alarm among them has the level at most, in their order.

    Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979, 65-70); it asks nothing of their dependence.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = least
    return corrected
