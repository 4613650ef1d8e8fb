"""How a trial's time falls with the number of engines: real Ray and the real objective, engines that only sleep.

    python benchmarks/engines.py

Each engine is a Ray actor of known step times (`sleeping.py`): at most 256 sequences, a full step 13.1 ms. Answers have
long-tailed lengths: log-normal with the median and the spread of UltraFeedback's chosen answers, cut at `--max-tokens`,
one in a hundred that runs to it. A trial is generated, rated (by a reward model beside each engine) and stored.

Two trials each: alpha = 0, of whose answers nothing is known before, and another alpha, where the search hands over
those prompts early whose answers at alpha = 0 were long. The logarithms of the two lengths are correlated by
`--agreement` (those of the demo's recorded answers by 0.6 to 0.85, up to alpha 2), and of the answers that run to the
limit half do so at both.

Printed beside: the speed-up over one engine, its share of the number of engines, and the two bounds that no way of
spreading prompts can beat: all tokens at a full batch over the engines, and the longest answer alone. Where the longest
answer is the larger one more engines gain nothing; what is left of the trial's time above the larger bound is what
batches that empty towards the end, the pool and the store cost. Where one engine is not among `--engines`, its time is
taken to be that of its tokens at a full batch, which is less than it would be.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import ray
import sleeping
from barriers import MEDIAN, SPREAD, Silent
from sleeping import SleepingRecipe, Times

from expo_search.contracts import Prompt
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import CONTROL
from expo_search.pool.cluster import Cluster, Place
from expo_search.pool.pool import Pool
from expo_search.store.study_store import Store

ENDLESS = 0.01  # share of the answers that run to the limit
ALPHAS = (0.0, 0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="1,2,4,8,16,32,64")
    parser.add_argument("--prompts", default="1000,4000")
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument(
        "--agreement", type=float, default=0.7, help="of lengths at two alphas; the demo's: 0.6 to 0.85"
    )
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--sequence-ms", type=float, default=0.02)
    options = parser.parse_args()
    times = Times(step_s=options.step_ms / 1e3, sequence_s=options.sequence_ms / 1e3)
    ray.cloudpickle.register_pickle_by_value(sleeping)
    head = f"{'prompts':>7} {'alpha':>5} {'engines':>7} {'s':>7} {'speed-up':>8} {'of N':>5}"
    print(f"{head} {'full batch s':>12} {'longest s':>9} {'x the larger bound':>18}", flush=True)
    sizes = [int(n) for n in options.prompts.split(",")]
    lengths = {n: long_tailed(n, options.max_tokens, options.agreement) for n in sizes}
    by_id = [{f"{n}-{i}": length for n in sizes for i, length in enumerate(lengths[n][which])} for which in (0, 1)]
    alone = {(n, which): times.of_tokens(sum(lengths[n][which])) for n in sizes for which in (0, 1)}
    with closing(Cluster()) as cluster:
        for n_engines in map(int, options.engines.split(",")):
            with closing(Pool(cluster, SleepingRecipe(times, *by_id), Place(), n_engines)) as pool:
                for n in sizes:
                    for which, seconds in enumerate(measure(pool, n)):
                        if n_engines == 1:
                            alone[n, which] = seconds
                        of = lengths[n][which]
                        full, longest = times.of_tokens(sum(of)) / n_engines, max(of) * times.step(1)
                        gained = alone[n, which] / seconds
                        print(
                            f"{n:7} {ALPHAS[which]:5} {n_engines:7} {seconds:7.2f} {gained:8.2f} "
                            f"{gained / n_engines:5.2f} {full:12.2f} {longest:9.2f} "
                            f"{seconds / max(full, longest):18.2f}",
                            flush=True,
                        )


def measure(pool: Pool, n_prompts: int) -> list[float]:
    """Seconds of a trial at each of the alphas."""
    prompts, seconds = [Prompt(f"{n_prompts}-{i}", "") for i in range(n_prompts)], []
    with tempfile.TemporaryDirectory() as folder, closing(Store(f"sqlite:///{folder}/engines.db", "s")) as store:
        objective = Objective(pool, pool, store, prompts, Silent())
        for trial, alpha in enumerate(ALPHAS, CONTROL):
            begun = time.perf_counter()
            objective.evaluate(trial, alpha)
            seconds.append(time.perf_counter() - begun)
    return seconds


def long_tailed(n: int, most: int, agreement: float) -> tuple[Sequence[int], Sequence[int]]:
    """At two alphas: log-normal, at most `most`, and some that run to it."""
    rng = np.random.default_rng(1)
    one, other, of_both = rng.standard_normal(n), rng.standard_normal(n), rng.random(n) < ENDLESS / 2
    other = agreement * one + np.sqrt(1 - agreement**2) * other

    def lengths(drawn: np.ndarray) -> Sequence[int]:
        tokens = np.exp(np.log(MEDIAN) + SPREAD * drawn)
        tokens[of_both | (rng.random(n) < ENDLESS / 2)] = most
        return [int(x) for x in np.clip(tokens, 1, most)]

    return lengths(one), lengths(other)


if __name__ == "__main__":
    main()
