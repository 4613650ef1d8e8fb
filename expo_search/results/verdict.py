"""finished trials -> table, terminal curve, verdict, machine-readable summary. Says what holds, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from expo_search.config.spec import SearchSpec
from expo_search.errors import StudyError
from expo_search.evaluation.objective import CONTROL, Evaluation
from expo_search.search.confirm import Confirmation
from expo_search.search.expo_sampler import bounds, winner
from expo_search.stats.gain_curve import collapsed, noise_covariance
from expo_search.stats.paired import Estimate, Kind, simultaneous

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Verdict:
    """What is known about the best alpha against alpha = 0.

    Attributes:
        best: the trial to recommend among those at other alphas than 0 (`sampler.winner`); None where none was tried
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
    """Judge by a 95 % interval of the paired gain: of the confirmation if the best trial has one, else of the search,
    corrected for the number of alphas tried."""
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
    found = Verdict(best, word, interval, len(tried), None, kind, edge)
    if confirmed and best.trial in confirmed:
        c = confirmed[best.trial]
        return replace(found, word=_judge_confirmed(c), confirmed=c)
    return found


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


def trial_at(found: Sequence[Evaluation], alpha: float | None, name: str) -> Evaluation:
    """The finished trial at an alpha other than 0, or the best one.

    Raises:
        StudyError: none was evaluated there; names the nearest that were. Or alpha is 0, which is no model of its own.
    """
    refuse_zero(alpha)
    others = sorted((e for e in found if e.alpha != 0), key=lambda e: abs(e.alpha - (alpha or 0)))
    if alpha is None:
        missing, best = "no trial that may win", verdict(found).best
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
    """
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


def trial_table(evaluations: Sequence[Evaluation], width: int = 200) -> Table:
    """Trials in the order in which they ran; the best one is marked. Columns that `width` has no room for are left out,
    the last of `_LEAVE_OUT` first, so that no number is cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    best = verdict(evaluations).best
    rows = [_cells(e) for e in evaluations]
    sizes = {k: max([len(k), *(len(row[k]) for row in rows)]) + 3 for k in (rows[0] if rows else ())}
    sizes = {k: min(n, _REMARK) if k == "" else n for k, n in sizes.items()}  # a long remark goes on below
    for heading in reversed(_LEAVE_OUT):
        if sum(sizes.values()) > width:
            sizes.pop(heading, None)
    table = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in sizes:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for e, row in zip(evaluations, rows, strict=True):
        table.add_row(*(row[heading] for heading in sizes), style="bold green" if e is best else "")
    return table


_REMARK = 24  # characters
_LEAVE_OUT = ("equal length", "cut off", "tokens", "wins", "loops", "seconds")


def _cells(e: Evaluation) -> dict[str, str]:
    """A trial's row of the table, by heading. The control is not compared with itself."""
    versus = e.trial != CONTROL
    return {
        "trial": str(e.trial),
        "alpha": f"{e.alpha:.4g}",
        "prompts": str(e.gain.n),
        "reward": f"{e.reward.mean:.4f}",
        "gain": f"{e.gain.mean:+.4f}" if versus else "",
        "95 % interval": f"[{e.gain.low:+.3f}, {e.gain.high:+.3f}]" if versus else "",
        "wins": f"{e.win_rate.mean:.0%}" if versus else "",
        "equal length": f"{e.length_controlled.mean:+.3f}" if versus else "",
        "tokens": f"{e.mean_length:.0f}",
        "cut off": f"{e.share_cut:.0%}",
        "loops": f"{e.share_repeating:.0%}",
        "seconds": f"{e.switch_s + e.generate_s + e.score_s + e.other_s:.1f}",
        "": " ".join([*([e.outcome] if e.stopped_early else []), *(f"broke: {name}" for name in e.broken)]),
    }


def curve(evaluations: Sequence[Evaluation], width: int = 90, height: int = 18) -> str:
    """Gain over alpha with one-standard-error bars, as text without colour codes; collapsed trials are left out."""
    import plotext

    points = sorted((e for e in evaluations if not collapsed(e, evaluations)), key=lambda e: e.alpha)
    alphas = [e.alpha for e in points]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    plotext.plot(alphas, [e.gain.mean for e in points], marker="dot")
    plotext.error(alphas, [e.gain.mean for e in points], yerr=[2 * e.gain.se for e in points])
    plotext.horizontal_line(0)
    plotext.xlabel("alpha")
    plotext.title("gain over alpha = 0, paired by prompt (bars: ± 1 standard error)")
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


def summary(study_name: str, evaluations: Sequence[Evaluation], found: Verdict) -> dict[str, Any]:
    """For machines: the verdict and every trial's numbers."""
    return {
        "study": study_name,
        "verdict": found.word,
        "best_alpha": found.best.alpha if found.best and found.word == "better" else 0.0,
        "best_trial": found.best.trial if found.best and found.word == "better" else CONTROL,
        "recommended": None if found.best is None else as_json(found.best),
        "interval_95": list(found.interval),
        "alphas_tried": found.n_tried,
        "objective": found.objective,
        "edge": found.edge,
        "confirmation": None if found.confirmed is None else confirmation_json(found.confirmed),
        "trials": [as_json(e) for e in evaluations],
    }


def as_json(e: Evaluation) -> dict[str, Any]:
    """One trial's numbers; the intervals are its own, not corrected for the number of alphas tried."""
    return {
        "trial": e.trial,
        "alpha": e.alpha,
        **e.attributes(),
        "gain_95": [0.0, 0.0] if e.trial == CONTROL else [e.gain.low, e.gain.high],
        "difference_95": [0.0, 0.0] if e.trial == CONTROL else [e.difference.low, e.difference.high],
    }


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


def confirmation_json(c: Confirmation) -> dict[str, Any]:
    """For machines."""
    return c.attributes() | {"difference_95": [c.estimate.low, c.estimate.high]}
