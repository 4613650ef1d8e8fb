"""A second judge, which the search never used, on stored answers: the winner's gain by it, and whether it agrees.

A reward model that is searched against can be over-optimised: its reward rises where no other judge sees a better
answer (Gao, Schulman and Hilton, "Scaling Laws for Reward Model Overoptimization", ICML 2023, where a model that was
never optimised plays this part). The answers are those that the search, or its confirmation, has stored; the second
judge rates them, and its gain is paired by prompt as the search's own is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expo_search.contracts import Part, Rated, Scorer
from expo_search.evaluation.answering import BLOCK
from expo_search.evaluation.finite import SEE_TO_SCORER, check_finite
from expo_search.evaluation.result import CONTROL
from expo_search.stats.paired import Estimate, Kind, gain
from expo_search.store.answer_rows import Stored
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store

Word = Literal["agrees", "likely over-optimised", "cannot tell"]

_SHARE = 0.5  # of its own reward's gain that the check model must see, in standard deviations of a prompt's gain
_TELLS_Z = 1.96 + 0.84  # standard errors by which a gain of nothing lies below that share, four times in five


@dataclass(frozen=True)
class Check:
    """A trial's gain over alpha = 0 by a second judge and by the search's own reward, on the same answers.

    Attributes:
        judge: the second judge's name.
        part: whose answers: the search's, or a confirmation's.
        own, gain: by the search's reward and by the second judge, each in its own unit, as the study's objective has it
            (`stats.paired.gain`).
        kind: that objective.
        left_out: prompts among these that the judge was trained on; neither gain is of them.
    """

    judge: str
    trial: int
    alpha: float
    part: Part
    own: Estimate
    gain: Estimate
    kind: Kind = "reward"
    left_out: int = 0

    @property
    def word(self) -> Word:
        """Whether the second judge agrees that there is a gain; see `agreement`."""
        return agreement(self.own, self.gain)

    @property
    def is_over_optimised(self) -> bool:
        """Whether the gain is likely the search's own reward's alone."""
        return self.word == "likely over-optimised"

    @property
    def n_needed(self) -> int | None:
        """Prompts that would tell four times in five that there is no gain; None where there are as many, or no end."""
        effect = in_deviations(self.own, self.own.mean)
        if not (math.isfinite(effect) and effect > 0):
            return None
        n = int(float(f"{(_TELLS_Z / (_SHARE * effect)) ** 2:.2g}"))
        return n if n > self.gain.n else None

    def as_json(self) -> dict[str, Any]:
        """For machines; intervals are 95 %, `*_deviations` in standard deviations of a prompt's gain."""
        return {
            "judge": self.judge,
            "trial": self.trial,
            "alpha": float(self.alpha),
            "prompts": "fresh" if self.part == "confirm" else "the search's",
            "objective": self.kind,
            "n": self.gain.n,
            "left_out": self.left_out,
            "word": self.word,
            "gain": self.gain.mean,
            "gain_se": self.gain.se,
            "gain_95": [self.gain.low, self.gain.high],
            "gain_deviations": in_deviations(self.gain, self.gain.mean),
            "own_gain": self.own.mean,
            "own_gain_se": self.own.se,
            "own_gain_95": [self.own.low, self.own.high],
            "own_gain_deviations": in_deviations(self.own, self.own.mean),
        }


def agreement(own: Estimate, check: Estimate) -> Word:
    """Whether a second judge sees the gain that the search's own reward sees, on the same answers.

    The two have no unit in common, so their gains are compared in standard deviations of a prompt's gain, each in its
    own (`in_deviations`).

    - "agrees": the 95 % interval of the second judge's gain lies above 0.
    - "likely over-optimised": that interval lies below 0; or that of the own reward's gain lies above 0, and the second
      judge's does not reach half of that gain.
    - "cannot tell": else. A gain that agrees and none at all are both possible.
    """
    if check.low > 0:
        return "agrees"
    if not check.se:  # the same to every answer: no judge of these
        return "cannot tell"
    sees_less = in_deviations(check, check.high) < _SHARE * in_deviations(own, own.mean)
    if check.high < 0 or (own.low > 0 and sees_less):
        return "likely over-optimised"
    return "cannot tell"


