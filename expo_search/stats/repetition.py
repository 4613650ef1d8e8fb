"""An answer's text -> how much of it repeats itself, whatever its language or script."""

from __future__ import annotations

WINDOW = 12  # characters: longer than common words and endings, shorter than a looped sentence
LOOPS_FROM = 0.5  # an answer of which this share was said before in it is a loop


def repetition(text: str) -> float:
    """Share (0..1) of a text's windows of 12 characters that occurred earlier in the same text.

    Ordinary prose of a few hundred characters lies below 0.1, a text that loops near 1; no words are looked for,
    so it holds for scripts that do not separate them. Shorter texts give 0.
    """
    n = len(text) - WINDOW + 1
    if n < 1:
        return 0.0
    return 1.0 - len({text[i : i + WINDOW] for i in range(n)}) / n
