"""Whether two alphas at a time save time while the search brackets: the real search in simulated worlds, timed.

    python benchmarks/two_alphas.py

Bracketing doubles alpha until the gain is gone, each time on a quarter of the prompts: too few to fill many engines,
so such a trial takes as long as its longest answer. Half of the engines could answer at the doubled alpha meanwhile.
What is decided stays the same; where the search would not have doubled, the second alpha's tokens are for nothing.

Each search runs once, one alpha at a time (worlds of `landscapes.py`). Its trials are then timed on N engines that
answer at most 256 sequences at a time, a step of b of them taking 8 + 0.02 b ms; lengths are long-tailed
(`barriers.py`), and 2,048 at an alpha that has collapsed. Printed: the search's time and tokens either way.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from barriers import LONGEST, Silent, long_tailed
from landscapes import KINDS, World, simulate
from sleeping import Times

from expo_search.config.spec import SearchSpec
from expo_search.evaluation.objective import Objective
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.alpha_range import bounds
from expo_search.search.loop import n_explore, search
from expo_search.search.proposal import bracketing
from expo_search.store.study_store import Store

TIMES = Times()


@dataclass(frozen=True)
class Cost:
    """Seconds and tokens."""

    seconds: float = 0.0
    tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.tokens + other.tokens)

    def beside(self, other: Cost) -> Cost:
        """Both at a time."""
        return Cost(max(self.seconds, other.seconds), self.tokens + other.tokens)


@dataclass(frozen=True)
class Trial:
    """One trial as it is timed: its alpha, prompts handed over, prompts that were looked at, whether it brackets."""

    alpha: float
    n_handed: int
    n_seen: int
    brackets: bool


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--engines", default="2,4,8,16")
    options = parser.parse_args()
    lengths = long_tailed(options.prompts)
    searches = []
    for seed in range(options.seeds):
        world = simulate(list(KINDS)[seed % len(KINDS)], seed, options.prompts)
        searches.append((world, *searched(world, seed)))
    n_bracket = [sum(t.brackets for t in trials) for _, trials, _ in searches]
    n_trials = np.mean([len(t) for _, t, _ in searches])
    print(
        f"{len(searches)} searches of {options.prompts} prompts, {n_trials:.1f} trials, "
        f"of which {np.mean(n_bracket):.1f} bracket"
    )
    print(f"{'engines':>7} {'s one':>8} {'s two':>8} {'time':>7} {'tokens':>7} {'second alphas for nothing':>26}")
    for n_engines in map(int, options.engines.split(",")):
        one, two, wasted = Cost(), Cost(), 0
        for world, trials, unused in searches:
            one += sum((cost(t, world, lengths, n_engines) for t in trials), Cost())
            paired, n = in_pairs(trials, unused, world, lengths, n_engines)
            two += paired
            wasted += n
        time, tokens = two.seconds / one.seconds - 1, two.tokens / one.tokens - 1
        each = len(searches)
        print(
            f"{n_engines:7} {one.seconds / each:8.1f} {two.seconds / each:8.1f} {time:+7.1%} {tokens:+7.1%} "
            f"{wasted / each:19.2f} each"
        )


def searched(world: World, seed: int) -> tuple[list[Trial], dict[float, Trial]]:
    """The trials of a search; and for each alpha of the doubling, the trial of its double, had there been one."""
    spec, trials, doubles = SearchSpec(seed=seed), list[Trial](), dict[float, Trial]()
    n = len(world.prompts)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(Store(f"sqlite:///{folder}/search.db", "s")) as store,
    ):
        objective = Objective(world, world, store, world.prompts, Silent())
        found = search(store, objective, spec, 20)
        start, (low, high) = store.attributes.first_step, bounds(spec, None)
        assert start is not None
        for i, e in enumerate(found):
            step = bracketing(found[:i], low, high, start) if i else None
            brackets = step is not None and abs(step - e.alpha) < 1e-9
            trials.append(timed(e, n, brackets=brackets))
            is_top = e.alpha > max((o.alpha for o in found[:i]), default=0.0)
            if brackets and is_top and e.alpha < high:
                double = min(high, 2 * e.alpha)
                known = next((o for o in found if abs(o.alpha - double) < 1e-9), None)
                if known is None:
                    best = max(
                        (o for o in found[:i] if not o.broken and not o.stopped_early), key=lambda o: o.gain.mean
                    )
                    known = objective.evaluate(1000 + i, double, best=best.trial, n_most=n_explore(n))
                doubles[e.alpha] = timed(known, n, brackets=True)
    return trials, doubles


def timed(e: Evaluation, n: int, *, brackets: bool) -> Trial:
    """How a trial is timed."""
    most = n_explore(n) if brackets else n
    return Trial(e.alpha, most if e.trial != CONTROL else n, e.gain.n if e.trial != CONTROL else n, brackets)


def in_pairs(
    trials: Sequence[Trial], doubles: dict[float, Trial], world: World, lengths: Sequence[int], n_engines: int
) -> tuple[Cost, int]:
    """The search with two alphas at a time where it doubles, and how many of the second ones it had no use for."""
    total, unused, i = Cost(), 0, 0
    while i < len(trials):
        trial, double = trials[i], doubles.get(trials[i].alpha)
        if double is None:
            total += cost(trial, world, lengths, n_engines)
            i += 1
            continue
        half = max(1, n_engines // 2)
        total += cost(trial, world, lengths, half).beside(cost(double, world, lengths, half))
        is_next = i + 1 < len(trials) and abs(trials[i + 1].alpha - double.alpha) < 1e-9
        unused += not is_next
        i += 2 if is_next else 1
    return total, unused


def cost(trial: Trial, world: World, lengths: Sequence[int], n_engines: int) -> Cost:
    """Until the prompts that were looked at are answered; all that are handed over begin as there is room."""
    fallen = trial.alpha >= world.collapse
    of = [LONGEST if fallen else length for length in lengths[: trial.n_handed]]
    ends = [_run([(p, of[p]) for p in range(e, len(of), n_engines)], trial.n_seen) for e in range(n_engines)]
    end = max(at for at, _ in ends)
    return Cost(end, sum(tokens_until(end) for _, tokens_until in ends))


def _run(prompts: Sequence[tuple[int, int]], n_seen: int) -> tuple[float, _Tokens]:
    """One engine: when the last prompt below n_seen is answered, and how many tokens it has generated by a time."""
    waiting = list(reversed(prompts))
    running: list[tuple[int, int]] = []
    step, clock, last, tokens = 0, 0.0, 0.0, 0
    marks = [(0.0, 0)]
    while waiting or running:
        while waiting and len(running) < TIMES.batch:
            position, length = waiting.pop()
            heapq.heappush(running, (step + length, position))
        steps = running[0][0] - step
        clock += steps * TIMES.step(len(running))
        tokens += steps * len(running)
        step += steps
        marks.append((clock, tokens))
        while running and running[0][0] <= step:
            if heapq.heappop(running)[1] < n_seen:
                last = clock
    return last, _Tokens(marks)


class _Tokens:
    """How many tokens an engine has generated by a time."""

    def __init__(self, marks: Sequence[tuple[float, int]]) -> None:
        self._times, self._tokens = zip(*marks, strict=True)

    def __call__(self, at: float) -> int:
        return int(np.interp(at, self._times, self._tokens))


if __name__ == "__main__":
    main()
