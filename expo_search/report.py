"""finished trials -> table, terminal curve, verdict, machine-readable summary. Says what holds, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expo_search.confirm import Confirmation
from expo_search.errors import StudyError
from expo_search.objective import CONTROL, Evaluation
from expo_search.statistics import Estimate

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Verdict:
    """What is known about the best alpha against alpha = 0.

    Attributes:
        best: the trial with the highest mean reward among those at other alphas than 0; None if there is none.
        word: "better", "no evidence of a gain", "worse", or "nothing to compare"; of the confirmation, once there is
            one for the best trial.
        confirmed: that confirmation.
    """

    best: Evaluation | None
    word: str
    confirmed: Confirmation | None = None

    def sentence(self) -> str:
        """For people: one sentence on the search, one on the confirmation."""
        if self.best is None:
            return "Only alpha = 0 was evaluated: nothing to compare."
        d = self.best.difference
        reward = f"alpha = {self.best.alpha:.4g}: reward {self.best.reward.mean:.4f}"
        searched = f"{reward}, {_gain(d)} on the search's {d.n} prompts"
        if self.confirmed:
            c = self.confirmed.estimate
            searched += f"; confirmed on {c.n} fresh prompts and seeds: {_gain(c)}"
        elif self.word == "better":
            searched += " (the best of several noisy numbers is optimistic: `expo-search confirm` measures it afresh)"
        opening = {"better": "Best", "worse": "Keep alpha = 0; it beats the best other"}.get(
            self.word, "No evidence of a gain: keep alpha = 0. The best other"
        )
        return f"{opening} {searched}."


def _gain(d: Estimate) -> str:
    return f"{d.mean:+.4f} against alpha = 0, 95 % interval [{d.low:+.4f}, {d.high:+.4f}]"


def verdict(evaluations: Sequence[Evaluation], confirmed: Mapping[int, Confirmation] | None = None) -> Verdict:
    """Judge by the 95 % interval of the paired difference: of the confirmation if the best trial has one."""
    others = [e for e in evaluations if e.trial != CONTROL and e.alpha != 0]
    if not others:
        return Verdict(None, "nothing to compare")
    best = max(others, key=lambda e: (e.difference.mean, -abs(e.alpha)))
    if confirmed and best.trial in confirmed:
        return Verdict(best, _judge(confirmed[best.trial].estimate), confirmed[best.trial])
    return Verdict(best, _judge(best.difference))


def _judge(difference: Estimate) -> str:
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no evidence of a gain"


def trial_at(found: Sequence[Evaluation], alpha: float | None, name: str) -> Evaluation:
    """The finished trial at an alpha other than 0, or the best one.

    Raises:
        StudyError: none was evaluated there; names the nearest that were.
    """
    others = [e for e in found if e.alpha != 0]
    if alpha is None:
        best = verdict(found).best
        if best is not None:
            return best
    else:
        for e in others:
            if abs(e.alpha - alpha) <= 1e-3 * max(1.0, abs(alpha)):
                return e
    near = ", ".join(f"{e.alpha:.4g}" for e in sorted(others, key=lambda e: abs(e.alpha - (alpha or 0)))[:3])
    raise StudyError(
        where=f"study {name}",
        found="no finished trial but alpha = 0" if not others else f"no finished trial at alpha {alpha:g}",
        expected=f"an alpha that was evaluated{f', such as {near}' if near else ''}",
        do="search first" if not others else "give one of these",
    )


def trial_table(evaluations: Sequence[Evaluation]) -> Table:
    """Trials in the order in which they ran; the best one is marked."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    best = verdict(evaluations).best
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("trial", "alpha", "reward", "± SE", "vs 0", "95 % interval", "tokens", "cut off", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for e in evaluations:
        is_control = e.trial == CONTROL
        table.add_row(
            str(e.trial),
            f"{e.alpha:.4g}",
            f"{e.reward.mean:.4f}",
            f"{e.reward.se:.4f}",
            "" if is_control else f"{e.difference.mean:+.4f}",
            "" if is_control else f"[{e.difference.low:+.3f}, {e.difference.high:+.3f}]",
            f"{e.mean_length:.1f}",
            f"{e.share_cut:.0%}",
            f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
            style="bold green" if e is best else "",
        )
    return table


def curve(evaluations: Sequence[Evaluation], width: int = 90, height: int = 18) -> str:
    """Difference to alpha = 0 over alpha with one-standard-error bars, as text without colour codes."""
    import plotext

    points = sorted(evaluations, key=lambda e: e.alpha)
    alphas = [e.alpha for e in points]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot(alphas, [e.difference.mean for e in points], marker="dot")
    plotext.error(alphas, [e.difference.mean for e in points], yerr=[2 * e.difference.se for e in points])
    plotext.horizontal_line(0)
    plotext.xlabel("alpha")
    plotext.title("mean reward against alpha = 0, paired by prompt (bars: ± 1 standard error)")
    return str(plotext.uncolorize(plotext.build()))


def stage_seconds(evaluations: Sequence[Evaluation]) -> str:
    """Seconds by stage over all trials, and the share outside generating and scoring."""
    switch, generate, score, other = (
        sum(getattr(e, f"{k}_s") for e in evaluations) for k in ("switch", "generate", "score", "other")
    )
    total = switch + generate + score + other
    return (
        f"Seconds in trials: switch {switch:.1f}, generate {generate:.1f}, score {score:.1f}, other {other:.1f}; "
        f"outside generating and scoring {(switch + other) / max(total, 1e-9):.1%}."
    )


def summary(
    study_name: str, evaluations: Sequence[Evaluation], confirmed: Mapping[int, Confirmation] | None = None
) -> dict[str, Any]:
    """For machines: the verdict and every trial's numbers."""
    found = verdict(evaluations, confirmed)
    return {
        "study": study_name,
        "verdict": found.word,
        "best_alpha": found.best.alpha if found.best and found.word == "better" else 0.0,
        "best_trial": found.best.trial if found.best and found.word == "better" else CONTROL,
        "confirmation": None if found.confirmed is None else confirmation_json(found.confirmed),
        "trials": [as_json(e) for e in evaluations],
    }


def as_json(e: Evaluation) -> dict[str, Any]:
    """One trial's numbers."""
    low, high = (0.0, 0.0) if e.trial == CONTROL else (e.difference.low, e.difference.high)
    return {"trial": e.trial, "alpha": e.alpha, **e.attributes(), "difference_95": [low, high]}


def confirmation_sentence(c: Confirmation) -> str:
    """For people."""
    opening = {"better": "Better", "worse": "Worse: keep alpha = 0"}.get(
        _judge(c.estimate), "No evidence of a gain: keep alpha = 0"
    )
    return (
        f"{opening}. alpha = {c.alpha:.4g} on {c.n} prompts and seeds the search never used: reward {c.reward:.4f}, "
        f"{_gain(c.estimate)} ({c.difference / c.se if c.se else 0:+.1f} standard errors)."
    )


def confirmation_json(c: Confirmation) -> dict[str, Any]:
    """For machines."""
    return c.attributes() | {"difference_95": [c.estimate.low, c.estimate.high]}
