"""The canary's choice of a probe, on an engine of two numbers; `test_materializer.py` has it on real ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from expo_search.engine.canary import check_switching
from expo_search.errors import MaterializeError


@dataclass
class TwoWeights:
    """An engine whose weights overflow above one alpha, and whose answers are NaN above another."""

    overflows_above: float = math.inf
    is_nan_above: float = math.inf
    alpha: float = 0.0
    asked: list[float] = field(default_factory=list)

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
