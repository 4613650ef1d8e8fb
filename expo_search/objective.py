"""One alpha -> one `Evaluation`: materialize, generate, score, store, compare with alpha = 0.

The two seams of the project are here. `Model` and `Scorer` are all that this module and `search.py` know of vLLM
and transformers; tests put fakes in their place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from expo_search.errors import EngineError
from expo_search.evaluator import Completion, Switch
from expo_search.prompts import Prompt
from expo_search.statistics import Estimate, estimate, paired_difference
from expo_search.store import Part, Store

CONTROL = 0  # the number of the trial at alpha = 0, with which every other trial is paired
_FLUSH_S = 1.0


class Model(Protocol):
    """A model whose alpha can be changed while it runs."""

    def materialize(self, alpha: float) -> Switch:
        """Make the weights theta(alpha); from now on `generate` answers with them."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion | int]:
        """One completion a prompt, in any order, between numbers of tokens generated since the last item."""


class Scorer(Protocol):
    """Something that rates answers."""

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """Finite rewards in the order given, higher is better, and how many conversations had to be cut."""


class Watcher(Protocol):
    """What wants to know how an evaluation goes; see `progress.py`."""

    def started(self, trial: int, alpha: float, n_prompts: int, n_stored: int) -> None: ...
    def generated(self, n_tokens: int, n_completions: int) -> None: ...
    def scored(self, n: int) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """What one trial found out. Times in seconds; shares in 0..1; lengths in tokens; `fingerprint` of the weights."""

    trial: int
    alpha: float
    reward: Estimate
    difference: Estimate
    mean_length: float
    share_cut: float
    n_reward_cut: int
    fingerprint: str
    switch_s: float
    generate_s: float
    score_s: float
    other_s: float
    n_generated: int

    def attributes(self) -> dict[str, Any]:
        """As the trial's user attributes."""
        return {
            "reward": self.reward.mean,
            "reward_se": self.reward.se,
            "n_prompts": self.reward.n,
            "difference": self.difference.mean,
            "difference_se": self.difference.se,
            "mean_length": self.mean_length,
            "share_cut": self.share_cut,
            "n_reward_cut": self.n_reward_cut,
            "fingerprint": self.fingerprint,
            "switch_s": self.switch_s,
            "generate_s": self.generate_s,
            "score_s": self.score_s,
            "other_s": self.other_s,
            "n_generated_tokens": self.n_generated,
        }

    @classmethod
    def from_attributes(cls, trial: int, alpha: float, a: Mapping[str, Any]) -> Evaluation:
        """Inverse of `attributes`."""
        n = int(a["n_prompts"])
        return cls(
            trial,
            alpha,
            Estimate(a["reward"], a["reward_se"], n),
            Estimate(a["difference"], a["difference_se"], n),
            a["mean_length"],
            a["share_cut"],
            a["n_reward_cut"],
            a["fingerprint"],
            a["switch_s"],
            a["generate_s"],
            a["score_s"],
            a["other_s"],
            a["n_generated_tokens"],
        )


class Objective:
    """Evaluates alphas on one fixed list of prompts, keeping every answer and reward as soon as it is there."""

    def __init__(
        self,
        model: Model,
        scorer: Scorer,
        store: Store,
        prompts: Sequence[Prompt],
        watcher: Watcher,
        *,
        part: Part = "search",
    ) -> None:
        self._model, self._scorer, self._store, self._watcher = model, scorer, store, watcher
        self._prompts, self._part = prompts, part

    def evaluate(self, trial: int, alpha: float) -> Evaluation:
        """Evaluate one alpha, going on from what is stored of this trial.

        Raises:
            SettingsChanged: the weights at this alpha are not those of the stored answers.
        """
        started = time.perf_counter()
        stored = self._store.completions(trial, self._part, self._prompts)
        self._watcher.started(trial, alpha, len(self._prompts), len(stored))
        switch = self._model.materialize(alpha)
        self._store.pin_weights(trial, self._part, alpha, switch.fingerprint)
        t0 = time.perf_counter()
        n_generated = self._generate_missing(trial, {s.position for s in stored})
        t1 = time.perf_counter()
        n_reward_cut = self._score_missing(trial)
        t2 = time.perf_counter()
        answers = self._store.completions(trial, self._part, self._prompts)
        if len(answers) != len(self._prompts):
            raise EngineError(
                where=f"trial {trial}, alpha {alpha:g}",
                found=f"{len(answers)} answers to {len(self._prompts)} prompts",
                expected="one answer a prompt",
                do="run the same command again: it goes on with the missing ones",
            )
        rewards = {s.position: s.reward for s in answers if s.reward is not None}
        control = rewards if trial == CONTROL else self._store.rewards(CONTROL, self._part)
        return Evaluation(
            trial=trial,
            alpha=alpha,
            reward=estimate(list(rewards.values())),
            difference=paired_difference(rewards, control),
            mean_length=sum(s.completion.n_tokens for s in answers) / len(answers),
            share_cut=sum(s.completion.finish_reason == "length" for s in answers) / len(answers),
            n_reward_cut=n_reward_cut,
            fingerprint=switch.fingerprint,
            switch_s=switch.seconds,
            generate_s=t1 - t0,
            score_s=t2 - t1,
            other_s=time.perf_counter() - started - switch.seconds - (t2 - t0),
            n_generated=n_generated,
        )

    def _generate_missing(self, trial: int, done: set[int]) -> int:
        """Generate for the prompts without a stored answer; answers are stored at least once a second."""
        positions = {p: i for i, p in enumerate(self._prompts) if i not in done}
        fresh: dict[int, Completion] = {}
        flushed, n_tokens = time.monotonic(), 0
        try:
            for item in self._model.generate(list(positions)):
                if isinstance(item, int):
                    n_tokens += item
                    self._watcher.generated(item, 0)
                    continue
                fresh[positions[item.prompt]] = item
                self._watcher.generated(0, 1)
                if time.monotonic() - flushed > _FLUSH_S:
                    self._store.add_completions(trial, self._part, fresh)
                    fresh, flushed = {}, time.monotonic()
        finally:
            if fresh:
                self._store.add_completions(trial, self._part, fresh)
        return n_tokens

    def _score_missing(self, trial: int) -> int:
        unscored = [s for s in self._store.completions(trial, self._part, self._prompts) if s.reward is None]
        if not unscored:
            return 0
        rewards, n_cut = self._scorer.score([s.completion for s in unscored], self._watcher.scored)
        self._store.add_rewards(trial, self._part, {s.position: r for s, r in zip(unscored, rewards, strict=True)})
        return n_cut
