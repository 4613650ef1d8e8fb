"""A live model and alphas -> answers side by side, with their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expo_search.contracts import Completion, Model, PairwiseScorer, Prompt, Scorer
from expo_search.evaluation.pairwise import AgainstControl
from expo_search.text import clean

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rewarded:
    """One answer and its reward."""

    alpha: float
    completion: Completion
    reward: float

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        c = self.completion
        return {
            "alpha": self.alpha,
            "answer": c.text,
            "reward": self.reward,
            "tokens": c.n_tokens,
            "finish_reason": c.finish_reason,
        }


@dataclass(frozen=True)
class Comparison:
    """Answers to prompts at several alphas; `rows` has shape (prompts, alphas)."""

    prompts: Sequence[Prompt]
    rows: Sequence[Sequence[Rewarded]]

    def to_dataframe(self) -> pd.DataFrame:
        """One row an answer: prompt, alpha, answer, reward, tokens, finish_reason."""
        import pandas as pd

        pairs = zip(self.prompts, self.rows, strict=True)
        return pd.DataFrame([{"prompt": p.text, **answer.as_json()} for p, row in pairs for answer in row])

    def _repr_html_(self) -> str:
        """As a notebook shows it: a row a prompt, a column an alpha; every text is escaped."""
        import pandas as pd

        table = pd.DataFrame(
            [
                {"prompt": clean(p.text)}
                | {f"alpha = {a.alpha:g}": f"[{a.reward:+.3f}] {clean(a.completion.text)}" for a in row}
                for p, row in zip(self.prompts, self.rows, strict=True)
            ]
        )
        with pd.option_context("display.max_colwidth", None):
            return str(table.to_html(index=False, escape=True))


def compare(
    model: Model,
    scorer: Scorer | PairwiseScorer,
    alphas: Sequence[float],
    prompts: Sequence[Prompt],
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Answer every prompt at every alpha, each prompt with one sampling seed, and rate the answers.

    A scorer of pairs compares them with those at alpha = 0, which is answered too, and first.
    """
    wanted, columns = list(dict.fromkeys(alphas)), {}
    control: dict[Prompt, Completion] = {}
    in_turn = wanted
    if isinstance(scorer, PairwiseScorer):
        in_turn = [0.0, *(alpha for alpha in wanted if alpha != 0)]
    for alpha in in_turn:
        switch = model.materialize(alpha)
        answers = {c.prompt: c for c in model.generate(prompts, seed) if isinstance(c, Completion)}
        if isinstance(scorer, PairwiseScorer):
            control = control or answers
            rates: Scorer = AgainstControl(scorer, control)
        else:
            rates = scorer
        rewards, _ = rates.score([answers[p] for p in prompts], lambda _: None)
        say(f"alpha = {alpha:g}: switched in {switch.seconds:.2f} s, {len(prompts)} answers")
        columns[alpha] = [Rewarded(alpha, answers[p], r) for p, r in zip(prompts, rewards, strict=True)]
    return Comparison(prompts, [list(row) for row in zip(*(columns[alpha] for alpha in wanted), strict=True)])
