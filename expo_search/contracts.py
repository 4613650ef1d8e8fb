"""The seam between the search and whatever answers and rates: prompts, completions, switches, and Protocols.

`objective` and the search know a model and a scorer only through this module; anything with these methods can take
their places. It imports nothing of the package and nothing heavy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Part = Literal["search", "confirm"]  # which prompts: those of the search, or the fresh ones of a confirmation


@dataclass(frozen=True)
class Prompt:
    """One request: the first user turn of a conversation. `id` is unique in a data set."""

    id: str
    text: str

    def seed(self, study_seed: int) -> int:
        """Sampling seed, 0 .. 2^31 - 1: the same at every alpha (common random numbers), other for other prompts."""
        return int.from_bytes(hashlib.blake2b(f"{study_seed}:{self.id}".encode(), digest_size=4).digest()) >> 1


@dataclass(frozen=True)
class Request(Prompt):
    """A prompt of a benchmark, which says itself how it is answered; a model's own sampling is for plain prompts.

    Attributes:
        before: earlier turns of the conversation, (role, content) each; `text` is then its last user turn.
        is_raw: `text` goes to the model as it is, not in its chat template, and is gone on with.
        max_tokens: of the answer; fewer where the context ends before.
        stop: texts that end the answer, and are no part of it.
        ids: token ids in the place of `text` and of everything before it.
        n_rated: no answer is generated; of so many of the last `ids` the log-probability is wanted (`Likelihood`).
    """

    before: tuple[tuple[str, str], ...] = ()
    is_raw: bool = False
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    n_rated: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, in the order of its turns."""
        return [{"role": role, "content": said} for role, said in (*self.before, ("user", self.text))]


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is "stop", or "length" when it was cut off at max_tokens."""

    prompt: Prompt
    text: str
    n_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Likelihood(Completion):
    """What comes of a `Request` with `n_rated`: the natural log-probability of these tokens after the others.

    `is_greedy`: each of them is the likeliest one where it stands.
    """

    log_probability: float
    is_greedy: bool


@dataclass(frozen=True)
class Switch:
    """One change of alpha: what it cost and what is live now (see `weights/fingerprint.py`)."""

    alpha: float
    seconds: float
    fingerprint: str


@dataclass(frozen=True)
class Rated:
    """One answer, as statistics see it: its reward and its length in tokens."""

    reward: float
    length: int


class Model(Protocol):
    """A model whose alpha can be changed while it runs. Its methods may raise `EngineDied`."""

    def materialize(self, alpha: float) -> Switch:
        """Make the weights theta(alpha); from now on `generate` answers with them."""

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        """One completion a prompt, in any order, between numbers of tokens generated since the last item.

        Each is drawn with `prompt.seed(seed)`, at every alpha.
        """

    def restart(self) -> None:
        """Start anew after an `EngineDied`; the next call is `materialize`."""


@runtime_checkable
class LayeredModel(Model, Protocol):
    """A model of one's own that takes an alpha for each weight: `materialize` then asks `weights.shape.alpha_of`."""

    @property
    def n_layers(self) -> int:
        """How many layers it has."""


@runtime_checkable
class AheadModel(Model, Protocol):
    """A model that can begin with the alpha that may come next, beside those answers that are wanted now."""

    def answer_ahead(self, alpha: float, prompts: Sequence[Prompt], seed: int) -> None:
        """Begin to answer these as `generate` would after `materialize(alpha)`; called before a `generate`.

        The next `materialize` takes over what has come of it, where it is of this alpha, and else drops it.
        """


class Scorer(Protocol):
    """Something that rates answers."""

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """Finite rewards in the order given, higher is better, and how many conversations had to be cut."""


@runtime_checkable
class EnsembleScorer(Protocol):
    """Several scorers that rate the same answers, in the place of a `Scorer`."""

    def score_each(
        self, completions: Sequence[Completion], on_scored: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], int]:
        """Each one's finite reward of each completion, in the orders given; most conversations that one had to cut.

        `on_scored` gets numbers of answers that all of them have rated.
        """


@runtime_checkable
class PairwiseScorer(Protocol):
    """Something that says which of two answers to one prompt is better, in the place of a `Scorer`: a judge.

    It is called from another thread than the one that searches, with one batch at a time.
    """

    def judge(
        self, completions: Sequence[Completion], control: Sequence[Completion], on_scored: Callable[[int], None]
    ) -> list[float]:
        """1 for each completion that is better than the control's at its place, 0 for a worse one, 1/2 for a tie.

        The control's are the answers at alpha = 0 to the same prompts. `on_scored` gets numbers of pairs.
        """


class Engine(Model, Protocol):
    """A model that takes more prompts while others are under way, one step at a time: what a pool is made of."""

    @property
    def n_at_once(self) -> int:
        """How many prompts it answers at once, at most; more than that wait in it."""

    def add(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Begin to answer these, each drawn with `prompt.seed(seed)`."""

    def step(self) -> list[Completion | int]:
        """Go on with all that is under way: the number of tokens generated, and the completions that have ended."""

    def abort(self) -> None:
        """Drop all that is under way."""

    def close(self) -> None:
        """Stop, and free its memory."""


@runtime_checkable
class BackgroundScorer(Scorer, Protocol):
    """A scorer that rates answers while others are generated."""

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[float], int]]:
        """As `score`, in the background."""


@runtime_checkable
class BackgroundEnsembleScorer(EnsembleScorer, Protocol):
    """Several scorers that rate answers while others are generated."""

    def begin(self, completions: Sequence[Completion]) -> Future[tuple[list[tuple[float, ...]], int]]:
        """As `score_each`, in the background."""


class Watcher(Protocol):
    """What wants to know how an evaluation goes; see `session/progress.py`."""

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None:
        """A trial begins, of whose `n_prompts` answers `n_stored` are stored already."""

    def generated(self, n_tokens: int, n_completions: int) -> None:
        """The model generated this many tokens since the last call, and finished this many answers."""

    def scored(self, n: int) -> None:
        """The scorer rated n more answers."""


class Speaker(Protocol):
    """A model that can hold a conversation."""

    def materialize(self, alpha: float) -> Switch:
        """Make the weights theta(alpha)."""

    def stream(
        self, messages: Sequence[Mapping[str, str]], max_tokens: int | None = None
    ) -> Generator[str, None, None]:
        """The answer to the last turn, piece by piece; closing the generator stops it."""
