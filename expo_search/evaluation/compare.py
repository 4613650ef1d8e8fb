"""A live model and alphas -> answers side by side, with their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from expo_search.contracts import Completion, Model, Prompt, Scorer


@dataclass(frozen=True)
class Rewarded:
    """One answer and its reward."""

    alpha: float
    completion: Completion
    reward: float

    def as_json(self) -> dict[str, Any]:
        c = self.completion
        return {
            "alpha": self.alpha,
            "answer": c.text,
            "reward": self.reward,
            "tokens": c.n_tokens,
            "finish_reason": c.finish_reason,
        }


def compare(
    model: Model,
    scorer: Scorer,
    alphas: Sequence[float],
    prompts: Sequence[Prompt],
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[list[Rewarded]]:
    """Answer every prompt at every alpha, with the same sampling seed; shape (prompts, alphas)."""
    columns = []
    for alpha in alphas:
        switch = model.materialize(alpha)
        found = {c.prompt: c for c in model.generate(prompts, seed) if isinstance(c, Completion)}
        rewards, _ = scorer.score([found[p] for p in prompts], lambda _: None)
        say(f"alpha = {alpha:g}: switched in {switch.seconds:.2f} s, {len(prompts)} answers")
        columns.append([Rewarded(alpha, found[p], r) for p, r in zip(prompts, rewards, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]
