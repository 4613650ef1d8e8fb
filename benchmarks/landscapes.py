"""Worlds with a known truth, behind the two seams `Model` and `Scorer`: simulated landscapes, and a recorded table.

A world's answers say which alpha and prompt made them; its scorer adds the truth, what the prompt is like, and noise
whose size and correlation were measured on the demo pair (see docs/search.md).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from expo_search.contracts import Completion, Prompt, Switch

KINDS = ("smooth", "cliff", "flat", "no gain", "two bumps")
_N_FEATURES = 24


@dataclass(frozen=True)
class Noise:
    """Standard deviations of a reward: of the prompt, of the answer (kept for near alphas), of chance; and how far
    on the axis log(1 + 2 alpha / place) an answer stays alike."""

    prompt: float = 0.41
    answer: float = 0.2
    chance: float = 0.5
    length: float = 1.0


@dataclass
class World:
    """One landscape with one draw of prompts; `tokens` counts what was generated.

    Attributes:
        place: the best alpha. `gain`: the mean reward there over that at alpha = 0; `truth(alpha)` anywhere.
        collapse: alphas from here on give looped answers that run to max_tokens.
    """

    kind: str
    place: float
    gain: float
    collapse: float
    shape: Callable[[float], float]
    prompts: Sequence[Prompt]
    seed: int
    draw: int = 0  # of prompts and noise; another draw of the same landscape is a confirmation's
    noise: Noise = field(default_factory=Noise)
    tokens: int = 0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        rng = np.random.default_rng((self.seed, 1 + self.draw))
        n = len(self.prompts)
        self._level = self.noise.prompt * rng.standard_normal(n)
        self._frequency = rng.standard_normal((n, _N_FEATURES)) / self.noise.length
        self._phase = rng.uniform(0, 2 * np.pi, (n, _N_FEATURES))
        self._length = rng.uniform(0.5, 1.5, n)
        self._index = {p.id: i for i, p in enumerate(self.prompts)}

    def truth(self, alpha: float) -> float:
        """Mean reward over that at alpha = 0, of all prompts there could be."""
        return -3.0 if alpha >= self.collapse else self.shape(alpha)

    def rewards(self, alpha: float) -> NDArray[np.float64]:
        """Of every prompt."""
        u = np.sign(alpha) * np.log1p(2 * abs(alpha) / self.place)
        alike = np.sqrt(2 / _N_FEATURES) * np.cos(self._frequency * u + self._phase).sum(axis=1)
        digest = hashlib.blake2b(f"{self.seed} {self.draw} {alpha!r}".encode(), digest_size=8).digest()
        chance = np.random.default_rng(int.from_bytes(digest)).standard_normal(len(self.prompts))
        return np.asarray(self.truth(alpha) + self._level + self.noise.answer * alike + self.noise.chance * chance)

    def materialize(self, alpha: float) -> Switch:
        self.alpha = alpha
        return Switch(alpha, 0.0, repr(alpha))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        fallen = self.alpha >= self.collapse
        for prompt in prompts:
            i = self._index[prompt.id]
            longer = 1 + 0.15 * min(3.0, max(0.0, self.alpha / self.place))
            n = 200 if fallen else int(60 * self._length[i] * longer)
            self.tokens += n
            yield n
            text = "the same again, " * 8 if fallen else f"{i}"
            yield Completion(prompt, text, n, "length" if fallen else "stop")

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        rewards = self.rewards(self.alpha)
        on_scored(len(completions))
        return [float(rewards[self._index[c.prompt.id]]) for c in completions], 0

    def restart(self) -> None:
        """Nothing to do: it never dies."""


def simulate(kind: str, seed: int, n_prompts: int, draw: int = 0) -> World:
    """A landscape of a kind: a peak at a log-uniform place in 0.05 .. 30, a gain of 0.15 to 0.45 (rewards' standard
    deviation being about 0.7), a collapse at 4 to 8 times the peak's place, or just above it."""
    rng = np.random.default_rng((seed, 0))
    place = float(np.exp(rng.uniform(np.log(0.05), np.log(30))))
    gain = float(rng.uniform(0.15, 0.45))
    collapse = place * float(rng.uniform(1.05, 1.4) if kind == "cliff" else rng.uniform(4, 8))
    prompts = [Prompt(f"{seed}-{draw}-{i}", f"prompt {i} of draw {draw} of world {seed}") for i in range(n_prompts)]

    def shape(alpha: float) -> float:
        x = alpha / place
        if kind == "flat":
            return 0.0
        if kind == "no gain":
            return -gain * x if x > 0 else 0.5 * gain * x
        if kind == "two bumps":  # the lower one, six times nearer to 0, and a valley between
            valley = 0.5 * float(np.exp(-8 * np.log(max(x, 1e-9) * 2.5) ** 2))
            return gain * max(0.6 * _hill(6 * x), _hill(x) - valley)
        return gain * _hill(x)

    world = World(kind, place, 0.0, collapse, shape, prompts, seed, draw)
    dense = [a for a in np.geomspace(place / 20, place * 4, 2000) if a < collapse]
    world.gain = max(0.0, *(world.truth(float(a)) for a in dense))
    return world


