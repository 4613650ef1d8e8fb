"""How a trial's time falls with the number of engines: real Ray and the real objective, engines that only sleep.

    python benchmarks/engines.py

Each engine is a Ray actor of known step times (`sleeping.py`): at most 256 sequences, a full step 13.1 ms. Answers have
long-tailed lengths: log-normal with the median and the spread of UltraFeedback's chosen answers, cut at `--max-tokens`,
one in a hundred that runs to it. A trial is generated, rated (by a reward model beside each engine) and stored.

Printed beside: the speed-up over one engine, its share of the number of engines, and the two bounds that no way of
spreading prompts can beat: all tokens at a full batch over the engines, and the longest answer alone. Where the longest
answer is the larger one more engines gain nothing; what is left of the trial's time above the larger bound is what
batches that empty towards the end, the pool and the store cost.
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="1,2,4,8,16,32,64")
    parser.add_argument("--prompts", default="1000,4000")
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--sequence-ms", type=float, default=0.02)
    options = parser.parse_args()
    times = Times(step_s=options.step_ms / 1e3, sequence_s=options.sequence_ms / 1e3)
    ray.cloudpickle.register_pickle_by_value(sleeping)
    head = f"{'prompts':>7} {'engines':>7} {'s':>7} {'speed-up':>8} {'of N':>5}"
    print(f"{head} {'full batch s':>12} {'longest s':>9} {'x the larger bound':>18}")
    sizes = [int(n) for n in options.prompts.split(",")]
    alone: dict[int, float] = {}
    with closing(Cluster()) as cluster:
        for n_engines in map(int, options.engines.split(",")):
            lengths = {n: long_tailed(n, options.max_tokens) for n in sizes}
            by_id = {f"{n}-{i}": length for n in sizes for i, length in enumerate(lengths[n])}
            with closing(Pool(cluster, SleepingRecipe(times, by_id), Place(), n_engines)) as pool:
                for n in sizes:
                    seconds = measure(pool, n)
                    alone.setdefault(n, seconds if n_engines == 1 else times.of_tokens(sum(lengths[n])))
                    full = times.of_tokens(sum(lengths[n])) / n_engines
                    longest = max(lengths[n]) * times.step(1)
                    gained = alone[n] / seconds
                    print(
                        f"{n:7} {n_engines:7} {seconds:7.2f} {gained:8.2f} {gained / n_engines:5.2f} "
                        f"{full:12.2f} {longest:9.2f} {seconds / max(full, longest):18.2f}",
                        flush=True,
                    )


def measure(pool: Pool, n_prompts: int) -> float:
    """Seconds of one trial."""
    prompts = [Prompt(f"{n_prompts}-{i}", "") for i in range(n_prompts)]
    with tempfile.TemporaryDirectory() as folder, closing(Store(f"sqlite:///{folder}/engines.db", "s")) as store:
        objective = Objective(pool, pool, store, prompts, Silent())
        begun = time.perf_counter()
        objective.evaluate(CONTROL, 0.0)
        return time.perf_counter() - begun


def long_tailed(n: int, most: int) -> Sequence[int]:
    """Log-normal, at most `most`, and some that run to it."""
    rng = np.random.default_rng(1)
    drawn = np.exp(np.log(MEDIAN) + SPREAD * rng.standard_normal(n))
    drawn[rng.random(n) < ENDLESS] = most
    return [int(x) for x in np.clip(drawn, 1, most)]


if __name__ == "__main__":
    main()
