"""The canary: before the first trial, prove on the live engine that a switch of alpha takes effect, everywhere.

With a weight that silently keeps its old value the search would run to its end, and its results mean nothing.

Weights are always compared to the bit, answers where the engine repeats itself. One whose sums are taken in an order
that varies (all-reduce over NVLink, routing of experts) is compared within its own noise, which is measured first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
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
_N_REPEATS = 12  # of an engine that does not repeat itself: the largest of their distances stands for what it does
_NOISE_FACTOR = 4.0
_MOST_ALPHA = PROBE_ALPHA * 64  # the probe is doubled up to it where noise would hide what a switch does


@dataclass(frozen=True)
class Noise:
    """How far apart an engine's answers to one request at one alpha are.

    The distance of two answers is the largest difference of their log-probabilities up to and including the first
    position where they took different tokens. Both tokens are there the likeliest of the same context, within
    rounding: the largest log-probability is continuous in the logits, also where two tokens change places. What comes
    after follows from other contexts and says nothing.

    Two answers are the same within `_NOISE_FACTOR` times the largest distance among the repeats. That is an estimate
    from below, since few were made: the largest difference among twelve Gaussian numbers is about 3.3 of their standard
    deviations, so the limit is about 13 of them, where the difference of two numbers has 1.4. It hides no weight
    that a switch left behind: that is NaN after the poisoning, or belongs to another alpha, and the probe's alpha is
    such that the answer there is further away than the limit.

    Attributes:
        exact: the answers were equal to the bit.
        largest: the largest distance among them, in nats; 0 where they are exact, or differ in equally likely tokens.
    """

    exact: bool
    largest: float = 0.0

    @classmethod
    def of(cls, repeats: Sequence[Answer]) -> Noise:
        """Of answers to one request."""
        apart = [distance(a, b) for a, b in combinations(repeats, 2) if a != b]
        return cls(not apart, max(apart, default=0.0))

    def same(self, a: Answer, b: Answer) -> bool:
        """Whether two answers are the same, as far as this engine can tell; those that are no numbers never are."""
        if self.exact:
            return a == b
        return _is_finite(a) and _is_finite(b) and distance(a, b) <= _NOISE_FACTOR * self.largest

    def sentence(self) -> str:
        """What comes back, and how that was compared."""
        if self.exact:
            return "alpha = 0 comes back to the bit"
        return (
            "the weights of alpha = 0 come back to the bit; this engine does not repeat itself (log-probabilities "
            f"of one request differ by up to {self.largest:.1e}), and answers come back within {_NOISE_FACTOR:g} "
            "times that"
        )


def distance(a: Answer, b: Answer) -> float:
    """How far apart two answers are, in nats (see `Noise`); infinite where a log-probability is no number."""
    largest = 0.0
    for (token_a, p), (token_b, q) in zip(a, b, strict=True):
        if not math.isfinite(p - q):
            return math.inf
        largest = max(largest, abs(p - q))
        if token_a != token_b:
            break
    return largest


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


def check_switching(engine: Probed, where: str) -> Noise:
    """Prove that alpha alone decides what the engine answers, and leave it at alpha = 0; how well it repeats itself.

    Costs four switches, and one more for each halving or doubling of the probe's alpha.

    First the same is asked twice, and where an answer differs later, often: an engine that does not repeat itself is
    compared within its `Noise`, which is returned. Every request that is compared is computed from its first token
    to its last (a salt of its own, or the first after a switch), so that batches and shapes are the same.

    1. Everything is poisoned with NaN and then switched to alpha = 0: greedy tokens and log-probabilities must be, to
       the bit, those that vLLM's own load gave. Whatever a switch does not refresh is still NaN, unless a forward pass
       had made it before the poisoning: on a CPU in float16, vLLM 0.32 keeps attention's sinks in float32 from the
       first one on (`cpu_attn.py`).
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

    answers = _Answers(probe)
    truth = probe()
    expect(_is_finite(truth), "answers that are no numbers after loading")
    again = probe(salt="again")
    if again != truth:
        answers.measure_noise()
        truth = (
            again if answers.noise.exact else truth
        )  # the first request alone was another: kernels were chosen by it
    engine.poison()
    aligned = engine.switch(0.0, reread=True)
    refreshed = "another answer at alpha = 0 than after loading (a weight that a switch does not refresh)"
    expect(answers.same(probe(), truth), refreshed)
    expect(aligned == engine.expected_fingerprint(0.0), "other weights than the aligned checkpoint's at alpha = 0")

    at, other, changed = _first_finite(engine, probe)
    expect(_is_finite(changed), f"answers that are no numbers from alpha = {at:g} on")
    if not answers.noise.exact:
        at, other, changed = _first_telling(engine, answers, truth, (at, other, changed))
    uncached = probe(salt="canary")
    expect(other == engine.expected_fingerprint(at), f"other weights than the formula's at {at:g}")
    expect(other != aligned, f"the same weights at alpha = 0 and {at:g}")
    expect(answers.same(changed, uncached), "an answer from a prefix that was cached at another alpha")
    how_well = "to the last bit" if answers.noise.exact else "as far as the engine's noise lets tell"
    expect(not answers.noise.same(changed, truth), f"the same answer, {how_well}, at alpha = 0 and {at:g}")

    engine.poison()
    expect(engine.switch(at) == other, f"other weights at {at:g} in fresh memory")
    fresh = probe(salt="fresh")
    expect(answers.same(fresh, changed), f"another answer at {at:g} from weights in fresh memory")

    expect(engine.switch(0.0) == aligned, "other weights when alpha = 0 came back")
    expect(answers.same(probe(), truth), "another answer when alpha = 0 came back")
    return answers.noise


