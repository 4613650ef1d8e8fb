"""What second judges make of a study's trials -> sentences; see `evaluation/second_judge.py` for what is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.evaluation.second_judge import Check, in_deviations, read_check
from expo_search.search.confirm import Confirmation
from expo_search.stats.paired import Estimate, Kind
from expo_search.store.check_store import CheckStore
from expo_search.store.study_store import Store
from expo_search.text import one_line

_UNITS = {"reward": "", "win-rate": " (win rates above a half)", "length-controlled": " (gains at equal lengths)"}


def read_checks(
    store: Store, evaluations: Sequence[Evaluation], confirmed: Mapping[int, Confirmation], kind: Kind
) -> list[Check]:
    """What each judge makes of each trial that it has rated whole: on fresh prompts where there are some."""
    checks, kept = [], CheckStore(store)
    for judge in kept.judges:
        rated = kept.rated(judge)
        for e in evaluations if rated else ():
            fresh, found = confirmed.get(e.trial), None
            if fresh is not None and (e.trial, "confirm") in rated:
                found = read_check(store, judge, e.trial, e.alpha, "confirm", fresh.n, kind)
            if found is None and e.trial != CONTROL and (e.trial, "search") in rated:
                found = read_check(store, judge, e.trial, e.alpha, "search", e.gain.n, kind)
            checks += [] if found is None else [found]
    return checks


def check_sentence(check: Check) -> str:
    """For people."""
    name = one_line(check.judge)
    prompts = "fresh prompts" if check.part == "confirm" else "of the search's prompts, by which it was picked"
    left_out = f" ({check.left_out} prompts left out that it was trained on)" if check.left_out else ""
    return (
        f"Checked by a reward model that the search never used, on the answers to {check.gain.n} {prompts}{left_out}: "
        f"its own reward {_shown(check.own)}; {name} {_shown(check.gain)}{_UNITS[check.kind]}: "
        f"{check.word}{_why(check)}."
    )


def _why(check: Check) -> str:
    """What stands behind the word, where that is not the interval alone."""
    if check.is_over_optimised and check.gain.high >= 0:
        most, own = in_deviations(check.gain, check.gain.high), in_deviations(check.own, check.own.mean)
        return f" (at most {most:.2f} standard deviations of a prompt's gain, by its own reward {own:.2f})"
    if check.word == "cannot tell" and check.n_needed is not None:
        return f" (about {check.n_needed} prompts would)"
    return ""


def _shown(e: Estimate) -> str:
    return f"{e.mean:+.4f} [{e.low:+.4f}, {e.high:+.4f}]"
