"""A search for a shape as it stands: what it starts from, its trials, each against the uniform alpha, the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expo_search.contracts import Part
from expo_search.evaluation.pairwise import EVEN
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.stats.paired import Estimate, Kind, mean_gain, prompt_gains
from expo_search.store.attributes import stands_for
from expo_search.store.database import study_id_of
from expo_search.store.study_store import Store
from expo_search.weights.shape import Shape, dimensions, shape_of, shaped

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

UNIFORM = 1  # the number of the trial at the uniform alpha, with which every shape is paired


@dataclass(frozen=True)
class Beginning:
    """What a search for a shape starts from: a trial of a study, at its alpha, and what is searched.

    Attributes:
        kind, n_layers: of the shapes (see `weights.shape.Shape`).
    """

    study: str
    trial: int
    alpha: float
    kind: str
    n_layers: int

    @property
    def name(self) -> str:
        """The name of the study of shapes: another winner begins another one."""
        return f"{self.study}/{self.kind}@{self.trial}"

    def shape(self, trial: FrozenTrial | Trial) -> Shape:
        """The shape of a trial, by its parameters."""
        numbers = tuple(float(trial.params[d.name]) for d in dimensions(self.kind))
        return Shape(self.kind, numbers, self.n_layers)


@dataclass(frozen=True)
class Against:
    """A trial's gain over the uniform alpha, paired by prompt, on some prompts; `broken`: guardrails it broke there."""

    trial: int
    gain: Estimate
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """A search for a shape as it stands.

    Attributes:
        trials: finished, in order: alpha = 0, the uniform alpha, then the shapes; each with its gain over alpha = 0.
        against: each shape's gain over the uniform alpha, in the order of `trials`.
        best: the shape that looks best, of those evaluated on all prompts; None: none looks better than uniform alpha.
        confirmed: the best one on fresh prompts and seeds; None: not measured there.
        fresh: the best one's gain over alpha = 0 on those prompts.
        n_tokens: generated for the shapes and their confirmations; not for alpha = 0 and the uniform alpha beside them.
    """

    beginning: Beginning
    trials: tuple[Evaluation, ...] = ()
    against: tuple[Against, ...] = ()
    best: Evaluation | None = None
    confirmed: Against | None = None
    fresh: Estimate | None = None
    n_tokens: int = 0

    @property
    def n_shapes(self) -> int:
        """How many shapes were evaluated, on all prompts or a part of them."""
        return len(self.against)

    def is_confirmed_on(self, n: int) -> bool:
        """Whether the best shape was measured on n fresh prompts."""
        return self.confirmed is not None and self.confirmed.gain.n == n

    @property
    def is_better(self) -> bool:
        """Whether the best shape is shown to be better than the uniform alpha on prompts that chose nothing."""
        return self.confirmed is not None and self.confirmed.gain.low > 0 and not self.confirmed.broken

    @property
    def word(self) -> str:
        """The verdict: "better", "uniform is as good", "uniform is better", or "not confirmed"."""
        if not self.against:
            return "nothing to compare"
        if self.best is None:
            return "uniform is as good"
        if self.confirmed is None:
            return "not confirmed"
        if self.is_better:
            return "better"
        return "uniform is better" if self.confirmed.gain.high < 0 else "uniform is as good"


def finished_trials(study: Study) -> list[FrozenTrial]:
    """The uniform alpha's trial, then the finished shapes."""
    from optuna.trial import TrialState

    return sorted(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=stands_for)


def read_beginning(store: Store) -> Beginning:
    """What a study of shapes starts from."""
    kept = store.attributes.shapes
    assert kept is not None, "a study that `begin` made"
    return Beginning(**kept)


def read_trials(store: Store) -> list[Evaluation]:
    """The finished trials of a study of shapes, in order; the alpha of each has its shape (`shape_of`)."""
    beginning = read_beginning(store)
    first = [t for t in store.study.get_trials(deepcopy=False) if t.number == CONTROL]
    known = [Evaluation.from_attributes(CONTROL, 0.0, t.user_attrs) for t in first]
    for t in finished_trials(store.study):
        alpha = shaped(beginning.alpha, beginning.shape(t))
        known.append(Evaluation.from_attributes(stands_for(t), alpha, t.user_attrs))
    return known


def gain_against_uniform(store: Store, trial: int, part: Part, kind: Kind, n: int) -> Estimate:
    """A trial's gain over the uniform alpha on the first n prompts, paired; 0 of the uniform alpha itself."""
    return mean_gain(_gains_against_uniform(store, trial, part, kind, n))


def _gains_against_uniform(store: Store, trial: int, part: Part, kind: Kind, n: int) -> dict[int, float]:
    shape, uniform = ({p: r for p, r in store.rated(number, part).items() if p < n} for number in (trial, UNIFORM))
    # A judge of pairs compared each of the two with alpha = 0, whose own rewards are a tie's, and never one with the
    # other: its win rate over the uniform alpha is not known, the difference of two win rates is.
    judged = kind == "win-rate" and all(r.reward == EVEN for r in store.rated(CONTROL, part).values())
    return prompt_gains(shape, uniform, "reward" if judged else kind)


def read_shapes(store: Store, kind: Kind) -> Shapes:
    """A study of shapes as it stands; `kind`: the objective."""
    beginning, trials = read_beginning(store), read_trials(store)
    shapes = [e for e in trials if e.trial > UNIFORM]
    against = [
        Against(e.trial, gain_against_uniform(store, e.trial, "search", kind, e.gain.n), e.broken) for e in shapes
    ]
    able = [(a.gain.mean, e) for a, e in zip(against, shapes, strict=True) if not e.stopped_early and not e.broken]
    best = max(able, key=lambda pair: pair[0], default=None)
    looks_better = best is not None and best[0] > 0
    picked = best[1] if best is not None and looks_better else None
    n_tokens = sum(e.n_tokens + store.n_tokens(e.trial, "confirm") for e in shapes)
    measured = None if picked is None else (store.attributes.confirmed or {}).get(str(picked.trial))
    confirmed = fresh = None
    if picked is not None and measured is not None:
        gains = _gains_against_uniform(store, picked.trial, "confirm", kind, measured["n"])
        if len(gains) == measured["n"]:  # its answers are dropped when other prompts are confirmed on
            confirmed = Against(picked.trial, mean_gain(gains), tuple(measured["broken"]))
            fresh = Estimate(measured["difference"], measured["se"], measured["n"])
    return Shapes(beginning, tuple(trials), tuple(against), picked, confirmed, fresh, n_tokens)


def shapes_from(store: Store, kind: Kind) -> tuple[Shapes, ...]:
    """All searches for a shape that start from a study, as they stand, in the order in which they began.

    One that is no more, or was left behind when the study moved to another database, is left out.
    """
    found = []
    for name in store.attributes.shaped or ():
        if study_id_of(store.url, name) is None:
            continue
        beside = Store(store.url, name, read_only=True)
        try:
            found.append(read_shapes(beside, kind))
        finally:
            beside.close()
    return tuple(found)


def shape_text(e: Evaluation) -> str:
    """How a trial of a study of shapes spreads its alpha, for people."""
    shape = shape_of(e.alpha)
    return str(shape) if shape is not None else "alpha = 0" if e.trial == CONTROL else f"uniform {e.alpha:.4g}"
