"""The canary: before the first trial, prove on the live engine that a switch of alpha takes effect, everywhere.

With a weight that silently keeps its old value the search would run to its end, and its results mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from expo_search.errors import MaterializeError

Answer = list[tuple[int, float]]  # tokens with their log-probabilities

PROBE_ALPHA = 1.0
_LEAST_ALPHA = PROBE_ALPHA / 64  # the probe is halved down to it where the weights or the answer are not finite
_PROBE_TEXT = (
    "Write one sentence about each of the following: the sea in winter, the price of bread, an old bicycle, "
    "the first day of school, a letter that never arrived, how to boil an egg, and why the sky is blue. "
    "Then say which of these sentences you like best and explain the choice in a few words."
)
_N_TOKENS = 8


class Probed(Protocol):
    """What the canary needs of an engine."""

    def switch(self, alpha: float, *, reread: bool = False) -> str:
        """Write theta(alpha), drop cached prefixes; the fingerprint as it was written, or of the memory afterwards."""

    def poison(self) -> None:
        """Make every weight NaN, and with vLLM's own post-load processing everything derived from weights."""

    def expected_fingerprint(self, alpha: float) -> str:
        """The fingerprint that theta(alpha) has by the formula, computed apart from the switch."""

    def log_probabilities(self, text: str, n_tokens: int, *, salt: str | None = None) -> Answer:
        """Greedy tokens with their log-probabilities; a salt keeps cached prefixes out."""


def check_switching(engine: Probed, where: str) -> None:
    """Prove that alpha alone decides what the engine answers, and leave it at alpha = 0.

    Costs four switches, and one more for each halving of the probe's alpha.

    1. Everything is poisoned with NaN and then switched to alpha = 0: greedy tokens and log-probabilities must be, to
       the bit, those that vLLM's own load gave. Whatever a switch does not refresh is still NaN.
    2. At another alpha: the weights must be the formula's, the answer must change, and it must not come from a prefix
       that was cached before the switch.
    3. The same from poisoned weights, which vLLM's post-load processing has laid out anew: the same answer. So where a
       switch writes weights in place it writes those that the engine reads, and as vLLM would have laid them out.
    4. Back at alpha = 0: the first weights and the first answer.

    Raises:
        MaterializeError: says which of these does not hold.
    """

    def probe(salt: str | None = None) -> Answer:
        return engine.log_probabilities(_PROBE_TEXT, _N_TOKENS, salt=salt)

    def expect(holds: bool, found: str) -> None:
        if not holds:
            raise MaterializeError(
                where=f"canary, {where}",
                found=found,
                expected="weights that depend on alpha alone",
                do="report this architecture; no trial was run",
            )

    truth = probe()
    engine.poison()
    aligned = engine.switch(0.0, reread=True)
    expect(probe() == truth, "another answer at alpha = 0 than after loading (a weight that a switch does not refresh)")
    expect(aligned == engine.expected_fingerprint(0.0), "other weights than the aligned checkpoint's at alpha = 0")

    at, other, changed = _first_finite(engine, probe)
    expect(_is_finite(changed), f"answers that are no numbers from alpha = {at:g} on")
    uncached = probe(salt="canary")
    expect(other == engine.expected_fingerprint(at), f"other weights than the formula's at {at:g}")
    expect(other != aligned, f"the same weights at alpha = 0 and {at:g}")
    expect(changed == uncached, "an answer from a prefix that was cached at another alpha")
    expect(changed != truth, f"the same answer, to the last bit, at alpha = 0 and {at:g}")

    engine.poison()
    expect(engine.switch(at) == other, f"other weights at {at:g} in fresh memory")
    expect(probe(salt="fresh") == changed, f"another answer at {at:g} from weights in fresh memory")

    expect(engine.switch(0.0) == aligned, "other weights when alpha = 0 came back")
    expect(probe() == truth, "another answer when alpha = 0 came back")


def _first_finite(engine: Probed, probe: Callable[[], Answer]) -> tuple[float, str, Answer]:
    """(alpha, fingerprint, answer) at the probe's alpha, halved where a weight overflows or the answer is NaN."""
    at = PROBE_ALPHA
    while True:
        try:
            fingerprint, answer = engine.switch(at, reread=True), probe()
            if _is_finite(answer) or at <= _LEAST_ALPHA:
                return at, fingerprint, answer
        except MaterializeError:
            if at <= _LEAST_ALPHA:
                raise
        at /= 2


def _is_finite(answer: Answer) -> bool:
    return all(math.isfinite(log_probability) for _, log_probability in answer)
