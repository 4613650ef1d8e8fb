"""Fakes of the two seams, Model and Scorer: every number they give follows from alpha and the prompt alone.

An answer of `FakeModel` is a text that says which alpha and which prompt made it, so that a reward can be computed
from what the database kept, by the tests as well as by `FakeScorer`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import expo_search as es
from expo_search.contracts import Completion, Prompt, Switch
from expo_search.evaluation.result import Evaluation
from expo_search.stats.paired import Estimate
from expo_search.weights.shape import shape_of

BEST = 0.37  # the alpha at which the fakes' mean reward is highest


class Killed(BaseException):
    """Stands for the end of the process: no `except Exception` may catch it."""


def make_prompts(n: int) -> list[Prompt]:
    return [Prompt(f"id-{i}", f"Question {i}?") for i in range(n)]


def unit(*parts: object) -> float:
    """A number in 0..1 that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6]) / 2**48


def expected_reward(alpha: float, prompt: Prompt, best: float = BEST) -> float:
    """A parabola over alpha with its top at `best`, above a level of the prompt's own (shared by all alphas)."""
    return 3.0 * unit(prompt.id) - 4.0 * (alpha - best) ** 2


def normal(*parts: object) -> float:
    """A draw of the standard normal distribution that depends on the parts alone."""
    return NormalDist().inv_cdf(unit(*parts) + 2**-49)


@dataclass
class FakeModel:
    """Answers in an order like an engine's. `asked` keeps every (alpha, prompt id) that it answered.

    Attributes:
        in_flight: how far an answer may fall behind prompts that were handed over after it.
        handed: ids of the prompts of each call. aborted: prompts that the caller did not wait for.
        weights: stands for the checkpoints; another string gives other fingerprints.
        collapse: from this alpha on every answer is cut off in the middle of a loop.
        stretch: how many times as long an alpha's answers are.
        dies_after: answers until `die` is called; None: never.
        restarts: how often it was started anew, after which it does not die any more but `dies_again` times.
    """

    weights: str = "w"
    restarts: int = 0
    dies_again: int = 0
    collapse: float = math.inf
    stretch: Callable[[float], float] = lambda _: 1.0
    dies_after: int | None = None
    die: Callable[[], None] = field(default=lambda: _raise(Killed()))
    asked: list[tuple[float, str]] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    in_flight: int = 8
    handed: list[list[str]] = field(default_factory=list)
    aborted: int = 0

    def materialize(self, alpha: float) -> Switch:
        self.alphas.append(alpha)
        return Switch(alpha, 0.0, hashlib.sha256(f"{self.weights} {alpha!r}".encode()).hexdigest()[:32])

    def restart(self) -> None:
        self.restarts += 1
        self.alphas.append(math.nan)  # of which no answer can be made: the alpha must be set anew
        self.dies_after = None if self.restarts > self.dies_again else len(self.asked) + 1

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:  # noqa: ARG002
        alpha = self.alphas[-1]
        assert not math.isnan(alpha)
        self.handed.append([p.id for p in prompts])
        ended = sorted(range(len(prompts)), key=lambda i: i + self.in_flight * unit("order", prompts[i].id))
        left = len(ended)
        try:
            for i in ended:
                prompt = prompts[i]
                if self.dies_after is not None and len(self.asked) >= self.dies_after:
                    self.die()
                self.asked.append((alpha, prompt.id))
                usual = 1 + int(9 * unit("length", prompt.id))
                said, cut, n_tokens = (
                    [alpha, prompt.id, *_numbers(alpha)],
                    usual > 8,
                    round(usual * self.stretch(alpha)),
                )
                if alpha >= self.collapse:
                    said, cut = [*said, "and on and on " * 20], True
                yield n_tokens
                left -= 1
                yield Completion(prompt, json.dumps(said), n_tokens, "length" if cut else "stop")
        except GeneratorExit:
            self.aborted += left
            raise


