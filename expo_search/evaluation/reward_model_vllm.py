"""completions -> rewards: the sequence classifier in an engine of its own, which is started elsewhere.

The sequences are those of `reward_model.py`; the values differ from its by the rounding of other matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from expo_search.config.spec import RewardSpec
from expo_search.dtypes import reward_arithmetic
from expo_search.evaluation.conversation_scorer import ConversationScorer
from expo_search.evaluation.reward_model import load_classifier


class Rater(Protocol):
    """What gives each token sequence its score; `engine/pooling.py` has one."""

    def rate(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[float]]]:
        """Batches of (rows of `sequences`, their scores), every row once, in any order."""

    def close(self) -> None:
        """End it."""


class VllmRewardModel(ConversationScorer):
    """As `SequenceRewardModel`, served by vLLM. `close` ends its process.

    Raises (on construction):
        RewardError: more than one label, weights that are missing, or what `start` raises.
    """

    def __init__(
        self, path: Path, spec: RewardSpec, start: Callable[[str, int], Rater], *, trust_remote_code: bool = False
    ) -> None:
        """`start`: starts the engine that computes in a dtype, as torch spells it, and takes so many tokens at most."""
        import torch

        super().__init__(path, spec, trust_remote_code=trust_remote_code)
        # vLLM 0.32 also starts where a file lacks the head; transformers reads the header of the file alone here
        config = load_classifier(path, trust_remote_code=trust_remote_code, device_map="meta").config
        self._keep_within(getattr(config.get_text_config(), "max_position_embeddings", None))
        self._pad = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        self.dtype = reward_arithmetic(spec.arithmetic, cuda=torch.cuda.is_available())
        self._engine = start(self.dtype, self._cap)

    def close(self) -> None:
        """Stop the engine and end its process."""
        self._engine.close()

    def _rate(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], list[float]]]:
        return self._engine.rate([self._without_padding(s) for s in sequences])

    def _without_padding(self, sequence: list[int]) -> list[int]:
        """Up to the last token that is not padding, where transformers reads the score; a template may end in one."""
        end = len(sequence)
        while end > 1 and sequence[end - 1] == self._pad:
            end -= 1
        return sequence[:end]
