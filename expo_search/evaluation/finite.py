"""A reward -> the same, or an error that names its prompt: a mean over rewards with one that is no number is none."""

from __future__ import annotations

import math

from expo_search.contracts import Prompt
from expo_search.errors import RewardError

SEE_TO_SCORER = "see to what rates it; the same command goes on"


def check_finite(reward: float, prompt: Prompt, *, do: str) -> None:
    """Check one reward, of an answer to `prompt`; `do` is what helps where it fails.

    Raises:
        RewardError: it is not finite; names the prompt.
    """
    if not math.isfinite(reward):
        raise RewardError(where=f"reward of prompt {prompt.id}", found=str(reward), expected="a finite number", do=do)
