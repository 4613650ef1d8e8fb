"""How good the search is, on worlds whose truth is known: regret against tokens, gains lost, false claims, coverage.

    python benchmarks/search.py --seeds 200 --jobs 2 --out results.jsonl   # goes on where it stopped; prints the tables

Every search runs through the real loop and statistics; model and scorer stand for worlds (`landscapes.py`,
`recorded.py`), and the store is in memory (`--on-disk`: the real one, ten times slower, with the same results). Ours
gets no range, and is run on `--seeds` worlds of each kind, those that it was tuned on and those held out. Optuna's
samplers run on the former alone, on as many worlds over all of them together, without racing and in a range that holds
the optimum (its upper end 1.2 to 6 times the best alpha). What a search recommends is, for Optuna's, its highest value
(or 0, if that is below 0); for ours what its verdict says.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from landscapes import KINDS, TUNED_ON, World, simulate
from memory_store import MemoryStore
from recorded import Recorded
from search_tables import TABLE, Result, tables

from expo_search.config.spec import SearchSpec
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import Evaluation
from expo_search.results.verdict import verdict
from expo_search.search.budget import Budget
from expo_search.search.confirm import confirm
from expo_search.search.loop import search
from expo_search.store.study_store import Store

STRATEGIES = ("expo", "grid", "random", "tpe", "gp")


class Silent:
    """A watcher that shows nothing."""

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None: ...
    def generated(self, n_tokens: int, n_completions: int) -> None: ...
    def scored(self, n: int) -> None: ...


def one(
    strategy: str,
    kind: str,
    seed: int,
    n_prompts: int | None,
    n_trials: int,
    table: Path,
    *,
    on_disk: bool = False,
    units: float | None = None,
) -> Result:
    """Run one search, and confirm the best alpha that it tried where there are other prompts."""
    world: World | Recorded
    world = Recorded(table, seed, n_prompts or 120) if kind == TABLE else simulate(kind, seed, n_prompts)
    if strategy == "expo":
        spec = SearchSpec(seed=seed)
    else:
        top = world.place * float(np.exp(np.random.default_rng((seed, 2)).uniform(np.log(1.2), np.log(6))))
        spec = SearchSpec(sampler=strategy, alpha_min=0.0, alpha_max=top, racing=False, seed=seed)
    with tempfile.TemporaryDirectory() as home:
        store = Store(f"sqlite:///{home}/search.db", "s") if on_disk else MemoryStore("s")
        budget = None
        if units is not None and isinstance(world, World):
            budget = Budget(tokens=int(units * world.whole_tokens), n_confirm=len(world.prompts) // 2)
        found = search(store, Objective(world, world, store, world.prompts, Silent()), spec, n_trials, budget=budget)
        judged = verdict(found)
        best = judged.best if strategy == "expo" else max(found[1:], key=lambda e: e.gain.mean)
        confirmed = None
        if best is not None and isinstance(world, World) and strategy == "expo":
            fresh = simulate(kind, seed, n_prompts, draw=1)
            objective = Objective(fresh, fresh, store, fresh.prompts, Silent(), part="confirm")
            confirmed = confirm(store, objective, best.trial, best.alpha, fresh.prompts).estimate
        store.close()
    whole = [e for e in found[1:] if e.outcome == "complete" and not e.broken]
    held = sum(e.gain.low <= world.truth(e.alpha) <= e.gain.high for e in whole)
    at = best.alpha if best is not None and best.gain.mean > 0 else 0.0
    followed = at if strategy != "expo" or judged.word == "better" else 0.0
    return Result(
        strategy=strategy,
        kind=kind,
        seed=seed,
        n_trials=len(found),
        tokens=sum(e.n_tokens for e in found),
        whole_tokens=found[0].n_tokens,
        regret=float(world.gain - world.truth(at)),
        regret_followed=float(world.gain - world.truth(followed)),
        gain=float(world.gain),
        alpha=at,
        true=float(world.truth(best.alpha)) if best else 0.0,
        claimed=best.gain.mean if best else 0.0,
        low=judged.interval[0],
        high=judged.interval[1],
        word=judged.word,
        confirmed=confirmed.mean if confirmed else None,
        confirmed_low=confirmed.low if confirmed else None,
        confirmed_high=confirmed.high if confirmed else None,
        covered=(held, len(whole)),
        threw_best=_threw_best(found, world.truth),
    )


def _threw_best(found: Sequence[Evaluation], truth: Callable[[float], float]) -> bool:
    best = max(found, key=lambda e: truth(e.alpha))
    return best.outcome == "hopeless"


def wanted(strategies: Sequence[str], kinds: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """The searches to run, in an order in which a part of them tells of every kind."""
    others = [k for k in kinds if k in TUNED_ON or k == TABLE]
    tasks = []
    for i, seed in enumerate(seeds):
        for strategy in strategies:
            if strategy == "expo":
                tasks += [(strategy, kind, seed) for kind in kinds]
            elif others:
                tasks.append((strategy, others[i % len(others)], seed))
    return tasks


def main() -> None:
    """Run what is missing of the searches; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="worlds of a kind for ours, of all kinds for others")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, help="of a search; as many as the kind says by default")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--budget", type=float, help="tokens of a search and its confirmation, in whole trials at alpha = 0"
    )
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, TABLE], default=list(KINDS))
    parser.add_argument("--table", type=Path, default=Path(__file__).parent / "demo_table.csv")
    parser.add_argument("--on-disk", action="store_true", help="keep each study in a database, as searches do")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keeps the results, one JSON object a line")
    o = parser.parse_args()
    results = []
    if o.out and o.out.exists():
        results = [Result(**json.loads(line)) for line in o.out.read_text().splitlines()]
    done = {(r.strategy, r.kind, r.seed) for r in results}
    tasks = wanted(o.strategies, o.kinds, range(o.first_seed, o.first_seed + o.seeds))
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # small matrices: threads of two processes would only wait for each other
    with ProcessPoolExecutor(o.jobs, get_context("spawn")) as pool:  # which reads the environment anew
        run = partial(one, n_prompts=o.prompts, n_trials=o.trials, table=o.table, on_disk=o.on_disk, units=o.budget)
        running = [pool.submit(run, *task) for task in tasks if task not in done]
        for future in as_completed(running):
            results.append(future.result())
            if o.out:
                with o.out.open("a") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
    tables([r for r in results if r.kind in o.kinds and r.strategy in o.strategies])


if __name__ == "__main__":
    main()
