"""How long a trial takes without barriers, beside one that waits at each look: a simulated engine of known step times.

    python benchmarks/barriers.py

The real objective, store and statistics run; model and scorer are simulated in time of their own. A step of b sequences
takes `--step-ms` + b * `--sequence-ms` milliseconds, up to `--batch` sequences at a time, first come first served, in a
process of its own that goes on while answers are scored; while both work, each is slower by `--contention`. Lengths:
those of the demo pair's recorded answers (at most 64 tokens), or log-normal with the median and the spread of
UltraFeedback's chosen answers, cut at 2,048, with one in a hundred that never ends.

Printed for three trials: one that is evaluated whole, one that a race stops, one that brackets: seconds, tokens, the
ratio to the time of its tokens at a full batch, and to the least time in which any schedule could answer and rate these
lengths (`Machine.least`); each way of handing prompts over in the same run.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import numpy as np

from expo_search.contracts import Completion, Model, Prompt, Switch
from expo_search.evaluation.objective import Objective, looks
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.store.study_store import Store

TABLE = Path(__file__).parent / "demo_table.csv"
LONGEST = 2048  # tokens
MEDIAN, SPREAD, ENDLESS = 200.0, 0.9, 0.01  # of the long-tailed lengths: tokens, of the logarithm, share


@dataclass(frozen=True)
class Machine:
    """Step times of the engine, and what the reward model reads."""

    batch: int
    step_s: float
    sequence_s: float
    scored_per_s: float
    contention: float

    def step(self, n: int) -> float:
        """Seconds of a step of n sequences."""
        return self.step_s + n * self.sequence_s

    def at_full_batch(self, n_tokens: int) -> float:
        """Seconds of so many tokens where the batch is always full."""
        return n_tokens * self.step(self.batch) / self.batch

    def least(self, lengths: Sequence[int]) -> float:
        """Seconds in which no schedule can answer and rate faster.

        There are at least as many steps as the longest answer has tokens. Rewards made beside the engine cost it
        `contention` - 1 of their own time, made after it all of that.
        """
        n_tokens = sum(lengths)
        n_steps = max(*lengths, -(-n_tokens // self.batch))
        scoring_s = n_tokens / self.scored_per_s * min(self.contention - 1.0, 1.0)
        return n_steps * self.step_s + n_tokens * self.sequence_s + scoring_s


class SimulatedModel:
    """Model and scorer in one, with two clocks in seconds: the engine's, and that of the thread which scores."""

    def __init__(self, machine: Machine, lengths: Sequence[int], rewards: Callable[[float, int], float]) -> None:
        self.machine, self._lengths, self._rewards = machine, lengths, rewards
        self.engine_s = self.thread_s = self._scoring_until = 0.0
        self.n_tokens, self.alpha = 0, 0.0

    def materialize(self, alpha: float) -> Switch:
        self.alpha = alpha
        return Switch(alpha, 0.0, repr(alpha))

    def restart(self) -> None:
        """It never dies."""

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        self.engine_s = max(self.engine_s, self.thread_s)  # it was idle until now
        waiting = list(reversed(prompts))
        running: list[tuple[int, int, Prompt]] = []  # (step in which it ends, order, prompt)
        step = order = 0
        while waiting or running:
            while waiting and len(running) < self.machine.batch:
                prompt = waiting.pop()
                order += 1
                heapq.heappush(running, (step + self._lengths[int(prompt.id)], order, prompt))
            slower = self.machine.contention if self.engine_s < self._scoring_until else 1.0
            self.engine_s += self.machine.step(len(running)) * slower
            step += 1
            self.n_tokens += len(running)
            self.thread_s = max(self.thread_s, self.engine_s)
            yield len(running)
            while running and running[0][0] <= step:
                _, _, prompt = heapq.heappop(running)
                n = self._lengths[int(prompt.id)]
                yield Completion(prompt, prompt.id, n, "length" if n >= LONGEST else "stop")

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        busy = self.engine_s >= self.thread_s and self.engine_s > 0
        seconds = sum(c.n_tokens for c in completions) / self.machine.scored_per_s
        self.thread_s += seconds * (self.machine.contention if busy else 1.0)
        self._scoring_until = self.thread_s
        on_scored(len(completions))
        return [self._rewards(self.alpha, int(c.prompt.id)) for c in completions], 0


