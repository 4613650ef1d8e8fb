"""Worlds with a known truth, behind the two seams `Model` and `Scorer`: simulated landscapes of many kinds.

A world's answers say which alpha and prompt made them; its scorer adds the truth, what the prompt is like, and noise
whose size and correlation were measured on the demo pair (see docs/search.md). The search was tuned on `TUNED_ON`; the
other kinds are held out, to see where it fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from expo_search.contracts import Completion, Prompt, Switch

_N_FEATURES = 24
_TAIL = 3  # degrees of freedom of Student's t, whose kurtosis is infinite


@dataclass(frozen=True)
class Noise:
    """What a reward is beside the truth.

    Attributes:
        prompt, answer, chance: standard deviations of what the prompt is like, of the answer (kept for near alphas),
            and of chance.
        length: how far on the axis log(1 + 2 alpha / place) an answer stays alike.
        heavy: chance is Student's t with three degrees of freedom, of the same standard deviation.
        growth: chance grows by this share of itself for each `place` that alpha is away from 0.
        split: half of the prompts gain so much more than the mean, the others so much less, in units of the mean gain.
    """

    prompt: float = 0.41
    answer: float = 0.2
    chance: float = 0.5
    length: float = 1.0
    heavy: bool = False
    growth: float = 0.0
    split: float = 0.0


@dataclass
class World:
    """One landscape with one draw of prompts; `tokens` counts what was generated.

    Attributes:
        place: the best alpha, or how far from 0 it is. `gain`: the mean reward there over that at alpha = 0;
            `truth(alpha)` anywhere.
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
        self._side = np.where(rng.random(n) < 0.5, -1.0, 1.0)
        self._index = {p.id: i for i, p in enumerate(self.prompts)}

    @property
    def whole_tokens(self) -> int:
        """Of the answers at alpha = 0."""
        return sum(int(60 * length) for length in self._length)

    def truth(self, alpha: float) -> float:
        """Mean reward over that at alpha = 0, of all prompts there could be."""
        return -3.0 if alpha >= self.collapse else self.shape(alpha)

    def rewards(self, alpha: float) -> NDArray[np.float64]:
        """Of every prompt."""
        u = np.sign(alpha) * np.log1p(2 * abs(alpha) / self.place)
        alike = np.sqrt(2 / _N_FEATURES) * np.cos(self._frequency * u + self._phase).sum(axis=1)
        digest = hashlib.blake2b(f"{self.seed} {self.draw} {alpha!r}".encode(), digest_size=8).digest()
        own, n, noise = np.random.default_rng(int.from_bytes(digest)), len(self.prompts), self.noise
        chance = own.standard_t(_TAIL, n) / np.sqrt(_TAIL / (_TAIL - 2)) if noise.heavy else own.standard_normal(n)
        chance = noise.chance * (1 + noise.growth * min(8.0, abs(alpha) / self.place)) * chance
        split = noise.split * abs(self.truth(alpha)) * self._side
        return np.asarray(self.truth(alpha) + split + self._level + noise.answer * alike + chance)

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


Shape = Callable[[float], float]


@dataclass(frozen=True)
class Kind:
    """How worlds of a kind are drawn.

    Attributes:
        shape: (place, gain, a draw from 0..1) -> mean reward over that at alpha = 0, by alpha.
        places: the best alpha is log-uniform between these.
        gains: the peak's gain is uniform between these; a reward's standard deviation is about 0.7.
        collapse: answers are degenerate from a multiple of the place on, uniform between these.
        n_prompts: of a search.
    """

    shape: Callable[[float, float, float], Shape]
    noise: Noise = field(default_factory=Noise)
    places: tuple[float, float] = (0.05, 30.0)
    gains: tuple[float, float] = (0.21, 0.455)  # 0.3 to 0.65 standard deviations
    collapse: tuple[float, float] = (4.0, 8.0)
    n_prompts: int = 256


def _hill(x: float) -> float:
    """0 at x = 0, 1 at x = 1, falling as fast as it rose on a logarithmic scale; linear below 0."""
    return float(1 - ((np.log1p(x) - np.log(2)) / np.log(2)) ** 2) if x >= 0 else 2 * x


def _bump(x: float, width: float) -> float:
    """1 at x = 1; a normal density's shape on a logarithmic scale."""
    return float(np.exp(-0.5 * (np.log(x) / width) ** 2)) if x > 0 else 0.0


def _smooth(place: float, gain: float, _: float) -> Shape:
    return lambda a: gain * _hill(a / place)