def in_deviations(of: Estimate, value: float) -> float:
    """A value in the unit of an estimate, in standard deviations of one prompt's; 0 with no spread or one prompt."""
    deviation = of.se * math.sqrt(of.n)
    return value / deviation if deviation and math.isfinite(deviation) else 0.0


def rate(
    store: Store,
    judge: str,
    scorer: Scorer,
    trial: int,
    part: Part,
    n: int,
    on_scored: Callable[[int], None],
    stop: Callable[[], bool],
) -> bool:
    """Have a judge rate the answers of a trial, and of alpha = 0, to the first n prompts of a part, where it has not.

    Prompts that it was trained on are left out. Each block of answers is stored before the next one, so whatever ends
    this costs one block. Whether it came to the end: `stop` is asked before each block. `judge`: its key.
    """
    kept, new = CheckStore(store), new_to(store, judge, part, n)
    for number in (CONTROL, trial):
        there = kept.rewards(judge, number, part)
        answers = [s for s in answers_of(store, number, part, n) if s.position in new]
        for start in range(0, len(answers), BLOCK):
            left = [s for s in answers[start : start + BLOCK] if s.position not in there]
            if not left:
                continue
            if stop():
                return False
            rewards, _ = scorer.score([s.completion for s in left], on_scored)
            for answer, reward in zip(left, rewards, strict=True):
                check_finite(reward, answer.completion.prompt, do=SEE_TO_SCORER)
            kept.add(judge, number, part, {s.position: r for s, r in zip(left, rewards, strict=True)})
    return True


def is_rated(store: Store, judge: str, trial: int, part: Part, n: int) -> bool:
    """Whether a judge has rated all of the answers that `rate` would have it rate."""
    kept, new = CheckStore(store), new_to(store, judge, part, n)
    return all(kept.rewards(judge, number, part).keys() >= new for number in (CONTROL, trial))


def new_to(store: Store, judge: str, part: Part, n: int) -> set[int]:
    """The positions among the first n prompts of a part of those that a judge, by its key, was not trained on."""
    seen = CheckStore(store).trained_on(judge)
    if not seen:
        return set(range(n))
    return {position for position, prompt in enumerate(store.prompts(part)[:n]) if prompt.id not in seen}


def read_check(store: Store, judge: str, trial: int, alpha: float, part: Part, n: int, kind: Kind) -> Check | None:
    """What a judge, by its key, makes of a trial on the first n prompts of a part, but for those it was trained on.

    None: it has not rated all of them, or was trained on all but one. Nothing is rated here. `kind`: the study's
    objective.
    """
    kept, new = CheckStore(store), new_to(store, judge, part, n)
    own = {number: _only(store.rated(number, part), new) for number in (CONTROL, trial)}
    by_judge = {}
    for number, rated in own.items():
        rewards = kept.rewards(judge, number, part)
        if len(rated) < max(len(new), 2 if len(new) < n else 1) or any(p not in rewards for p in rated):
            return None
        by_judge[number] = {p: Rated(rewards[p], r.length) for p, r in rated.items()}
    return Check(
        kept.judges.get(judge, judge),
        trial,
        alpha,
        part,
        own=gain(own[trial], own[CONTROL], kind),
        gain=gain(by_judge[trial], by_judge[CONTROL], kind),
        kind=kind,
        left_out=n - len(new),
    )


def answers_of(store: Store, trial: int, part: Part, n: int) -> Sequence[Stored]:
    """The stored answers of a trial to the first n prompts of a part, by position."""
    return store.completions(trial, part, store.prompts(part)[:n])


def _only(rated: Mapping[int, Rated], positions: Collection[int]) -> dict[int, Rated]:
    return {p: r for p, r in rated.items() if p in positions}
