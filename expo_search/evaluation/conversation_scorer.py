"""completions -> token sequences, cut to a cap, and rewards that are checked: what every reward model of ours shares.

A subclass says how sequences are rated, in whatever batches suit it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from expo_search.config.spec import RewardSpec
from expo_search.contracts import Completion
from expo_search.evaluation.finite import check_finite
from expo_search.inputs.chat_template import encode_chat, load_tokenizer


class ConversationScorer(ABC):
    """A reward model that reads (user, assistant) conversations in its own chat template; higher is better."""

    def __init__(self, path: Path, spec: RewardSpec, *, trust_remote_code: bool) -> None:
        self._spec = spec
        self._cap = spec.max_tokens
        self.tokenizer = load_tokenizer(str(path), trust_remote_code=trust_remote_code)

    def score(self, completions: Sequence[Completion], on_scored: Callable[[int], None]) -> tuple[list[float], int]:
        """Rewards in the order given, and how many conversations were cut. `on_scored` gets each batch's size.

        A conversation above the cap, or the reward model's own context, loses the end of its answer.

        Raises:
            RewardError: a reward that is not finite; names the prompt. Or the reward model failed.
        """
        sequences = [self._encode(c) for c in completions]
        n_cut = sum(len(s) > self._cap for s in sequences)
        rewards = [math.nan] * len(sequences)
        for rows, values in self._rate([s[: self._cap] for s in sequences]):
            for row, value in zip(rows, values, strict=True):
                check_finite(value, completions[row].prompt, do="check the reward model's dtype and the prompt")
                rewards[row] = value
            if on_scored is not None:
                on_scored(len(rows))
        return rewards, n_cut

    def close(self) -> None:
        """Free what it rates with, whoever still refers to this object; the default holds nothing."""
        return

    @abstractmethod
    def _rate(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], list[float]]]:
        """Batches of (rows of `sequences`, their rewards), every row once, in any order."""

    def _keep_within(self, positions: int | None) -> None:
        """Lower the cap to the reward model's own context, where its config names one."""
        self._cap = min(self._cap, positions or self._cap)

    def _encode(self, completion: Completion) -> list[int]:
        conversation = [
            {"role": "user", "content": completion.prompt.text},
            {"role": "assistant", "content": completion.text},
        ]
        return encode_chat(self.tokenizer, conversation, add_generation_prompt=False)
