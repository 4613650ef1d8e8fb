"""The canary's choice of a probe, on an engine of two numbers; `test_materializer.py` has it on real ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from expo_search.engine.canary import Noise, check_switching, distance
from expo_search.errors import MaterializeError


@dataclass
class TwoWeights:
    """An engine whose weights overflow above one alpha, and whose answers are NaN above another."""

    overflows_above: float = math.inf
    is_nan_above: float = math.inf
    alpha: float = 0.0
    asked: list[float] = field(default_factory=list)
    n_answers: int = 0

    def switch(self, alpha: float, *, reread: bool = False) -> str:  # noqa: ARG002
        self.asked.append(alpha)
        if alpha > self.overflows_above:
            raise MaterializeError(where=f"alpha {alpha}", found="overflow", expected="finite", do="lower it")
        self.alpha = alpha
        return self.expected_fingerprint(alpha)

    def poison(self) -> None:
        self.alpha = math.nan

    def expected_fingerprint(self, alpha: float) -> str:
        return f"of {alpha}"

    def log_probabilities(self, text: str, n_tokens: int, *, salt: str | None = None) -> list[tuple[int, float]]:
        del text, salt
        self.n_answers += 1
        return [(1, math.nan if self.alpha > self.is_nan_above else -self.alpha)] * n_tokens


def test_an_engine_that_follows_alpha_passes_and_is_left_at_0() -> None:
    engine = TwoWeights()
    check_switching(engine, "here")
    assert (engine.alpha, max(engine.asked)) == (0, 1)


@pytest.mark.parametrize("limits", [{"overflows_above": 0.3}, {"is_nan_above": 0.3}])
def test_where_alpha_1_is_too_much_a_smaller_one_probes(limits: dict[str, Any]) -> None:
    engine = TwoWeights(**limits)
    check_switching(engine, "here")
    assert engine.alpha == 0
    assert 0.25 in engine.asked


def test_answers_that_are_no_numbers_at_the_smallest_probe_are_said_to_be_that() -> None:
    with pytest.raises(MaterializeError, match=r"answers that are no numbers from alpha = 0\.0156"):
        check_switching(TwoWeights(is_nan_above=0.0), "here")


def test_a_pair_that_overflows_at_the_smallest_probe_is_refused_with_that_reason() -> None:
    with pytest.raises(MaterializeError, match="overflow"):
        check_switching(TwoWeights(overflows_above=0.0), "here")


@dataclass
class Noisy(TwoWeights):
    """Answers move with alpha by `slope`, and by the noise of the n-th answer."""

    noise: Callable[[int], float] = lambda n: 1e-3 * (n % 3)
    slope: float = 1.0

    def log_probabilities(self, text: str, n_tokens: int, *, salt: str | None = None) -> list[tuple[int, float]]:
        del text, salt
        self.n_answers += 1
        moved = math.nan if self.alpha > self.is_nan_above else self.slope * self.seen_alpha()
        return [(1, -moved - self.noise(self.n_answers))] * n_tokens

    def seen_alpha(self) -> float:
        return self.alpha


def check(engine: TwoWeights) -> Noise:
    return check_switching(engine, "here")


def test_an_engine_that_repeats_itself_is_compared_to_the_bit_at_the_cost_of_one_answer_more() -> None:
    engine = TwoWeights()
    assert check(engine) == Noise(exact=True)
    # loaded, again, alpha 0, alpha 1, 1 uncached, 1 from fresh memory, alpha 0
    assert engine.n_answers == 7
    assert check(TwoWeights()).sentence() == "alpha = 0 comes back to the bit"


def test_an_engine_that_does_not_repeat_itself_passes_and_is_named_as_such() -> None:
    engine = Noisy()
    noise = check(engine)
    assert (noise.exact, engine.alpha) == (False, 0)
    assert noise.largest == pytest.approx(2e-3)
    assert "the weights of alpha = 0 come back to the bit" in noise.sentence()
    assert "does not repeat itself (log-probabilities of one request differ by up to 2.0e-03)" in noise.sentence()
    assert "within 4 times that" in noise.sentence()


def test_an_engine_that_repeated_itself_at_first_by_chance_passes_too() -> None:
    assert not check(Noisy(noise=lambda n: 1e-3 * (n % 5 == 3))).exact


def test_a_first_answer_that_was_made_by_other_kernels_than_all_later_ones_is_no_noise() -> None:
    assert check(Noisy(noise=lambda n: 1e-3 * (n == 1))).exact


def test_a_change_that_noise_would_hide_is_looked_for_at_a_larger_alpha() -> None:
    engine = Noisy(slope=1.5e-3)  # at alpha = 1, 2, 4 less than 4 x 2e-3, more than noise itself at 8
    assert not check(engine).exact
    assert (max(engine.asked), engine.alpha) == (8, 0)


def test_a_change_that_noise_hides_at_every_alpha_is_no_proof() -> None:
    with pytest.raises(MaterializeError, match="as far as the engine's noise lets tell, at alpha = 0 and 64"):
        check(Noisy(slope=1e-6))
    with pytest.raises(MaterializeError, match="at alpha = 0 and 4"):
        check(Noisy(slope=1e-6, overflows_above=4))
    with pytest.raises(MaterializeError, match="at alpha = 0 and 4"):
        check(Noisy(slope=1e-6, is_nan_above=4))


class KeepsAWeight(Noisy):
    """One that a switch does not refresh: NaN since it was poisoned."""

    poisoned = False

    def poison(self) -> None:
        self.poisoned = True

    def seen_alpha(self) -> float:
        return math.nan if self.poisoned else self.alpha


class KeepsPrefixes(Noisy):
    """Answers without a salt come from what was cached at alpha = 0."""

    def log_probabilities(self, text: str, n_tokens: int, *, salt: str | None = None) -> list[tuple[int, float]]:
        now, self.alpha = self.alpha, 0.0 if salt is None and not math.isnan(self.alpha) else self.alpha
        answer = super().log_probabilities(text, n_tokens, salt=salt)
        self.alpha = now
        return answer


class FromOldMemory(Noisy):
    """A captured graph that goes on reading where the weights were at the first switch."""

    def seen_alpha(self) -> float:
        return 0.0


class OtherBits(Noisy):
    """Weights whose last switch gives other bits than the first."""

    def switch(self, alpha: float, *, reread: bool = False) -> str:
        written = super().switch(alpha, reread=reread)
        return written if alpha or self.asked.count(0.0) == 1 else f"{written}, a bit away"


@pytest.mark.parametrize("noise", [lambda _: 0.0, lambda n: 1e-3 * (n % 3)], ids=["exact", "noisy"])
@pytest.mark.parametrize(
    ("engine", "found"),
    [
        (KeepsAWeight, "a weight that a switch does not refresh"),
        (KeepsPrefixes, "an answer from a prefix that was cached at another alpha"),
        (FromOldMemory, "the same answer, "),
        (OtherBits, "other weights when alpha = 0 came back"),
    ],
)
def test_noise_excuses_no_fault_of_a_switch(engine: type[Noisy], found: str, noise: Callable[[int], float]) -> None:
    with pytest.raises(MaterializeError, match=found):
        check(engine(noise=noise))


def test_answers_are_compared_up_to_the_first_other_token() -> None:
    a = [(7, -0.5), (8, -1.0), (9, -2.0)]
    assert distance(a, [(7, -0.25), (8, -1.125), (9, -2.0)]) == 0.25
    # the second token is another one, as likely as a's within 0.125: what follows it is another text
    assert distance(a, [(7, -0.5), (4, -1.125), (3, -7.0)]) == 0.125
    assert distance(a, [(7, -0.5), (8, math.nan), (9, -2.0)]) == math.inf
    assert Noise.of([a, [(7, -0.5), (4, -1.0), (3, -7.0)], a]) == Noise(exact=False, largest=0.0)
    assert not Noise(exact=False, largest=math.inf).same(a, [(7, math.nan)] * 3)
