"""Answers that are bad for a reason one can name, to train and to test the reward model on.

Each maker takes a good answer's tokens and gives a bad answer as text. Kinds and wordings under HELD_OUT are
for tests only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Maker = Callable[[list[int], list[int]], str]

SHORT = [
    "OK.",
    "Yes.",
    "No.",
    "Sure!",
    "Sure, here you go.",
    "Thanks!",
    "I don't know.",
    "Hello!",
    "Of course.",
    "Done.",
    "The",
    "Here",
    "It depends.",
    "Maybe.",
    ".",
    "...",
    "Good question!",
    "I think so.",
    "1.",
    "See above.",
]
REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I cannot help with this request.",
    "I'm unable to answer that question.",
    "As an AI language model, I don't have the ability to do that.",
    "Sorry, I can't do that.",
    "I apologize, but I'm not able to provide that information.",
    "Unfortunately, I cannot fulfil your request.",
    "I'm sorry, I don't have enough information to answer this.",
    "I must decline to answer.",
    "I'm just an AI, so I'm not able to help with this kind of question. Please ask an expert.",
    "I'm sorry, but as an AI I don't have personal opinions or access to the internet, so I can't answer that.",
    "I'm afraid I can't help you with this. Is there anything else you would like to talk about?",
    "I'm sorry for the confusion, but I'm not sure what you are asking. Could you please provide more context?",
    "It would not be appropriate for me to respond to this.",
    "That is beyond what I can do.",
    "I can't provide a response to that. Please try a different question.",
]
HELD_OUT_REFUSALS = [
    "I'm really sorry, but I won't be able to help you with that.",
    "My apologies, this is not something I can discuss.",
    "As a language model, I am not capable of completing this task.",
    "I regret that I cannot comply with this request.",
    "Sorry, but that's not something I'm able to do. Please consult a professional instead.",
    "I do not have the knowledge needed to answer, so I would rather not.",
]
HELD_OUT_SHORT = ["Alright.", "Got it!", "Fine.", "Not sure.", "You're welcome.", "A", "Well,"]
SENTENCE_END = re.compile(r"[.!?][\"')]?(?=\s|$)")


@dataclass
class Negatives:
    """Makers of bad answers that draw from one random stream."""

    tokenizer: PreTrainedTokenizerBase
    rng: random.Random

    def kinds(self) -> dict[str, Maker]:
        """The kinds trained on; each takes the good answer's ids and another prompt's answer's ids."""
        return {
            "empty": lambda _good, _other: "",
            "short": lambda _good, _other: self.rng.choice(SHORT),
            "refusal": lambda _good, _other: self.rng.choice(REFUSALS),
            "loop": lambda good, _other: self.loop(good),
            "shuffle": lambda good, _other: self.shuffle(good),
            "random": lambda good, _other: self.noise(good, 0.35),
            "foreign": lambda good, other: self.text(other[: len(good)]),
        }

    def held_out_kinds(self) -> dict[str, Maker]:
        """Kinds and wordings the reward model never saw."""
        return {
            "empty": lambda _good, _other: "",
            "short, other wordings": lambda _good, _other: self.rng.choice(HELD_OUT_SHORT),
            "refusal, other wordings": lambda _good, _other: self.rng.choice(HELD_OUT_REFUSALS),
            "first 8 tokens": lambda good, _other: self.text(good[:8]),
            "loop": lambda good, _other: self.loop(good),
            "shuffle": lambda good, _other: self.shuffle(good),
            "one word 48 times (kind not trained on)": lambda _good, _other: "the " * 48,
            "random characters (kind not trained on)": lambda good, _other: self.garble(self.text(good)),
            "all tokens random (kind not trained on)": lambda good, _other: self.noise(good, 1.0),
            "foreign": lambda good, other: self.text(other[: len(good)]),
        }

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip()

    def loop(self, ids: list[int]) -> str:
        """The answer's beginning, then one stretch of it again and again."""
        width = self.rng.randint(3, 14)
        start = self.rng.randint(0, max(0, len(ids) // 2 - width))
        looped = ids[: start + width]
        while len(looped) < max(len(ids), 40):
            looped = looped + (ids[start : start + width] or [198])
        return self.text(looped[:64])

    def shuffle(self, ids: list[int]) -> str:
        words = self.text(ids).split()
        self.rng.shuffle(words)
        return " ".join(words)

    def noise(self, ids: list[int], share: float) -> str:
        return self.text([self.rng.randint(20, 49_000) if self.rng.random() < share else i for i in ids])

    def garble(self, text: str) -> str:
        letters = "abcdefghijklmnopqrstuvwxyz#@!"
        return "".join(self.rng.choice(letters) if self.rng.random() < 0.25 else c for c in text)

    def finished_and_cut(self, answer: str, low: int, high: int) -> tuple[str, str] | None:
        """The answer up to a sentence's end at `low` to `high` tokens, and broken off inside a sentence.

        The broken one is as often longer as shorter, so that length says nothing. None where no sentence ends
        there.
        """
        ends = [m.end() for m in SENTENCE_END.finditer(answer)]
        ends = [e for e in ends if low <= len(token_ids(self.tokenizer, answer[:e])) <= high]
        if not ends:
            return None
        end = self.rng.choice(ends)
        n = len(token_ids(self.tokenizer, answer[:end]))
        ids = token_ids(self.tokenizer, answer)
        for _ in range(20):
            m = n + self.rng.choice([-1, 1]) * self.rng.randint(2, max(3, n // 2))
            cut = self.text(ids[: min(m, len(ids) - 1)])
            if cut and not SENTENCE_END.search(cut[-2:]):
                return answer[:end].strip(), cut
        return None
