"""What a study's database costs a trial: SQLite beside PostgreSQL, near and far.

    python benchmarks/store.py                  # both kinds of trial, 20 ms added to each round trip
    python benchmarks/store.py --trial demo --round-trip-ms 100

Real search, store, artifacts and dashboard's note and figure; a model that answers by sleeping, at an even rate, and a
scorer that takes no time. What a trial takes beyond the sleep is the cost, the wait at the search's end among it. A
short search beforehand loads the libraries that draw, which a process pays once. A round trip is something that the
client sends and whose answer it then waits for, be it the search or the thread that writes behind it; a proxy before
the server counts and delays them, half of the time on each way. Needs the binaries of a PostgreSQL server
(`tests/databases.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from databases import PostgresServer
from fakes import FakeWatcher, make_prompts, normal
from proxy import Proxy

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt, Switch
from expo_search.evaluation.objective import Objective
from expo_search.results.artifacts import default_place
from expo_search.results.dashboard_updates import DashboardUpdates
from expo_search.search.loop import search
from expo_search.store.study_store import Store


@dataclass(frozen=True)
class Kind:
    """A kind of trial. `scores_beside`: its engine is a process of its own, and goes on whatever the search does."""

    title: str
    n_prompts: int
    seconds: float
    n_characters: int
    scores_beside: bool


KINDS = {
    "demo": Kind("demo-like (the README's: 128 s for 9 trials)", 128, 14.2, 200, False),
    "7b": Kind("7B-like (benchmarks/barriers.py: long-tailed, at once)", 1000, 27.1, 1200, True),
}
WARM_UP = Kind("before all", 16, 0.1, 200, False)
SPEC = SearchSpec(sampler="random", seed=5, alpha_min=0.0, alpha_max=1.0)


class Sleeper:
    """Answers at an even rate, all prompts in `seconds`."""

    def __init__(self, kind: Kind) -> None:
        self._kind, self._alpha, self.slept_s = kind, 0.0, 0.0

    def materialize(self, alpha: float) -> Switch:
        self._alpha = alpha
        return Switch(alpha, 0.0, f"{alpha!r}")

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        due = time.monotonic()
        for prompt in prompts:
            if not self._kind.scores_beside:
                due = time.monotonic()
            due += self._kind.seconds / len(prompts)
            time.sleep(max(0.0, due - time.monotonic()))
            self.slept_s += self._kind.seconds / len(prompts)
            yield self._kind.n_characters // 4
            yield Completion(prompt, "word " * (self._kind.n_characters // 5), self._kind.n_characters // 4, "stop")

    def restart(self) -> None:
        raise AssertionError

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """No alpha is better, so that none is stopped early."""
        on_scored(len(completions))
        return [normal(c.prompt.id) + 0.1 * normal(c.prompt.id, self._alpha) for c in completions], 0


def cost_s(url: str, kind: Kind, n_trials: int, folder: Path) -> float:
    """Seconds a trial beyond its sleep."""
    here = Path.cwd()
    os.chdir(folder)  # where a server's artifacts go
    try:
        store, model = Store(url, "s"), Sleeper(kind)
        prompts = make_prompts(kind.n_prompts)
        store.put_prompts("search", prompts)
        updates = DashboardUpdates(store, default_place(url), print)
        objective = Objective(model, model, store, prompts, FakeWatcher(), scores_beside=kind.scores_beside)
        began = time.monotonic()
        found = search(store, objective, SPEC, n_trials, before_tell=updates.before_tell, on_trial=updates.on_trial)
        took = time.monotonic() - began
        assert len(found) == n_trials
        assert not any(e.stopped_early for e in found)
        store.close()
    finally:
        os.chdir(here)
    return (took - model.slept_s) / n_trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--round-trip-ms", type=float, default=20.0, help="added to each round trip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.closing(PostgresServer(durable=True)) as server:
        folder = Path(name)
        first_s = cost_s(f"sqlite:///{folder / 'warm-up.db'}", WARM_UP, 2, folder)
        print(f"loading libraries, and two trials of {WARM_UP.n_prompts} prompts: {2 * first_s:.1f} s", flush=True)
        for kind in KINDS.values() if options.trial == "all" else [KINDS[options.trial]]:
            print(
                f"{kind.title}: {kind.n_prompts} prompts, {kind.seconds} s; mean of {options.trials} trials", flush=True
            )
            database = f"sqlite:///{folder / f'{kind.n_prompts}.db'}"
            file_s = cost_s(database, kind, options.trials, folder)
            print(f"  SQLite                 {file_s * 1e3:6.0f} ms  {file_s / kind.seconds:6.2%}", flush=True)
            for added_ms in dict.fromkeys((0.0, options.round_trip_ms)):
                proxy = Proxy(server.port, added_ms / 2e3)
                url = server.over_tcp(server.database(), port=proxy.port)
                far_s = cost_s(url, kind, options.trials, folder)
                n = proxy.n_round_trips / options.trials
                proxy.close()
                costs = f"{far_s * 1e3:6.0f} ms  {far_s / kind.seconds:6.2%}"
                more = f"{(far_s - file_s) / kind.seconds:.2%} more than SQLite; {n:.0f} round trips a trial"
                print(f"  PostgreSQL + {added_ms:3.0f} ms    {costs}, {more}", flush=True)


if __name__ == "__main__":
    main()