def _hill(x: float) -> float:
    """0 at x = 0, 1 at x = 1, falling as fast as it rose on a logarithmic scale; linear below 0."""
    return float(1 - ((np.log1p(x) - np.log(2)) / np.log(2)) ** 2) if x >= 0 else 2 * x


class Recorded:
    """A table of real answers (`record.py`): every asked alpha is answered by the nearest recorded one.

    A search sees n of the recorded prompts, drawn by the seed; the truth is the mean over the others (over all, where
    it sees all). That mean is noisy too: what can be compared is what two strategies' choices gain there.
    """

    def __init__(self, table: Path, seed: int, n_prompts: int) -> None:
        self.kind, self.seed, self.tokens = table.stem, seed, 0
        rows: dict[float, dict[str, dict[str, str]]] = {}
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                rows.setdefault(float(row["alpha"]), {})[row["prompt_id"]] = row
        self._rows = rows
        ids = sorted(rows[0.0])
        order = np.random.default_rng((seed, 1)).permutation(len(ids))[:n_prompts]
        self.prompts = [Prompt(ids[i], ids[i]) for i in order]
        seen = {p.id for p in self.prompts}
        judges = [i for i in ids if i not in seen] or ids
        mean = {a: float(np.mean([float(of[i]["reward"]) for i in judges])) for a, of in rows.items()}
        self._truth = {a: m - mean[0.0] for a, m in mean.items()}
        self.place = max(self._truth, key=lambda a: self._truth[a])
        self.gain = max(0.0, self._truth[self.place])

    def nearest(self, alpha: float) -> float:
        """The recorded alpha that stands for an asked one; alpha = 0 for itself alone."""
        if alpha == 0:
            return 0.0
        side = [a for a in self._rows if a * alpha > 0]
        return min(side, key=lambda a: abs(np.log(a / alpha)))

    def truth(self, alpha: float) -> float:
        return self._truth[self.nearest(alpha)]

    def materialize(self, alpha: float) -> Switch:
        self.alpha = self.nearest(alpha)
        return Switch(alpha, 0.0, repr(alpha))

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        for prompt in prompts:
            row = self._rows[self.alpha][prompt.id]
            self.tokens += int(row["n_tokens"])
            yield int(row["n_tokens"])
            text = "the same again, " * 8 if float(row["repetition"]) >= 0.5 else prompt.id
            yield Completion(prompt, text, int(row["n_tokens"]), row["finish_reason"])

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        on_scored(len(completions))
        return [float(self._rows[self.alpha][c.prompt.id]["reward"]) for c in completions], 0

    def restart(self) -> None:
        """Nothing to do: it never dies."""
