"""a stored study -> what every view of it shows: its finished trials, their verdict, the fit through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from expo_search.config.spec import SearchSpec
from expo_search.evaluation.result import Evaluation
from expo_search.results.curve.layout import Band
from expo_search.results.next_commands import search_again
from expo_search.results.verdict import Verdict, verdict
from expo_search.search.confirm import Confirmation, confirmations
from expo_search.search.loop import evaluations
from expo_search.search.proposal import posterior
from expo_search.stats.gain_curve import collapsed
from expo_search.store.study_store import Store

_LEAST = 3  # alphas through which a fit says more than its own assumptions
_TWO_SIDED = 1.96  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Judged:
    """A study's finished trials in order, its confirmations by trial, and its verdict."""

    name: str
    url: str
    evaluations: Sequence[Evaluation]
    confirmations: Mapping[int, Confirmation]
    verdict: Verdict

    @cached_property
    def band(self) -> Band | None:
        """The fit of the gain with its 95 % interval, between 0 and the trials' ends; None with too few trials."""
        trials = [e for e in self.evaluations if e.alpha != 0]
        alphas = [0.0, *(e.alpha for e in trials)]
        if len({e.alpha for e in trials if not collapsed(e, trials)}) < _LEAST:
            return None
        fit = posterior(trials, min(alphas), max(alphas))
        half = _TWO_SIDED * fit.sd
        ends = (fit.alphas, fit.mean, fit.mean - half, fit.mean + half)
        return Band(*([float(x) for x in end] for end in ends))


def judge(store: Store, *, untold: Evaluation | None = None) -> Judged:
    """Read a study from the database; `untold` is a trial that is evaluated but not told yet."""
    known = [*evaluations(store.study), *([] if untold is None else [untold])]
    spec = store.attributes.spec
    search = None if spec is None else SearchSpec.model_validate(spec["search"])
    confirmed = confirmations(store)
    found = verdict(known, confirmed, search=search)
    again = search_again(spec, store.name, store.url, found.edge, len(known))
    return Judged(store.name, store.url, known, confirmed, replace(found, again=again))