@dataclass
class FakeLayeredModel(FakeModel):
    """As `FakeModel`, and takes an alpha for each weight; its answers say the shape's numbers, too."""

    n_layers: int = 5


def _numbers(alpha: float) -> tuple[float, ...]:
    shape = shape_of(alpha)
    return () if shape is None else shape.numbers


@dataclass
class FakeScorer:
    """`expected_reward` of what the text says. `scored` keeps the texts.

    Attributes:
        truth: mean reward over that at alpha = 0, in place of the parabola.
        noise: standard deviation of a reward about it, drawn anew for each alpha and prompt.
        bend: what a shape's numbers add.
    """

    best: float = BEST
    truth: Callable[[float], float] | None = None
    noise: float = 0.0
    bend: Callable[[Sequence[float]], float] = lambda _: 0.0
    dies_after: int | None = None
    die: Callable[[], None] = field(default=lambda: _raise(Killed()))
    scored: list[str] = field(default_factory=list)

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        rewards = []
        for c in completions:
            if self.dies_after is not None and len(self.scored) >= self.dies_after:
                self.die()
            alpha, prompt_id, *more = json.loads(c.text)
            assert prompt_id == c.prompt.id, "the answer of another prompt"
            numbers = [x for x in more if not isinstance(x, str)]
            rewards.append(self.reward(alpha, c.prompt, *numbers))
            self.scored.append(c.text)
            on_scored(1)
        return rewards, 0

    def close(self) -> None:
        """As a loaded reward model's; there is nothing to let go."""

    def reward(self, alpha: float, prompt: Prompt, *numbers: float) -> float:
        if self.truth is None:
            level = expected_reward(alpha, prompt, self.best)
        else:
            level = 3.0 * unit(prompt.id) + self.truth(alpha)
        level += self.bend(numbers) if numbers else 0.0
        return level + (self.noise * normal("noise", alpha, prompt.id, *numbers) if self.noise else 0.0)


@dataclass
class FakeWatcher:
    """Adds up what it is told."""

    n_tokens: int = 0
    n_completions: int = 0
    n_scored: int = 0
    starts: list[tuple[int, float, int, int]] = field(default_factory=list)

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None:
        self.starts.append((trial, alpha, n_prompts, n_stored))

    def generated(self, n_tokens: int, n_completions: int) -> None:
        self.n_tokens += n_tokens
        self.n_completions += n_completions

    def scored(self, n: int) -> None:
        self.n_scored += n


def outcome(found: Sequence[Evaluation]) -> list[tuple[object, ...]]:
    """Everything but times."""
    return [(e.trial, e.alpha, e.reward, e.difference, e.mean_length, e.fingerprint) for e in found]


def opened(spec: es.StudySpec | str, **options: Any) -> es.Session:
    """A session in the working folder, without an engine."""
    return es.open_session(spec, "sqlite:///mine.db", model=FakeModel(), quiet=True, **options)


def make_evaluation(trial: int, alpha: float, difference: float, se: float, n: int = 100) -> Evaluation:
    """A whole evaluation whose control has mean reward 1."""
    gain = Estimate(difference, se, n)
    return Evaluation(
        trial=trial,
        alpha=alpha,
        reward=Estimate(1.0 + difference, 0.5, n),
        difference=gain,
        gain=gain,
        win_rate=Estimate(0.5, 0.05, n),
        length_controlled=gain,
        outcome="complete",
        broken=(),
        excess={},
        mean_length=12.5,
        length_ratio=1.0,
        share_cut=0.25,
        share_repeating=0.0,
        n_reward_cut=3,
        fingerprint=f"{trial:032x}",
        switch_s=0.1,
        generate_s=2.0,
        score_s=1.0,
        other_s=0.05,
        n_generated=1250,
        n_tokens=1250,
        covariances={},
    )


def end_process() -> None:
    """As `kill -9` does: nothing is flushed, no `finally` runs."""
    os._exit(9)


def _raise(error: BaseException) -> None:
    raise error
