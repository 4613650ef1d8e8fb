"""Several reward models -> one reward an answer: each one's reward is kept, standardised, and combined.

A model's rewards are standardised by their mean and standard deviation over the answers at alpha = 0 to the search's
prompts, which trial 0 makes, so the combined reward is in standard deviations of those. This calibration is made once
and kept with the study; all that is rated later, trials, confirmations and comparisons, is combined by it.

Source: Coste, Anwar, Kirk and Krueger, "Reward Model Ensembles Help Mitigate Overoptimization" (ICLR 2024, arXiv
2310.02743), whose mean optimisation takes the mean over the models, and worst-case optimisation the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from expo_search.config.spec import Combine
from expo_search.contracts import Completion, EnsembleScorer, Part
from expo_search.errors import RewardError
from expo_search.evaluation.result import CONTROL
from expo_search.store.attributes import StudyAttributes
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store

_ROUNDING = 1e-6  # of the largest reward: a spread below it is a model's rounding, not its opinion


@dataclass(frozen=True)
class Member:
    """One of several reward models.

    Attributes:
        key: of its rewards in the database. name: as people are told it.
    """

    key: str
    name: str


@dataclass(frozen=True)
class Members:
    """The reward models of a study, in their order, and how their rewards are combined."""

    models: tuple[Member, ...]
    combine: Combine


@dataclass(frozen=True)
class Standard:
    """One reward model's rewards at alpha = 0 on the search's prompts: their mean and sample standard deviation."""

    key: str
    name: str
    mean: float
    sd: float

    @classmethod
    def of(cls, member: Member, rewards: Sequence[float]) -> Standard:
        """From its rewards of alpha = 0's answers.

        Raises:
            RewardError: they are all the same, so nothing can be told in units of their spread.
        """
        mean = fmean(rewards)
        spread = max(rewards) - min(rewards)
        if spread <= _ROUNDING * max(map(abs, rewards)):
            raise RewardError(
                where=f"reward model {member.name}",
                found=f"the same reward, {mean:.6g}, for all {len(rewards)} answers at alpha = 0",
                expected="rewards that differ, by whose spread they are standardised",
                do="leave it out, or take another one; --study-name begins a new study",
            )
        return cls(member.key, member.name, mean, math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / _df(rewards)))

    def standardised(self, reward: float) -> float:
        """A reward in standard deviations over the mean at alpha = 0."""
        return (reward - self.mean) / self.sd


def _df(rewards: Sequence[float]) -> int:
    return max(1, len(rewards) - 1)


@dataclass(frozen=True)
class Calibration:
    """What turns several reward models' rewards of an answer, in their order, into one."""

    standards: tuple[Standard, ...]
    combine: Combine

    def combined(self, rewards: Sequence[float]) -> float:
        """The mean or the least of an answer's standardised rewards."""
        values = [s.standardised(r) for s, r in zip(self.standards, rewards, strict=True)]
        return fmean(values) if self.combine == "mean" else min(values)

    def as_json(self) -> list[dict[str, Any]]:
        """As a study keeps it; how rewards are combined is among its settings."""
        return [asdict(s) for s in self.standards]


def read_calibration(stored: Sequence[Mapping[str, Any]] | None, combine: Combine) -> Calibration | None:
    """The calibration that a study keeps; None before alpha = 0 is rated."""
    return None if stored is None else Calibration(tuple(Standard(**s) for s in stored), combine)


