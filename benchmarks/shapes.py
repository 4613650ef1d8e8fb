"""How good a search for a shape is, on worlds whose truth is known: false shapes, shapes found, gains kept, tokens.

    python benchmarks/shapes.py --seeds 60 --jobs 2 --out shapes.jsonl   # goes on where it stopped; prints the table

Each world has an alpha that is better than 0, from which the search starts, and a truth over the shape's numbers: flat,
best where all weights have that alpha, or with a hill elsewhere. Rewards differ by prompt, by answer (alike for shapes
that are near each other) and by chance, as measured on the demo pair (`landscapes.Noise`). All else is the real code:
trials, racing, Optuna's sampler, and the confirmation on fresh prompts, which alone may recommend a shape.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from landscapes import Noise
from memory_store import MemoryStore
from numpy.typing import NDArray
from search import Silent

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt, Switch
from expo_search.evaluation.objective import Objective
from expo_search.search.shape_search import begin, confirm_shape, search_shapes
from expo_search.search.shapes import Beginning, read_shapes
from expo_search.weights.shape import dimensions, shape_of

ALPHA, UNIFORM_GAIN = 0.4, 0.3  # of the one alpha that a search for a shape starts from
SD = 0.67  # of a reward, about
SHAPES = ("depth", "attn-mlp", "blocks:3")
KINDS: dict[str, tuple[tuple[float, float], Noise]] = {  # kind -> gains in SD, noise
    "flat": ((0.0, 0.0), Noise()),
    "flat, alike": ((0.0, 0.0), Noise(answer=0.5, chance=0.2)),
    "flat, heavy tails": ((0.0, 0.0), Noise(heavy=True)),
    "uniform is best": ((-0.6, -0.2), Noise()),
    "hill of 0.1 to 0.3 sd": ((0.1, 0.3), Noise()),
    "hill of 0.3 to 0.6 sd": ((0.3, 0.6), Noise()),
    "hill of 0.3 to 0.6 sd, heavy tails": ((0.3, 0.6), Noise(heavy=True)),
}
_ALL = tuple(KINDS)
GROUPS = {
    "none: flat": _ALL[:3],
    "none: uniform is best": _ALL[3:4],
    "none": _ALL[:4],
    "0.1 to 0.3 sd": _ALL[4:5],
    "0.3 to 0.6 sd": _ALL[5:],
    "a gain": _ALL[4:],
    "all": _ALL,
}
_N_FEATURES = 24


@dataclass
class ShapeWorld:
    """One truth over a shape's numbers with one draw of prompts, behind the seams `Model` and `Scorer`.

    Attributes:
        gain: of the best shape over the uniform alpha; below 0 how much is lost at the ends of the numbers' ranges.
        top: the numbers of the best shape, in units of half their ranges from the neutral ones, (D,).
    """

    shape: str
    gain: float
    top: NDArray[np.float64]
    noise: Noise
    seed: int
    draw: int
    prompts: Sequence[Prompt] = ()
    alpha: float = 0.0
    n_layers: int = 24
    _level: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        rng, n, d = np.random.default_rng((self.seed, 1 + self.draw)), len(self.prompts), len(self.top)
        self._level = self.noise.prompt * rng.standard_normal(n)
        self._frequency = rng.standard_normal((n, _N_FEATURES, 1 + d)) / self.noise.length
        self._phase = rng.uniform(0, 2 * np.pi, (n, _N_FEATURES))
        self._length = rng.uniform(0.5, 1.5, n)
        self._index = {p.id: i for i, p in enumerate(self.prompts)}

    def place(self, alpha: float) -> NDArray[np.float64]:
        """The numbers of an alpha's shape in units of half their ranges from the neutral ones, (D,)."""
        shape, numbers = shape_of(alpha), dimensions(self.shape)
        if shape is None:
            return np.zeros(len(numbers))
        pairs = zip(shape.numbers, numbers, strict=True)
        return np.array([(x - d.neutral) / ((d.high - d.low) / 2) for x, d in pairs])

    def over_uniform(self, alpha: float) -> float:
        """The truth: a shape's mean reward over the uniform alpha's."""
        at = self.place(alpha)
        if self.gain < 0:
            return float(self.gain * (at @ at))
        off = at - self.top
        return max(-1.0, float(self.gain * (1 - (off @ off) / (self.top @ self.top)))) if self.gain else 0.0

    def rewards(self, alpha: float) -> NDArray[np.float64]:
        """Of every prompt."""
        where = np.array([alpha / ALPHA, *self.place(alpha)])
        alike = np.sqrt(2 / _N_FEATURES) * np.cos(self._frequency @ where + self._phase).sum(axis=1)
        digest = hashlib.blake2b(f"{self.seed} {self.draw} {alpha!r}".encode(), digest_size=8).digest()
        own, n = np.random.default_rng(int.from_bytes(digest)), len(self.prompts)
        chance = own.standard_t(3, n) / np.sqrt(3) if self.noise.heavy else own.standard_normal(n)
        truth = UNIFORM_GAIN + self.over_uniform(alpha) if alpha else 0.0
        return np.asarray(truth + self._level + self.noise.answer * alike + self.noise.chance * chance)

    def materialize(self, alpha: float) -> Switch:
        self.alpha = alpha
        return Switch(alpha, 0.0, repr(alpha))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        for prompt in prompts:
            n = int(60 * self._length[self._index[prompt.id]])
            yield n
            yield Completion(prompt, str(self._index[prompt.id]), n, "stop")

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        rewards = self.rewards(self.alpha)
        on_scored(len(completions))
        return [float(rewards[self._index[c.prompt.id]]) for c in completions], 0

    def restart(self) -> None:
        """Nothing to do: it never dies."""


