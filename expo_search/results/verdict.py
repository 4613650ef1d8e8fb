"""finished trials -> table, terminal curve, verdict, machine-readable summary. Says what holds, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expo_search.config.spec import SearchSpec
from expo_search.errors import StudyError
from expo_search.evaluation.result import Evaluation
from expo_search.search.alpha_range import bounds
from expo_search.search.confirm import Confirmation
from expo_search.search.proposal import winner
from expo_search.stats.gain_curve import collapsed, noise_covariance
from expo_search.stats.paired import Estimate, Kind, simultaneous

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Verdict:
    """What is known about the best alpha against alpha = 0.

    Attributes:
        best: the trial to recommend among those at other alphas than 0 (`proposal.winner`); None where none was tried
            or none may win.
        word: "better", "no evidence of a gain", "worse", or "nothing to compare"; of the confirmation, once there is
            one for the best trial.
        interval: 95 % interval of the best trial's gain, wide enough for its having been picked from `n_tried` alphas.
        confirmed: that confirmation.
        objective: what the gain is of.
        edge: the end of a fixed range at which the best alpha lies (0 where every other lost); None where it lies
            inside. `again`: the command that looks beyond it, where one is known (`search_again`).
    """

    best: Evaluation | None
    word: str
    interval: tuple[float, float] = (0.0, 0.0)
    n_tried: int = 0
    confirmed: Confirmation | None = None
    objective: Kind = "reward"
    edge: float | None = None
    again: str = ""

    def sentence(self) -> str:
        """For people: one sentence on the search, one on the confirmation."""
        if self.best is None and self.n_tried:
            each = f"each of the {self.n_tried} tried lost clearly or broke a guardrail"
            return f"No evidence of a gain: keep alpha = 0. No other alpha may win: {each}.{self._beyond()}"
        if self.best is None:
            return "Only alpha = 0 was evaluated: nothing to compare."
        low, high = self.interval
        e = self.best
        of_several = f" for the best of {self.n_tried} alphas" if self.n_tried > 1 else ""
        searched = (
            f"alpha = {e.alpha:.4g}: reward {e.reward.mean:.4f}, {_TELLS[self.objective]} {e.gain.mean:+.4f} "
            f"against alpha = 0, 95 % interval [{low:+.4f}, {high:+.4f}]{of_several} on {e.gain.n} prompts"
        )
        if self.confirmed:
            c = self.confirmed.estimate
            searched += f"; confirmed on {c.n} fresh prompts and seeds: {_gain(c)}{_broke(self.confirmed)}"
        elif self.word == "better":
            searched += " (`expo-search confirm` measures it on fresh prompts)"
        opening = {"better": "Best", "worse": "Keep alpha = 0; it beats the best other"}.get(
            self.word, "No evidence of a gain: keep alpha = 0. The best other"
        )
        return f"{opening} {searched}.{self._beyond()}"

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
) -> Verdict:
    """Judge the best trial by a 95 % interval of its paired gain.

    It is the confirmation's interval if that trial has one, else the search's, corrected for the number of alphas.
    """
    kind: Kind = search.objective if search else "reward"
    best = winner(evaluations)
    if best is None:
        n_tried = sum(e.alpha != 0 for e in evaluations)
        word = _judge(0, 0) if n_tried else "nothing to compare"
        edge = _edge(0.0, search) if n_tried else None
        return Verdict(None, word, n_tried=n_tried, objective=kind, edge=edge)
    tried = [e for e in evaluations if e.alpha != 0 and (e is best or not collapsed(e, evaluations))]
    interval = simultaneous(tried.index(best), [e.gain for e in tried], noise_covariance(tried))
    word = _judge(*interval)
    edge = _edge(0.0 if word == "worse" else best.alpha, search)  # worse: every alpha lost to 0
    searched = Verdict(best, word, interval, len(tried), None, kind, edge)
    if confirmed and best.trial in confirmed:
        c = confirmed[best.trial]
        return replace(searched, word=_judge_confirmed(c), confirmed=c)
    return searched


def _edge(alpha: float, search: SearchSpec | None) -> float | None:
    """The end of a range that was given, if this alpha lies on it."""
    if search is None:
        return None
    low = search.alpha_min if search.sampler == "expo" else bounds(search, None)[0]  # "auto" is a number for others
    for end in (low, search.alpha_max):
        if not isinstance(end, str) and abs(alpha - end) <= 1e-3 * abs(end):
            return end
    return None


def _judge_confirmed(c: Confirmation) -> str:
    word = _judge(c.estimate.low, c.estimate.high)
    return "no evidence of a gain" if word == "better" and c.broken else word


def _broke(c: Confirmation) -> str:
    return f", but it broke a guardrail there ({', '.join(c.broken)})" if c.broken else ""


def _judge(low: float, high: float) -> str:
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no evidence of a gain"


def trial_at(known: Sequence[Evaluation], alpha: float | None, name: str) -> Evaluation:
    """The finished trial at an alpha other than 0, or the best one.

    Raises:
        StudyError: none was evaluated there; names the nearest that were. Or alpha is 0, which is no model of its own.
    """
    refuse_zero(alpha)
    others = sorted((e for e in known if e.alpha != 0), key=lambda e: abs(e.alpha - (alpha or 0)))
    if alpha is None:
        missing, best = "no trial that may win", verdict(known).best
        if best is not None:
            return best
    else:
        missing = f"no finished trial at alpha {alpha:g}"
        if others and abs(others[0].alpha - alpha) <= 1e-3 * abs(alpha):  # tables show four digits
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
        _judge_confirmed(c), "No evidence of a gain: keep alpha = 0"
    )
    return (
        f"{opening}. alpha = {c.alpha:.4g} on {c.n} prompts and seeds the search never used: reward {c.reward:.4f}, "
        f"{_gain(c.estimate)} ({c.difference / c.se if c.se else 0:+.1f} standard errors)"
        f"{_broke(c)}."
    )