class LookByLook:
    """A model that begins with the prompts of a look when those of the look before are answered, as a barrier would."""

    def __init__(self, model: Model, prompts: Sequence[Prompt]) -> None:
        self._model = model
        ends = looks(len(prompts))
        self._look_of = {prompt: bisect_right(ends, i) for i, prompt in enumerate(prompts)}

    def materialize(self, alpha: float) -> Switch:
        return self._model.materialize(alpha)

    def restart(self) -> None:
        self._model.restart()

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        for _, of_look in groupby(sorted(prompts, key=self._look_of.__getitem__), self._look_of.__getitem__):
            yield from self._model.generate(list(of_look), seed)


class Silent:
    """A watcher that looks away."""

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None: ...
    def generated(self, n_tokens: int, n_completions: int) -> None: ...
    def scored(self, n: int) -> None: ...


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--sequence-ms", type=float, default=0.02)
    parser.add_argument("--scored-per-s", type=float, default=60_000, help="Tokens the reward model reads.")
    parser.add_argument("--contention", type=float, default=1.5)
    options = parser.parse_args()
    machine = Machine(
        options.batch, options.step_ms / 1e3, options.sequence_ms / 1e3, options.scored_per_s, options.contention
    )
    print(
        f"simulated: {options.prompts} prompts, at most {machine.batch} at a time, "
        f"a full step {machine.step(machine.batch) * 1e3:.1f} ms, reward model {machine.scored_per_s:,.0f} tokens/s"
    )
    print(f"{'lengths':12} {'trial':20} {'handed over':13} {'s':>6} {'tokens':>8} {'x full batch':>13} {'x least':>8}")
    kinds = {
        "whole": 1.0,
        "stopped by the race": 1 / 8,
        "bracketing": 1 / 4,
    }  # shares that are looked at
    for name, lengths in (("demo", demo_lengths(options.prompts)), ("long-tailed", long_tailed(options.prompts))):
        for (kind, share), waits in product(kinds.items(), (True, False)):
            seconds, n_tokens = measure(machine, lengths, kind, waits=waits)
            needed = lengths[: round(share * len(lengths))]
            way = "look by look" if waits else "at once"
            full, least = seconds / machine.at_full_batch(n_tokens), seconds / machine.least(needed)
            print(f"{name:12} {kind:20} {way:13} {seconds:6.1f} {n_tokens:8} {full:13.2f} {least:8.2f}")


def measure(machine: Machine, lengths: Sequence[int], kind: str, *, waits: bool) -> tuple[float, int]:
    """Seconds and generated tokens of one trial of a kind; `waits`: at each look, and scores then."""
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((3, len(lengths)))

    def reward(alpha: float, prompt: int) -> float:
        return {0.0: 0.0, 0.5: 0.3, 1.0: 0.31, 9.0: -2.0}[alpha] + 0.3 * float(noise[int(alpha) % 3, prompt])

    model = SimulatedModel(machine, lengths, reward)
    prompts = [Prompt(str(i), str(i)) for i in range(len(lengths))]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/barriers.db", "s")
        answering = LookByLook(model, prompts) if waits else model
        objective = Objective(answering, model, store, prompts, Silent(), scores_beside=not waits)
        objective.evaluate(CONTROL, 0.0)
        objective.evaluate(1, 0.5, best=CONTROL)
        model.engine_s = model.thread_s = max(model.engine_s, model.thread_s)
        begun, tokens = model.thread_s, model.n_tokens
        found = run(objective, kind, len(lengths))
        store.close()
    expected = {"whole": "complete", "stopped by the race": "hopeless", "bracketing": "enough"}[kind]
    assert found.outcome == expected, (kind, found.outcome)
    return model.thread_s - begun, model.n_tokens - tokens


def run(objective: Objective, kind: str, n_prompts: int) -> Evaluation:
    """The trial that is measured."""
    if kind == "stopped by the race":
        return objective.evaluate(2, 9.0, best=1)
    return objective.evaluate(2, 1.0, best=1, n_most=n_prompts // 4 if kind == "bracketing" else None)


def demo_lengths(n: int) -> list[int]:
    """Tokens of recorded answers of the demo pair at alpha = 0, repeated as often as it takes."""
    with TABLE.open() as table:
        found = [int(row["n_tokens"]) for row in csv.DictReader(table) if float(row["alpha"]) == 0]
    return [found[i % len(found)] for i in range(n)]


def long_tailed(n: int) -> list[int]:
    """Log-normal, at most `LONGEST`, and some that run to it."""
    rng = np.random.default_rng(1)
    drawn = np.exp(np.log(MEDIAN) + SPREAD * rng.standard_normal(n))
    drawn[rng.random(n) < ENDLESS] = LONGEST
    return [int(x) for x in np.clip(drawn, 1, LONGEST)]


if __name__ == "__main__":
    main()
