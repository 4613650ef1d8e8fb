"""The winner against alpha = 0 on prompts that the search never saw, with fresh sampling seeds.

The best of N noisy numbers overstates its own gain; this measurement was used for no choice, so it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from expo_search.contracts import Prompt
from expo_search.errors import EngineDied
from expo_search.evaluation.objective import Objective, Stopped
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.inputs.prompts import prompts_hash
from expo_search.search.retry import with_one_restart
from expo_search.stats.paired import Estimate
from expo_search.store.attributes import StudyAttributes
from expo_search.store.study_store import Store


@dataclass(frozen=True)
class Confirmation:
    """What was measured: a trial's alpha, and its gain (the study's objective) over alpha = 0 on n fresh prompts.

    `broken` names the guardrails that it broke there; such an alpha is not recommended.
    """

    trial: int
    alpha: float
    difference: float
    se: float
    n: int
    prompts: str
    reward: float
    control_reward: float
    broken: Sequence[str] = ()

    @property
    def estimate(self) -> Estimate:
        """The gain over alpha = 0 with its standard error and number of prompts."""
        return Estimate(self.difference, self.se, self.n)

    def attributes(self) -> dict[str, Any]:
        """The fields by name, as the study's attributes keep them."""
        return asdict(self)


def confirm(
    store: Store,
    objective: Objective,
    trial: int,
    alpha: float,
    prompts: Sequence[Prompt],
    stop: Callable[[], bool] = lambda: False,
    on_failure: Callable[[EngineDied], None] = lambda _: None,
) -> Confirmation:
    """Evaluate alpha = 0 and one trial's alpha on `prompts`, and keep the result with the study.

    Goes on from stored answers to those prompts. Fewer prompts than before, or more, in the same order share them;
    answers to other prompts are forgotten. What earlier confirmations found stays until this one is measured, and
    beyond it unless their answers are forgotten. An engine that dies is started anew, once for each of the two;
    `on_failure` gets the reason before that.

    Raises:
        Stopped: `stop`, asked after each look, between the two, and when an engine dies, said so.
        EngineDied: the second time at one alpha. What was stored is kept.
    """

    def measured(number: int, at: float) -> Evaluation:
        return with_one_restart(partial(objective.evaluate, number, at, stop=stop), objective, on_failure, stop)

    key = prompts_hash(prompts)
    with store.owned():
        there = store.prompts("confirm")
        n_common = min(len(there), len(prompts))
        if there[:n_common] != list(prompts[:n_common]):  # a position would mean another prompt than its answer does
            store.drop("confirm")
        store.put_prompts("confirm", prompts)
        control = measured(CONTROL, 0.0)
        if stop():
            raise Stopped
        winner = measured(trial, alpha)
        confirmation = Confirmation(
            trial,
            alpha,
            winner.gain.mean,
            winner.gain.se,
            winner.gain.n,
            key,
            winner.reward.mean,
            control.reward.mean,
            list(winner.broken),
        )
        others = {t: c for t, c in (store.attributes.confirmed or {}).items() if _has_answers(store, int(t), c)}
        store.keep(StudyAttributes(confirmed=others | {str(trial): confirmation.attributes()}))
    return confirmation


def _has_answers(store: Store, trial: int, confirmed: Mapping[str, Any]) -> bool:
    """Whether a confirmation's answers are still there, which a second judge may be asked to rate."""
    prompts = store.prompts("confirm")[: confirmed["n"]]
    is_same = confirmed["prompts"] == prompts_hash(prompts)
    return is_same and len(store.completions(trial, "confirm", prompts)) == len(prompts)


def confirmations(store: Store) -> dict[int, Confirmation]:
    """The study's confirmations, by trial: each on its own number of the same prompts."""
    stored = store.attributes.confirmed or {}
    return {int(trial): Confirmation(**attributes) for trial, attributes in stored.items()}
