"""finished trials -> the verdict, with the one alpha to use. Says what holds, and no more."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expo_search.config.spec import SearchSpec
from expo_search.errors import StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.search.alpha_range import bounds
from expo_search.search.confirm import Confirmation
from expo_search.search.recommendation import recommend
from expo_search.stats.paired import Estimate, Kind
from expo_search.stats.selection import Power


@dataclass(frozen=True)
class Verdict:
    """What is known about the best alpha against alpha = 0, and the one alpha that every view of a study recommends.

    Attributes:
        best: the trial to look at among those at other alphas than 0 (`recommendation.recommend`), which is the
            recommended one where `word` is "better"; None where none was tried or none may win.
        word: "better", "no evidence of a gain", "worse", or "nothing to compare"; of the confirmation, once there is
            one for the best trial.
        interval: 95 % interval of the best trial's gain, which holds for its having been picked from `n_able` alphas:
            those evaluated on all prompts, or where there are none on a part of them, of the `n_tried` beside 0.
        confirmed: that confirmation.
        objective: what the gain is of.
        edge: the end of the range at which the best alpha lies (0 where every other lost); None where it lies inside,
            or the sampler finds its own end. `again`: the command that looks beyond it, where one is known
            (`search_again`).
        better: the alphas that the search shows to be better than 0, ascending; `best`'s is one of them or there is
            none. `favourite`: the alpha that looks best (`proposal.winner`).
        power: what so many prompts can tell; None where nothing was measured.
        ruled_out: where none may win, the alphas that each by itself gained, ascending.
    """

    best: Evaluation | None
    word: str
    interval: tuple[float, float] = (0.0, 0.0)
    n_tried: int = 0
    confirmed: Confirmation | None = None
    objective: Kind = "reward"
    edge: float | None = None
    again: str = ""
    better: tuple[float, ...] = ()
    favourite: float | None = None
    n_able: int = 0
    power: Power | None = None
    ruled_out: tuple[float, ...] = ()

    @property
    def judged_by(self) -> Literal["search", "confirmation"]:
        """Which data `word` is of."""
        return "search" if self.confirmed is None else "confirmation"

    @property
    def judged_interval(self) -> tuple[float, float]:
        """The 95 % interval by which `word` was judged: the confirmation's, or `interval`."""
        return self.interval if self.confirmed is None else (self.confirmed.estimate.low, self.confirmed.estimate.high)

    @property
    def recommended(self) -> Evaluation | None:
        """The trial at the recommended alpha; None: that is alpha = 0."""
        return self.best if self.word == "better" else None

    @property
    def alpha(self) -> float:
        """The alpha to use: the best trial's where it is better than 0, else 0."""
        return 0.0 if self.recommended is None else self.recommended.alpha

    def recommends(self, e: Evaluation) -> bool:
        """Whether a trial is the one at the recommended alpha. With alpha = 0 alone there is none."""
        return e.alpha == self.alpha and (e is self.recommended or (self.recommended is None and self.n_tried > 0))

    def sentence(self) -> str:
        """For people: one sentence on the search and its confirmation, then what one has to know beside it."""
        if self.best is None and self.n_tried:
            if self.ruled_out:
                which = ", ".join(f"{alpha:.4g}" for alpha in self.ruled_out)
                gained = f"alpha = {which} gained, and a guardrail or a benchmark rules it out"
                if len(self.ruled_out) > 1:
                    gained = (
                        f"{len(self.ruled_out)} alphas gained ({which}), and guardrails or a benchmark rule them out"
                    )
                return f"Keep alpha = 0: {gained}; no other may win.{self._beyond()}"
            each = f"each of the {self.n_tried}" if self.n_tried > 1 else "the one"
            why = f"{each} tried lost clearly or broke a guardrail"
            return f"No evidence of a gain: keep alpha = 0. No other alpha may win: {why}.{self._beyond()}"
        if self.best is None:
            return "Only alpha = 0 was evaluated: nothing to compare."
        low, high = self.interval
        e = self.best
        searched = (
            f"alpha = {e.alpha:.4g}: reward {e.reward.mean:.4f}, {_TELLS[self.objective]} {e.gain.mean:+.4f} "
            f"against alpha = 0, 95 % interval [{low:+.4f}, {high:+.4f}]{self._of_several()} on {e.gain.n} prompts"
        )
        if self.confirmed:
            c = self.confirmed.estimate
            word = "confirmed" if self.word == "better" else "measured again"
            searched += f"; {word} on {c.n} fresh prompts and seeds: {_gain(c)}{_broke(self.confirmed)}"
        elif self.word == "better":
            searched += " (`expo-search confirm` measures it on fresh prompts)"
        opening = {"better": "Best", "worse": "Keep alpha = 0; it beats the best other"}.get(
            self.word, "No evidence of a gain: keep alpha = 0. The best other"
        )
        return f"{opening} {searched}.{self._picked_from()}{self._others()}{self._tells()}{self._beyond()}"

    def _of_several(self) -> str:
        """Within the sentence, what the interval is corrected for where the pick was among all that were tried."""
        return f" for the best of {self.n_tried} alphas beside 0" if self.n_able == self.n_tried > 1 else ""

    def _picked_from(self) -> str:
        """How many of the alphas that were tried could be picked, and what the interval is corrected for."""
        if self.best is None or self.n_able == self.n_tried:
            return ""
        if self.best.stopped_early:  # of those that may win none saw all prompts
            held = "may win, each on a part of the prompts" if self.n_able > 1 else "may win, on a part of the prompts"
        else:
            held = "saw all prompts without collapsing or breaking a guardrail"
        if self.n_able == 1:
            return f" Of {self.n_tried} alphas tried beside 0, this one alone {held}."
        interval = "the interval" if self.confirmed is None else "the search's interval"
        corrected = f"{interval} is corrected for picking one of those {self.n_able}"
        return f" Of {self.n_tried} alphas tried beside 0, {self.n_able} {held}; {corrected}."

    def _others(self) -> str:
        """How many alphas are better than 0, and why this one is picked from them."""
        if self.best is None or self.word != "better":
            return ""
        if self.favourite is not None and self.favourite != self.best.alpha:
            looks_best = f"The alpha that looks best, {self.favourite:.4g},"
            return f" {looks_best} cannot be told from alpha = 0 by itself; this one can."
        if len(self.better) < 2:
            return ""
        which = ", ".join(f"{alpha:.4g}" for alpha in self.better)
        return f" {len(self.better)} alphas are better than 0 ({which}); this one looks best."

    def _tells(self) -> str:
        """What so few prompts, or so many, can tell."""
        if self.word != "no evidence of a gain" or self.confirmed is not None or self.power is None:
            return ""
        return f" {self.power.sentence()}"

    def _beyond(self) -> str:
        if self.edge is None:
            return ""
        looks = f" (`{self.again}` looks there)" if self.again else ""
        return f" The best alpha lies at the edge {self.edge:g} of the range: the optimum may lie beyond{looks}."


