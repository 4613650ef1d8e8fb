"""How often a second judge's word is right: simulated prompts, of whose gain the judge sees a known share.

    python benchmarks/second_judge.py

A winner's gain by the search's own reward is a known number of standard deviations of a prompt's gain; by the judge
it is a share of that: 1 where the two agree, 0 where the gain is the search's own reward's alone. The two gains on a
prompt are correlated. Only winners that are shown to gain by their own reward count, as only those are recommended.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from expo_search.evaluation.second_judge import Word, agreement
from expo_search.stats.paired import estimate

SIZES, EFFECTS, SHARES = (128, 280, 1000), (0.3, 0.5), (1.0, 0.75, 0.5, 0.25, 0.0, -0.5)
CORRELATION = 0.3
Values = NDArray[np.float64]


def noise(rng: np.random.Generator, n: int, *, heavy: bool) -> Values:
    """Shape (2, n), of variance 1 and correlated: normal, or Student's t with 4 degrees of freedom."""
    draws = rng.standard_t(4, (2, n)) / np.sqrt(2) if heavy else rng.standard_normal((2, n))
    return np.stack([draws[0], CORRELATION * draws[0] + np.sqrt(1 - CORRELATION**2) * draws[1]])


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=2000, help="of each kind")
    o = parser.parse_args()
    words = get_args(Word)
    print(f"{'tails':>7}{'prompts':>8}{'own gain':>9}{'share':>7}" + "".join(f"{word:>23}" for word in words))
    for heavy in (False, True):
        for n in SIZES:
            for effect in EFFECTS:
                for share in SHARES:
                    rng, said = np.random.default_rng(0), Counter[str]()
                    while said.total() < o.worlds:
                        own, judged = noise(rng, n, heavy=heavy) + effect * np.array([[1.0], [share]])
                        gain = estimate(own.tolist())
                        if gain.low > 0:
                            said[agreement(gain, estimate((10 * judged).tolist()))] += 1
                    shares = "".join(f"{said[word] / o.worlds:23.3f}" for word in words)
                    print(f"{'heavy' if heavy else 'normal':>7}{n:8}{effect:9.1f}{share:7.2f}{shares}", flush=True)


if __name__ == "__main__":
    main()
