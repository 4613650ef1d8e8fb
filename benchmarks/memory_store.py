"""A study that is kept in this process alone, for searches by the thousand: nine tenths of one's time go to SQL.

The loop, the objective and the sampler are as with the database, and so is every number (`search.py --on-disk` has it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna

from expo_search.contracts import Completion, Part, Prompt, Rated
from expo_search.store.answer_rows import Stored
from expo_search.store.study_store import Store


class MemoryStore(Store):
    """What `search` and `confirm` need of a store."""

    def __init__(self, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.name, self.note = "", name, None
        self.study = optuna.create_study(study_name=name, direction="maximize")
        self._answers: dict[tuple[int, Part], dict[int, Stored]] = {}
        self._prompts: dict[Part, list[Prompt]] = {}

    def close(self) -> None: ...

    def check_owned(self) -> None: ...

    @contextmanager
    def owned(self) -> Iterator[None]:
        yield

    def keep_with_trial(self, trial: optuna.Trial, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            trial.set_user_attr(key, value)

    def put_prompts(self, part: Part, prompts: Sequence[Prompt]) -> None:
        self._prompts[part] = list(prompts)

    def prompts(self, part: Part) -> list[Prompt]:
        return self._prompts.get(part, [])

    def pin_weights(self, trial: int, part: Part, alpha: float, fingerprint: str) -> None: ...

    def add_completions(
        self, trial: int, part: Part, completions: Mapping[int, Completion], *, tried: bool = False
    ) -> None:
        there = self._answers.setdefault((trial, part), {})
        assert tried or there.keys().isdisjoint(completions), "as a database has it: each answer once"
        there.update({position: Stored(position, c, None) for position, c in completions.items()})

    def add_rewards(self, trial: int, part: Part, rewards: Mapping[int, float]) -> None:
        there = self._answers[trial, part]
        for position, reward in rewards.items():
            there[position] = replace(there[position], reward=reward)

    def completions(self, trial: int, part: Part, prompts: Sequence[Prompt]) -> list[Stored]:
        there = self._answers.get((trial, part), {})
        return [there[position] for position in sorted(there) if position < len(prompts)]

    def n_completions(self, trial: int, part: Part, n_prompts: int) -> int:
        return sum(position < n_prompts for position in self._answers.get((trial, part), {}))

    def n_tokens(self, trial: int, part: Part) -> int:
        return sum(s.completion.n_tokens for s in self._answers.get((trial, part), {}).values())

    def rated(self, trial: int, part: Part) -> dict[int, Rated]:
        there = self._answers.get((trial, part), {})
        return {p: Rated(s.reward, s.completion.n_tokens) for p, s in there.items() if s.reward is not None}

    def drop(self, part: Part) -> None:
        self._answers = {key: answers for key, answers in self._answers.items() if key[1] != part}