_TELLS = {"reward": "gain", "win-rate": "win rate above a half", "length-controlled": "gain at equal lengths"}


def _gain(d: Estimate) -> str:
    return f"{d.mean:+.4f} against alpha = 0, 95 % interval [{d.low:+.4f}, {d.high:+.4f}]"


def verdict(
    evaluations: Sequence[Evaluation],
    confirmed: Mapping[int, Confirmation] | None = None,
    *,
    search: SearchSpec | None = None,
    published_alpha: float | None = None,
    lost: Collection[float] = (),
) -> Verdict:
    """Judge the best trial by a 95 % interval of its paired gain.

    It is the confirmation's interval if that trial has one, else the search's, corrected for the pick.

    Args:
        search, published_alpha: what the range was made of.
        lost: the alphas that a benchmark rules out.
    """
    kind: Kind = search.objective if search else "reward"
    found = recommend([e for e in evaluations if e.alpha not in lost])
    n_tried = sum(e.alpha != 0 for e in evaluations)
    if found is None:
        word = _judge(0, 0) if n_tried else "nothing to compare"
        edge = _edge(0.0, search, published_alpha) if n_tried else None
        gained = tuple(sorted(e.alpha for e in evaluations if e.alpha != 0 and e.gain.low > 0))
        return Verdict(None, word, n_tried=n_tried, objective=kind, edge=edge, ruled_out=gained)
    best = found.best
    measured = (confirmed or {}).get(best.trial)
    word = _judge(*found.interval) if measured is None else confirmed_word(measured)
    return Verdict(
        best,
        word,
        found.interval,
        n_tried,
        measured,
        kind,
        _edge(0.0 if word == "worse" else best.alpha, search, published_alpha),  # worse: every alpha lost to 0
        better=tuple(e.alpha for e in found.better),
        favourite=found.favourite.alpha,
        n_able=found.n_able,
        power=Power(best.gain.se * math.sqrt(best.gain.n), best.gain.n, found.z)
        if best.gain.n > 1 and best.gain.se > 0
        else None,
    )


