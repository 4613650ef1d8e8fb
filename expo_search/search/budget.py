"""What a search may spend -> whether one more trial fits in, with the confirmation that must follow it.

Tokens are of the study's answers, of all its runs together. Seconds are of one run, from where its clock began, the
engine's start among them. What a trial and a confirmation will cost is told from the trials that there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from expo_search.evaluation.result import Evaluation

AT_TWO_ALPHAS = 2  # a confirmation answers its prompts at alpha = 0 and at the winner's


@dataclass(frozen=True)
class Budget:
    """A limit on tokens, on seconds, or on both; None: no limit.

    Attributes:
        n_confirm: prompts of the confirmation for which enough must be left.
        spent_before: tokens of the study's answers that are in no finished trial (an earlier confirmation's).
        n_answered: of the confirmation's prompts those that alpha = 0 has answered, in an earlier confirmation.
        clock: gives seconds; `began`: what it gave when the run began.
    """

    tokens: int | None = None
    seconds: float | None = None
    n_confirm: int = 0
    spent_before: int = 0
    n_answered: int = 0
    clock: Callable[[], float] = time.monotonic
    began: float = field(default_factory=time.monotonic)

    def kept(self, n_trials: int) -> dict[str, float | None]:
        """What a study keeps of it while a search for at most n_trials is not at its end."""
        return {"tokens": self.tokens, "seconds": self.seconds, "trials": n_trials}

    def fits(self, evaluated: Sequence[Evaluation], n_prompts: int) -> bool:
        """Whether a trial on n_prompts can be paid, and the confirmation after it. Before any trial one is tried."""
        to_confirm = AT_TWO_ALPHAS * self.n_confirm - min(self.n_answered, self.n_confirm)
        return not evaluated or self._prompts_left(evaluated) >= n_prompts + to_confirm

    def n_confirmable(self, evaluated: Sequence[Evaluation], most: int, answered: Sequence[int] = (0, 0)) -> int:
        """Of `most` prompts those that what is left pays a confirmation on.

        `answered`: on how many of them there are answers, at each of the two alphas.
        """
        if not evaluated:
            return 0
        left, lacking = self._prompts_left(evaluated), sorted(answered)
        while len(lacking) > 1 and left + sum(lacking) < len(lacking) * lacking[-1]:  # where more are answered already
            lacking.pop()
        return int(max(0.0, min(most, (left + sum(lacking)) / len(lacking))))

    def spent(self, evaluated: Sequence[Evaluation]) -> str:
        """What was spent, of what, for people."""
        parts = []
        if self.tokens is not None:
            parts.append(f"{self._tokens_spent(evaluated):,} of {self.tokens:,} tokens")
        if self.seconds is not None:
            parts.append(f"{(self.clock() - self.began) / 60:.1f} of {self.seconds / 60:.1f} minutes")
        return " and ".join(parts)

    def _tokens_spent(self, evaluated: Sequence[Evaluation]) -> int:
        return self.spent_before + sum(e.n_tokens for e in evaluated)

    def _prompts_left(self, evaluated: Sequence[Evaluation]) -> float:
        """On how many prompts an alpha can still be evaluated: by the longest answers of a whole trial so far."""
        whole = [e for e in evaluated if not e.stopped_early and not e.broken]
        per_prompt = max((e.mean_length for e in whole), default=evaluated[0].mean_length)
        left = []
        if self.tokens is not None:
            left.append((self.tokens - self._tokens_spent(evaluated)) / max(per_prompt, 1.0))
        if self.seconds is not None:
            took = sum(e.switch_s + e.generate_s + e.score_s + e.other_s for e in evaluated)
            generated = sum(e.n_generated for e in evaluated)
            # answers that were read again tell nothing of how long others take
            per_s = generated / took if took > 0 and generated else float("inf")
            left.append((self.seconds - (self.clock() - self.began)) * per_s / max(per_prompt, 1.0))
        return min(left, default=float("inf"))


def more(evaluated: Sequence[Evaluation], gain: float | None) -> str:
    """What going on would bring, for people: the gain that the fit expects, and what one more whole trial costs.

    Args:
        evaluated: at least one trial. `gain`: `proposal.expected_regret`; None where nothing tells it.
    """
    whole = max(e.n_tokens for e in evaluated if not e.stopped_early)
    brings = "costs" if gain is None else f"is expected to add {gain:.2g} to the gain, at"
    return f"going on {brings} {whole:,} tokens a trial on all prompts"
