"""What one trial found out: `Evaluation`, which is also what a trial's attributes in Optuna hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from expo_search.stats.paired import (
    Estimate,
)

CONTROL = 0  # the number of the trial at alpha = 0, with which every other trial is paired
Outcome = Literal["complete", "hopeless", "degenerate", "enough"]


@dataclass(frozen=True)
class Evaluation:
    """What one trial found out, over the prompts it was evaluated on.

    Attributes:
        reward: mean reward.
        difference: reward less that of alpha = 0, paired by prompt.
        gain: the study's objective against alpha = 0, 0 where there is none; this is what Optuna is told.
        win_rate: share of prompts whose reward is higher than at alpha = 0.
        length_controlled: the difference at equal lengths (see `stats.paired.prompt_gains`).
        outcome: "complete", or why the trial was stopped early: "hopeless", "degenerate", or "enough" was learnt.
        broken: guardrails that it breaks; such a trial cannot win. `excess`: by how much over each limit, or under.
        mean_length: of the answers, in tokens; `length_ratio` is that over alpha = 0's on the same prompts.
        share_cut, share_repeating: of answers that ran to max_tokens, and that say the same over and over; 0..1.
        n_reward_cut: conversations that were cut for the reward model, of those rated in the run that finished the
            trial: how long a conversation is to the reward model is not kept with an answer.
        fingerprint: of the weights.
        switch_s, generate_s, score_s, other_s: seconds, of the run that finished the trial.
        n_tokens: generated for this trial, whichever run did; `n_generated` in the run that finished it.
        covariances: of this trial's gain with those of earlier trials (key: their number), which share its prompts.
        n_parallel: how many engines answered at a time in that run, each with devices of its own.
    """

    trial: int
    alpha: float
    reward: Estimate
    difference: Estimate
    gain: Estimate
    win_rate: Estimate
    length_controlled: Estimate
    outcome: Outcome
    broken: tuple[str, ...]
    excess: Mapping[str, float]
    mean_length: float
    length_ratio: float
    share_cut: float
    share_repeating: float
    n_reward_cut: int
    fingerprint: str
    switch_s: float
    generate_s: float
    score_s: float
    other_s: float
    n_generated: int
    n_tokens: int
    covariances: Mapping[str, float]
    n_parallel: int = 1

    def __str__(self) -> str:
        """One line, for people."""
        gain = "the control" if self.trial == CONTROL else f"gain {self.gain.mean:+.4f} ± {self.gain.se:.4f}"
        reward = f"reward {self.reward.mean:.4f}"
        return f"trial {self.trial}: alpha {self.alpha:.4g}, {reward}, {gain} on {self.gain.n} prompts"

    @property
    def stopped_early(self) -> bool:
        """Whether only a part of the prompts was answered; `outcome` says why."""
        return self.outcome != "complete"

    @property
    def remark(self) -> str:
        """What every view of a trial says beside its numbers: why it was stopped early, and which guardrails it broke.

        Plain text, empty where there is nothing to say: "hopeless; broke cut off; broke length".
        """
        return "; ".join([*([self.outcome] if self.stopped_early else []), *(f"broke {name}" for name in self.broken)])

    def attributes(self) -> dict[str, Any]:
        """As the trial's user attributes: an estimate as NAME and NAME_se, with n_prompts for all of them."""
        flat: dict[str, Any] = {"n_prompts": self.reward.n}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Estimate):
                flat |= {f.name: value.mean, f"{f.name}_se": value.se}
            elif f.name not in ("trial", "alpha"):
                flat[f.name] = list(value) if isinstance(value, tuple) else value
        return flat

    @classmethod
    def from_attributes(cls, trial: int, alpha: float, a: Mapping[str, Any]) -> Evaluation:
        """Inverse of `attributes`."""
        values: dict[str, Any] = {"trial": trial, "alpha": alpha}
        for f in fields(cls):
            if f"{f.name}_se" in a:
                values[f.name] = Estimate(a[f.name], a[f"{f.name}_se"], int(a["n_prompts"]))
            elif f.name not in values and (f.name in a or f.default is MISSING):
                values[f.name] = tuple(a[f.name]) if f.name == "broken" else a[f.name]
        return cls(**values)