def _edge(alpha: float, search: SearchSpec | None, published_alpha: float | None) -> float | None:
    """The end of the range, if this alpha lies on it; `expo` finds its own ends where none were given."""
    if search is None:
        return None
    is_found = search.sampler == "expo"
    ends = (search.alpha_min, search.alpha_max) if is_found else bounds(search, published_alpha)
    for end in ends:
        if not isinstance(end, str) and abs(alpha - end) <= 1e-3 * abs(end):
            return end
    return None


def confirmed_word(c: Confirmation) -> str:
    """What a confirmation says, by itself: "better", "no evidence of a gain" or "worse"."""
    word = _judge(c.estimate.low, c.estimate.high)
    return "no evidence of a gain" if word == "better" and c.broken else word


def _broke(c: Confirmation) -> str:
    return f", but it broke a guardrail there ({', '.join(c.broken)})" if c.broken else ""


def _judge(low: float, high: float) -> str:
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no evidence of a gain"


def trial_at(known: Sequence[Evaluation], alpha: float | None, name: str, best: Evaluation | None = None) -> Evaluation:
    """The finished trial at an alpha other than 0, or with None `best`, the verdict's.

    Raises:
        StudyError: none was evaluated there; names the nearest that were. Or alpha is 0, which is no model of its own.
    """
    refuse_zero(alpha)
    others = sorted((e for e in known if e.alpha != 0), key=lambda e: abs(e.alpha - (alpha or 0)))
    if alpha is None:
        missing = "no trial that may win"
        if best is not None:
            return best
    else:
        missing = f"no finished trial at alpha {alpha:g}"
        if others and math.isclose(others[0].alpha, alpha, rel_tol=1e-3):  # tables show four digits
            return others[0]
    near = ", ".join(f"{e.alpha:.4g}" for e in others[:3])
    raise StudyError(
        where=f"study {name}",
        found=missing if others else "no finished trial but alpha = 0",
        expected=f"an alpha that was evaluated{f', such as {near}' if near else ''}",
        do="search first" if not others else "give one of these",
    )


def refuse_zero(alpha: float | None) -> None:
    """Refuse alpha = 0 where a model other than the aligned one is wanted.

    Raises:
        StudyError: alpha is 0, which is no model of its own.
    """
    if alpha == 0:
        raise StudyError(
            where="--alpha 0",
            found="the aligned checkpoint itself, with which every trial is compared",
            expected="another alpha",
            do="use the aligned checkpoint as it is, or give an alpha that was evaluated",
        )


def confirmation_sentence(c: Confirmation) -> str:
    """For people."""
    opening = {"better": "Better", "worse": "Worse: keep alpha = 0"}.get(
        confirmed_word(c), "No evidence of a gain: keep alpha = 0"
    )
    return (
        f"{opening}. alpha = {c.alpha:.4g} on {c.n} prompts and seeds the search never used: reward {c.reward:.4f}, "
        f"{_gain(c.estimate)} ({c.difference / c.se if c.se else 0:+.1f} standard errors)"
        f"{_broke(c)}."
    )