class _Answers:
    """Compares answers to the probe, within what is known of the engine's noise."""

    def __init__(self, probe: Callable[..., Answer]) -> None:
        self.probe, self._n_salts = probe, 0
        self.noise = Noise(exact=True)

    def measure_noise(self) -> None:
        """Learn from requests at the present weights, all alike: none that a fault could have made another answer."""
        repeats = []
        for _ in range(_N_REPEATS):
            self._n_salts += 1
            repeats.append(self.probe(salt=f"again {self._n_salts}"))
        noise = Noise.of(repeats)
        self.noise = Noise(self.noise.exact and noise.exact, max(self.noise.largest, noise.largest))

    def same(self, now: Answer, before: Answer) -> bool:
        """Whether an answer at the present weights is one of before.

        Where it is not, the noise is measured first: the two answers at the beginning may have agreed by chance.
        """
        if self.noise.exact and now != before and _is_finite(now):
            self.measure_noise()
        return self.noise.same(now, before)


_AtAlpha = tuple[float, str, Answer]  # (alpha, fingerprint, answer)


def _first_finite(engine: Probed, probe: Callable[[], Answer]) -> _AtAlpha:
    """What the engine has at the probe's alpha, halved where a weight overflows or the answer is NaN."""
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


def _first_telling(engine: Probed, answers: _Answers, truth: Answer, probed: _AtAlpha) -> _AtAlpha:
    """The first of alpha, twice alpha, ... whose answer is further from alpha = 0's than noise; else the last finite.

    At each the noise is measured anew: it may be larger there.
    """
    while True:
        at, _, answer = probed
        answers.measure_noise()
        if at >= _MOST_ALPHA or not answers.noise.same(answer, truth):
            return probed
        try:
            fingerprint, answer = engine.switch(2 * at, reread=True), answers.probe()
        except MaterializeError:  # it would overflow, and nothing was written
            return probed
        if not _is_finite(answer):
            engine.switch(at)
            return probed
        probed = 2 * at, fingerprint, answer


def _is_finite(answer: Answer) -> bool:
    return all(math.isfinite(log_probability) for _, log_probability in answer)