def simulate(kind: str, shape: str, seed: int, n_prompts: int, draw: int = 0) -> ShapeWorld:
    """A world of a kind: the hill's top lies somewhere in the middle nine tenths, at least a quarter from neutral."""
    gains, noise = KINDS[kind]
    rng = np.random.default_rng((seed, 0, list(KINDS).index(kind)))
    top = np.zeros(len(dimensions(shape)))
    while float(np.linalg.norm(top)) < 0.25:
        top = rng.uniform(-0.9, 0.9, len(top))
    prompts = [Prompt(f"{draw}-{i}", f"prompt {i} of draw {draw}") for i in range(n_prompts)]
    return ShapeWorld(shape, SD * float(rng.uniform(*gains)), top, noise, seed, draw, prompts)


@dataclass(frozen=True)
class Result:
    """One search for a shape: what it said, and what is true.

    Attributes:
        gain: of the world's best shape. true: of the one that looks best, whether it is recommended or not; 0 of none.
        low, high: the confirmation's interval; None where there was none.
        tokens: in whole trials at alpha = 0, confirmation included.
    """

    kind: str
    shape: str
    seed: int
    word: str
    gain: float
    true: float
    low: float | None
    high: float | None
    tokens: float


def one(kind: str, shape: str, seed: int, n_prompts: int, n_trials: int) -> Result:
    """Search one world for a shape and confirm the best."""
    world, fresh = simulate(kind, shape, seed, n_prompts), simulate(kind, shape, seed, n_prompts, draw=1)
    spec, source, store = SearchSpec(seed=seed), MemoryStore("s"), MemoryStore("s/shapes")
    objective = Objective(world, world, source, world.prompts, Silent())
    source.put_prompts("search", world.prompts)
    control, uniform = objective.evaluate(0, 0.0), objective.evaluate(1, ALPHA)
    begin(store, source, Beginning("s", 1, ALPHA, shape, world.n_layers), uniform, control)
    search_shapes(store, Objective(world, world, store, world.prompts, Silent()), spec, n_trials)
    found = read_shapes(store, spec.objective)
    if found.best is not None:
        confirming = Objective(fresh, fresh, store, fresh.prompts, Silent(), part="confirm")
        confirm_shape(store, source, confirming, found.best, fresh.prompts)
        found = read_shapes(store, spec.objective)
    gain = None if found.confirmed is None else found.confirmed.gain
    # the uniform alpha and 0 on the fresh prompts, unless the first study was confirmed
    n_tokens = found.n_tokens + (0 if gain is None else store.n_tokens(0, "confirm") + store.n_tokens(1, "confirm"))
    return Result(
        kind,
        shape,
        seed,
        found.word,
        max(0.0, world.gain),
        0.0 if found.best is None else world.over_uniform(found.best.alpha),
        None if gain is None else gain.low,
        None if gain is None else gain.high,
        n_tokens / control.n_tokens,
    )


def table(results: Sequence[Result]) -> None:
    """Print a row a kind of world and shape, and one a group of kinds over all shapes."""
    print("| world | shape | searches | recommended | false | gain kept | intervals hold | tokens |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        for shape in SHAPES:
            _row(kind, shape, [r for r in results if (r.kind, r.shape) == (kind, shape)])
    for group, kinds in GROUPS.items():
        _row(group, "all", [r for r in results if r.kind in kinds])


def _row(world: str, shape: str, of: Sequence[Result]) -> None:
    if not of:
        return
    said = [r for r in of if r.word == "better"]
    false = sum(r.true <= 0 for r in said)
    kept = f"{sum(r.true for r in said) / sum(r.gain for r in of):.0%}" if any(r.gain for r in of) else ""
    told = [r for r in of if r.low is not None and r.high is not None]
    held = sum(bool(r.low is not None and r.high is not None and r.low <= r.true <= r.high) for r in told)
    print(
        f"| {world} | {shape} | {len(of)} | {len(said)} | {false} | {kept} "
        f"| {held} of {len(told)} | {np.mean([r.tokens for r in of]):.1f} |"
    )


def main() -> None:
    """Run what is missing of the searches; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=60, help="worlds of each kind, for each shape")
    parser.add_argument("--prompts", type=int, default=256, help="of a search; as many fresh ones confirm it")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keeps the results, one JSON object a line")
    o = parser.parse_args()
    results = []
    if o.out and o.out.exists():
        results = [Result(**json.loads(line)) for line in o.out.read_text().splitlines()]
    done = {(r.kind, r.shape, r.seed) for r in results}
    tasks = [(kind, shape, seed) for seed in range(o.seeds) for kind in o.kinds for shape in o.shapes]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    with ProcessPoolExecutor(o.jobs, get_context("spawn")) as pool:
        run = partial(one, n_prompts=o.prompts, n_trials=o.trials)
        for future in as_completed([pool.submit(run, *task) for task in tasks if task not in done]):
            results.append(future.result())
            if o.out:
                with o.out.open("a") as file:
                    file.write(json.dumps(asdict(results[-1])) + "\n")
    table([r for r in results if r.kind in o.kinds and r.shape in o.shapes])


if __name__ == "__main__":
    main()