class Ensemble:
    """The rewards of a study that several reward models rate: each one's, and the combined ones once there are any.

    Every model's rewards of a block of answers are kept in one transaction, before they are combined. Those of alpha =
    0 wait for the calibration, which needs all of them; what a killed run had rated is combined when its trial goes on,
    and never rated again.
    """

    def __init__(self, store: Store, members: Members) -> None:
        self._store, self._members, self._kept = store, members, CheckStore(store)
        self._calibration = read_calibration(store.attributes.calibration, members.combine)

    def waiting(self, trial: int, part: Part) -> set[int]:
        """Positions whose answers are rated and, before there is a calibration, not combined yet.

        With a calibration there are none: what a killed run left is combined now.
        """
        combined = self._store.rated(trial, part)
        left = {p: rewards for p, rewards in self.rewards(trial, part).items() if p not in combined}
        if self._calibration is None or not left:
            return set(left)
        self._combine(trial, part, left)
        return set()

    def keep(self, trial: int, part: Part, rewards: Mapping[int, Sequence[float]]) -> dict[int, float]:
        """Keep each model's rewards by position; the combined ones, none before there is a calibration."""
        by_model = {
            member.key: {position: each[i] for position, each in rewards.items()}
            for i, member in enumerate(self._members.models)
        }
        self._kept.add_all(by_model, trial, part)
        return {} if self._calibration is None else self._combine(trial, part, rewards)

    def calibrate(self, trial: int, part: Part) -> dict[int, float]:
        """Make the calibration from the rewards of alpha = 0, unless there is one; these combined.

        Raises:
            RewardError: a model whose rewards are all the same.
        """
        if self._calibration is not None:
            return {}
        assert (trial, part) == (CONTROL, "search"), "alpha = 0 is rated first"
        rewards = self.rewards(trial, part)
        by_model = zip(*(rewards[position] for position in sorted(rewards)), strict=True)
        standards = [Standard.of(m, of_one) for m, of_one in zip(self._members.models, by_model, strict=True)]
        made = Calibration(tuple(standards), self._members.combine)
        self._store.keep(StudyAttributes(calibration=made.as_json()))
        self._calibration = made
        return self._combine(trial, part, rewards)

    def rewards(self, trial: int, part: Part) -> dict[int, tuple[float, ...]]:
        """Position -> each model's reward, in their order, of the answers that all of them have rated."""
        return rewards_of(self._kept, [member.key for member in self._members.models], trial, part)

    def _combine(self, trial: int, part: Part, rewards: Mapping[int, Sequence[float]]) -> dict[int, float]:
        assert self._calibration is not None
        combined = {position: self._calibration.combined(each) for position, each in rewards.items()}
        self._store.add_rewards(trial, part, combined)
        return combined


def rewards_of(kept: CheckStore, keys: Sequence[str], trial: int, part: Part) -> dict[int, tuple[float, ...]]:
    """Position -> the reward by each model, by their keys' order, of the answers that all of them have rated."""
    by_model = [kept.rewards(key, trial, part) for key in keys]
    common = sorted(set.intersection(*(set(rewards) for rewards in by_model)))
    return {position: tuple(rewards[position] for rewards in by_model) for position in common}


class RewardModels:
    """Several loaded scorers as one `EnsembleScorer`: each rates every answer, one after the other."""

    def __init__(self, scorers: Sequence[Any]) -> None:
        """`scorers`: of `Scorer`, with a `close`."""
        self._scorers = scorers

    def score_each(
        self, completions: Sequence[Completion], on_scored: Callable[[int], None]
    ) -> tuple[list[tuple[float, ...]], int]:
        """As `EnsembleScorer.score_each`; the last one's batches are told to `on_scored`."""
        last = len(self._scorers) - 1
        rated = [s.score(completions, on_scored if i == last else lambda _: None) for i, s in enumerate(self._scorers)]
        return list(zip(*(rewards for rewards, _ in rated), strict=True)), max(n_cut for _, n_cut in rated)

    def close(self) -> None:
        """Let all of them go."""
        for scorer in self._scorers:
            scorer.close()


class CombinedScorer:
    """Several reward models as one `Scorer`, by a calibration; keeps nothing."""

    def __init__(self, scorer: EnsembleScorer, calibration: Calibration) -> None:
        self._scorer, self._calibration = scorer, calibration

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """As `Scorer.score`."""
        rewards, n_cut = self._scorer.score_each(completions, on_scored)
        return [self._calibration.combined(each) for each in rewards], n_cut
