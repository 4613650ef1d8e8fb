"""A study that several reward models rate -> what each of them alone makes of its best alpha: whether they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expo_search.contracts import Part
from expo_search.evaluation.ensemble import Calibration, read_calibration, rewards_of
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.results.fitted_table import fitted_table
from expo_search.search.confirm import Confirmation
from expo_search.stats.paired import Estimate, estimate
from expo_search.store.attributes import StudyAttributes
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store
from expo_search.text import markdown, one_line

if TYPE_CHECKING:
    from rich.table import Table

MODEL_GAINS = (
    "In its own unit, each prompt against itself at alpha = 0; the interval is of this alpha alone. Standardised: in "
    "standard deviations of its rewards at alpha = 0, the unit of the combined reward."
)
_COMBINED = {"mean": "mean", "worst-case": "least"}


@dataclass(frozen=True)
class ModelGain:
    """A trial's gain over alpha = 0 by one of several reward models alone, paired by prompt, in that model's own unit.

    Attributes:
        part: whose answers: the search's, on whose prompts the alpha was picked, or a confirmation's.
        reward, control: its mean reward at alpha, and at alpha = 0.
        sd: standard deviation of its rewards at alpha = 0, by which they are standardised.
    """

    model: str
    trial: int
    alpha: float
    part: Part
    reward: float
    control: float
    gain: Estimate
    sd: float

    def as_json(self) -> dict[str, Any]:
        """For machines; the interval is a 95 % one, of this alpha alone."""
        return {
            "model": self.model,
            "trial": self.trial,
            "alpha": float(self.alpha),
            "prompts": "fresh" if self.part == "confirm" else "the search's",
            "n": self.gain.n,
            "reward": self.reward,
            "control_reward": self.control,
            "gain": self.gain.mean,
            "gain_se": self.gain.se,
            "gain_95": [self.gain.low, self.gain.high],
            "control_sd": self.sd,
        }


def study_calibration(kept: StudyAttributes) -> Calibration | None:
    """The calibration of a study that several reward models rate; None before alpha = 0 is rated, and of any other."""
    combine = "" if kept.settings is None else kept.settings.reward.combine
    if combine == "worst-case":
        return read_calibration(kept.calibration, "worst-case")
    return read_calibration(kept.calibration, "mean")


def read_model_gains(
    store: Store, calibration: Calibration | None, trial: Evaluation | None, confirmed: Confirmation | None
) -> list[ModelGain]:
    """What each reward model makes of a trial: on fresh prompts where it is confirmed; empty where one model rates."""
    if calibration is None or trial is None:
        return []
    part: Part = "search" if confirmed is None else "confirm"
    n = trial.gain.n if confirmed is None else confirmed.n
    kept, keys = CheckStore(store), [s.key for s in calibration.standards]
    at_alpha, at_zero = (rewards_of(kept, keys, number, part) for number in (trial.trial, CONTROL))
    common = [position for position in at_alpha if position < n and position in at_zero]
    if not common:
        return []
    gains = []
    for i, of_one in enumerate(calibration.standards):
        here, there = ([rewards[position][i] for position in common] for rewards in (at_alpha, at_zero))
        gain = estimate([a - b for a, b in zip(here, there, strict=True)])
        means = sum(here) / len(here), sum(there) / len(there)
        gains.append(ModelGain(of_one.name, trial.trial, trial.alpha, part, *means, gain, of_one.sd))
    return gains


def ensemble_sentence(calibration: Calibration, gains: Sequence[ModelGain]) -> str:
    """For people: what rates, in which unit, and whether each reward model alone sees the best alpha's gain."""
    names = ", ".join(one_line(s.name) for s in calibration.standards)
    combined, n = _COMBINED[calibration.combine], len(calibration.standards)
    unit = "each in standard deviations of its own at alpha = 0"
    rated = f"Rated by the {combined} of {n} reward models' rewards ({names}), {unit}."
    return f"{rated} {_agreement(gains)}" if gains else rated


def _agreement(gains: Sequence[ModelGain]) -> str:
    which = f"alpha = {gains[0].alpha:.4g}"
    losing = [one_line(g.model) for g in gains if g.gain.high < 0]
    unsure = [one_line(g.model) for g in gains if g.gain.low <= 0 <= g.gain.high]
    if not losing and not unsure:
        return f"Each of them alone sees a gain at {which}."
    parts = [f"{', '.join(losing)} alone {_see(losing)} a loss"] if losing else []
    parts += [f"{', '.join(unsure)} alone {_see(unsure)} no gain that is sure"] if unsure else []
    return f"At {which} {' and '.join(parts)}."


def _see(names: Sequence[str]) -> str:
    return "sees" if len(names) == 1 else "see"


def model_gain_table(gains: Sequence[ModelGain], width: int = 200) -> Table:
    """The rows for a terminal, without the columns that `width`, in characters, has no room for."""
    rows = model_gain_rows(gains)
    name, prompts, at_zero, at_alpha, *_, standardised = rows[0]
    return fitted_table(rows, width, texts=(name,), leave_out=(at_zero, at_alpha, prompts), at_last=(standardised,))


def model_gain_lines(gains: Sequence[ModelGain]) -> list[str]:
    """The rows in Markdown."""
    rows = model_gain_rows(gains)
    heads = ["| " + " | ".join(rows[0]) + " |", "| --- |" + " ---: |" * (len(rows[0]) - 1)]
    return [*heads, *("| " + " | ".join(map(markdown, row.values())) + " |" for row in rows)]


def model_gain_rows(gains: Sequence[ModelGain]) -> list[dict[str, str]]:
    """A row a reward model, by heading: numbers in its own unit, and the gain in the combined reward's, too."""
    return [
        {
            "reward model": one_line(g.model),
            "prompts": f"{g.gain.n}{' fresh' if g.part == 'confirm' else ''}",
            "at alpha = 0": f"{g.control:.4f}",
            f"at {g.alpha:.4g}": f"{g.reward:.4f}",
            "gain": f"{g.gain.mean:+.4f}",
            "95 % interval": f"[{g.gain.low:+.4f}, {g.gain.high:+.4f}]",
            "standardised": f"{g.gain.mean / g.sd:+.3f}",
        }
        for g in gains
    ]
