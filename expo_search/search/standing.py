"""How far a study is: finished trials of those wanted, and trials that were left in the middle, with their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expo_search.config.spec import SearchSpec
from expo_search.search.alpha_range import ALPHA
from expo_search.search.loop import evaluations, why_done
from expo_search.store.attributes import stands_for
from expo_search.store.study_store import Store

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Left:
    """A trial that is not finished: how many of the prompts it has answers to; alpha is None where none was drawn."""

    trial: int
    alpha: float | None
    n_answers: int
    n_prompts: int

    def sentence(self) -> str:
        """For people."""
        at = "" if self.alpha is None else f" at alpha = {self.alpha:.4g}"
        return f"trial {self.trial}{at} has {self.n_answers} of {self.n_prompts} answers"


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Attributes:
        n_finished, n_wanted: trials; wanted by the last search, None where a budget ends it, or where an older version
            did not keep it.
        is_running: a live process searches it.
        is_done: the search has nothing left to do.
        left: trials in the middle.
    """

    n_finished: int = 0
    n_wanted: int | None = None
    is_running: bool = False
    is_done: bool = True
    left: tuple[Left, ...] = ()

    def sentence(self, command: str = "") -> str:
        """For people, with the command that goes on; empty where the search is at its end."""
        if self.is_done:
            return ""
        trials = "trial" if self.n_finished == 1 else "trials"
        of = trials if self.n_wanted is None else f"of {self.n_wanted} trials"
        on = f"; to go on: `{command}`" if command else ""
        middle = "".join(f"; {each.sentence()}" for each in self.left)
        if self.is_running:
            where = f"; where it was stopped, it goes on with `{command}`" if command else ""
            return f"The search is at {self.n_finished} {of}{middle}{where}."
        return f"Stopped at {self.n_finished} {of}{middle}{on}."

    def there(self) -> str:
        """What a search that goes on finds, for people; empty where that is nothing."""
        n_answers = sum(each.n_answers for each in self.left)
        if not self.n_finished and not n_answers:
            return ""
        trials = f"{self.n_finished} trial{'' if self.n_finished == 1 else 's'}"
        if n_answers:
            return f"{trials} and {n_answers} answers of the next are there"
        return f"{trials} {'is' if self.n_finished == 1 else 'are'} there"


def read_standing(store: Store, spec: Mapping[str, Any] | None, *, stopped: bool = False) -> Standing:
    """How far a study is now; `spec` is the one that it keeps. `stopped`: this process searches it no more."""
    from optuna.trial import TrialState

    study, kept = store.study, store.attributes
    n_wanted = None if kept.budget else kept.wanted
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    n_prompts = len(store.prompts("search")) if running else 0

    def left(trial: FrozenTrial) -> Left:
        number = stands_for(trial)
        n_answers = store.n_completions(number, "search", n_prompts)
        return Left(number, trial.params.get(ALPHA), n_answers, n_prompts)

    is_done = not running and not kept.budget
    if is_done and spec is not None and n_wanted is not None:
        published = spec.get("pair", {}).get("published_alpha")
        is_done = why_done(study, SearchSpec.model_validate(spec["search"]), n_wanted, published) is not None
    is_running = not is_done and not stopped and store.is_owned()
    return Standing(len(evaluations(study)), n_wanted, is_running, is_done, tuple(map(left, running)))