def _flat(_place: float, _gain: float, _: float) -> Shape:
    return lambda a: 0.0 * a


def _loses(place: float, gain: float, _: float) -> Shape:
    """The aligned model is past its best, and its best lies where interpolation does not help either."""
    return lambda a: (-gain if a > 0 else 0.5 * gain) * a / place


def _two_bumps(place: float, gain: float, _: float) -> Shape:
    """The lower one, six times nearer to 0, and a valley between."""

    def shape(a: float) -> float:
        x = a / place
        valley = 0.5 * float(np.exp(-8 * np.log(max(x, 1e-9) * 2.5) ** 2))
        return gain * max(0.6 * _hill(6 * x), _hill(x) - valley)

    return shape


def _narrow(place: float, gain: float, _: float) -> Shape:
    """Nothing but a peak whose standard deviation is a tenth of its place."""
    return lambda a: gain * float(np.exp(-0.5 * ((a / place - 1) / 0.1) ** 2))


def _below_zero(place: float, gain: float, _: float) -> Shape:
    return lambda a: gain * _hill(-a / place)


def _plateau(place: float, gain: float, _: float) -> Shape:
    return lambda a: gain * _hill(min(1.0, a / place))


def _far_apart(_place: float, gain: float, draw: float) -> Shape:
    """At 0.02 and at 40, one of them (either) the lower one, and nothing between."""
    near, far = (1.0, 0.6) if draw < 0.5 else (0.6, 1.0)
    return lambda a: gain * (near * _bump(a / 0.02, 0.7) + far * _bump(a / 40, 0.7))


_OLD = {"gains": (0.15, 0.45), "n_prompts": 512}
NEVER = (1e9, 1e9)
KINDS: Mapping[str, Kind] = {
    # the search was tuned on these
    "smooth": Kind(_smooth, **_OLD),  # type: ignore[arg-type]
    "cliff": Kind(_smooth, collapse=(1.05, 1.4), **_OLD),  # type: ignore[arg-type]
    "flat": Kind(_flat, **_OLD),  # type: ignore[arg-type]
    "no gain": Kind(_loses, **_OLD),  # type: ignore[arg-type]
    "two bumps": Kind(_two_bumps, **_OLD),  # type: ignore[arg-type]
    # held out, with a gain
    "heavy tails": Kind(_smooth, Noise(heavy=True)),
    "growing variance": Kind(_smooth, Noise(growth=0.5)),
    "narrow peak": Kind(_narrow),
    "below 0": Kind(_below_zero, places=(0.1, 0.8)),
    "plateau to 64": Kind(_plateau, collapse=NEVER),
    "0.02 and 40": Kind(_far_apart, places=(40.0, 40.0), collapse=NEVER),
    "half lose": Kind(_smooth, Noise(split=2.0)),
    "24 prompts": Kind(_smooth, n_prompts=24),
    # held out, with none
    "flat, heavy tails": Kind(_flat, Noise(heavy=True)),
    "flat, growing variance": Kind(_flat, Noise(growth=0.5)),
    "flat, alike": Kind(_flat, Noise(answer=0.5, chance=0.2)),  # neighbours share their luck: a search can climb it
    "flat to 64": Kind(_flat, collapse=NEVER),
    "flat, 24 prompts": Kind(_flat, n_prompts=24),
}
TUNED_ON = tuple(KINDS)[:5]
HELD_OUT = tuple(KINDS)[5:]


def simulate(kind: str, seed: int, n_prompts: int | None = None, draw: int = 0) -> World:
    """A landscape of a kind, with as many prompts as that kind has, or as many as are given."""
    drawn = KINDS[kind]
    n_prompts = n_prompts or drawn.n_prompts
    rng = np.random.default_rng((seed, 0))
    place = float(np.exp(rng.uniform(*np.log(drawn.places))))
    gain = float(rng.uniform(*drawn.gains))
    collapse = place * float(rng.uniform(*drawn.collapse))
    prompts = [Prompt(f"{seed}-{draw}-{i}", f"prompt {i} of draw {draw} of world {seed}") for i in range(n_prompts)]
    shape = drawn.shape(place, gain, float(rng.uniform()))
    world = World(kind, place, 0.0, collapse, shape, prompts, seed, draw, drawn.noise)
    lowest = min(place / 20, 0.005)
    dense = np.geomspace(lowest, max(64.0, place * 4), 6000)
    within = [float(a) for a in (*dense, *-dense[dense <= 1]) if a < collapse and a <= 64]
    world.gain = max(0.0, *map(world.truth, within))
    return world
