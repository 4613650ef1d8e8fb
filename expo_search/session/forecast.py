"""A checked study -> what its search will take: tokens, minutes, room for the export. Loads nothing, writes nothing.

A confirmation counts with it. A budget ends a search before its trials do, but alpha = 0, its first trial, is whole.

Minutes are told from trials that are stored in the same database: of this study, or of another one with the same
weights, arithmetic and reward model; on a GPU where there is none from the memory plan's estimate. Where neither is
known nothing is made up.

Those trials may have run on another number of engines. With T tokens of a trial, S sequences at once in an engine and L
tokens of the longest answer, N engines need T / (S N) steps with full batches, and at most L more, in which these run
empty (Graham, 1966: no order in which prompts are handed over takes longer). So

    seconds(N) = seconds(n) * (T / (S N) + L) / (T / (S n) + L)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.engine.memory_plan import n_at_once
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.folders import existing
from expo_search.search.budget import AT_TWO_ALPHAS, Budget
from expo_search.search.loop import evaluations
from expo_search.session.preflight import Checked
from expo_search.stats.selection import GAIN_UNIT, Power
from expo_search.store.attributes import stored_attributes
from expo_search.store.database import study_names
from expo_search.store.settings import Settings
from expo_search.store.study_store import Store
from expo_search.text import size

# settings with which a token takes as long and answers are as long
_ALIKE: tuple[str, ...] = (
    "files.aligned",
    "files.sft",
    "files.reward_model",
    "engine.arithmetic",
    "engine.tensor_parallel",
)
_ALIKE += ("reward.backend", "reward.arithmetic", "reward.scorer", "sampling.max_tokens")


@dataclass(frozen=True)
class Forecast:
    """What a search will take at most: racing and settling end many a trial, and many a search, before.

    Attributes:
        n_there, n_trials: finished trials, and those wanted.
        most_tokens: if every answer to come were as long as it may be. tokens: by the length of stored answers.
        seconds: for the trials to come; None where nothing tells. source: what tells it.
        export_bytes: of the exported tensors; None where another model answers. free_bytes: in the working folder.
        n_confirm: fresh prompts of the confirmation. done: why no trial is to come (`search.loop.why_done`).
        to_fetch: bytes of checkpoints that are on the Hub and not in its cache yet; fetch_free_bytes: where that is.
        tokens_left: of the budget, before this run; budget_seconds: of the run. None: no such limit.
    """

    n_there: int
    n_trials: int
    n_prompts: int
    max_tokens: int
    most_tokens: int
    tokens: int | None
    seconds: float | None
    source: str
    export_bytes: int | None
    free_bytes: int
    n_confirm: int = 0
    done: str | None = None
    to_fetch: int = 0
    fetch_free_bytes: int = 0
    tokens_left: int | None = None
    budget_seconds: float | None = None

    def sentences(self) -> list[str]:
        """For people, a line each."""
        there = f", {self.n_there} of them are there" if self.n_there else ""
        has_budget = self.tokens_left is not None or self.budget_seconds is not None
        most = f"as many as the budget pays, at most {self.n_trials}" if has_budget else f"{self.n_trials}"
        lines = [f"trials: {self.done or most + there}", f"tokens: {self._tokens()}", f"time: {self._time()}"]
        if self.to_fetch:
            room = "" if self.fetch_free_bytes > self.to_fetch else ": too little"
            free = f"{size(self.fetch_free_bytes)} free in its cache{room}"
            lines.insert(0, f"to fetch: {size(self.to_fetch)} from the Hub; {free}")
        if self.export_bytes is not None:
            room = "" if self.free_bytes > self.export_bytes else ": too little"
            wanted, free = (f"{n / 1e9:.2f} GB" for n in (self.export_bytes, self.free_bytes))
            lines.append(f"export: {wanted} on the disk; {free} free in the working folder{room}")
        told = Power(1.0, self.n_prompts).sentence(GAIN_UNIT)
        return [*lines, f"prompts: {self.n_prompts}. {told}"]

    def _tokens(self) -> str:
        to_come = 0 if self.done else max(0, self.n_trials - self.n_there)
        each = [f"{to_come} trials x {self.n_prompts} prompts x {self.max_tokens} tokens"] if to_come else []
        if self.n_confirm:
            each.append(f"to confirm {AT_TWO_ALPHAS} alphas x {self.n_confirm} prompts x {self.max_tokens} tokens")
        why = "; ".join(each) or "no trial is to come"
        if self.tokens_left is not None and self.most_tokens == self.tokens_left:
            why = "what the budget leaves"
        elif self.most_tokens < (to_come * self.n_prompts + AT_TWO_ALPHAS * self.n_confirm) * self.max_tokens:
            why = "the first trial, which is whole whatever the budget"
        likely = "" if self.tokens is None else f"; about {self.tokens:,} if answers are as long as {self.source}"
        return f"at most {self.most_tokens:,} ({why}){likely}"

    def _time(self) -> str:
        limit = self.budget_seconds
        if limit is not None and (self.seconds is None or self.seconds >= 0.999 * limit):  # but for rounding
            whole = "" if self.n_there else "; the first trial is whole whatever the budget"
            return f"{_shown(limit)}, the budget, the start of the engine counted{whole}"
        if self.seconds is None:
            return "not known before a trial has run here with this pair"
        return f"about {_shown(self.seconds)} at most, by {self.source}, the start of the engine not counted"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return dict(vars(self)) | {"least_gain_sd": Power(1.0, self.n_prompts).least_gain}


def _shown(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def forecast(
    checked: Checked,
    n_trials: int,
    *,
    n_confirm: int = 0,
    budget: Budget | None = None,
    done: str | None = None,
    to_fetch: int = 0,
) -> Forecast:
    """What a search of n_trials will take, from what is stored and planned.

    Args:
        n_confirm: fresh prompts of the confirmation after it.
        budget: what may be spent; `budget.spent_before` counts what no finished trial has.
        done: why no trial is to come.
        to_fetch: as of `Forecast`.
    """
    n_prompts, max_tokens = len(checked.search_prompts), checked.spec.sampling.max_tokens
    n_there, n_spent, alike = _stored(checked)
    to_come = 0 if done else max(0, n_trials - n_there)
    n_answers = to_come * n_prompts + AT_TWO_ALPHAS * n_confirm
    tokens, seconds, source = _likely(checked, alike, n_answers)
    most_tokens, left = n_answers * max_tokens, None
    if budget is not None:
        first = 0 if n_there or not to_come else n_prompts  # answers at alpha = 0, which no budget ends
        left = None if budget.tokens is None else max(0, budget.tokens - budget.spent_before - n_spent)
        most_tokens = most_tokens if left is None else min(most_tokens, max(left, first * max_tokens))
        share = max(min(_share(left, tokens), _share(budget.seconds, seconds)), first / max(n_answers, 1))
        tokens = None if tokens is None else round(tokens * share)
        seconds = None if seconds is None else seconds * share
    aligned = None if checked.memory is None else open_checkpoint(checked.pair.aligned.path, role="aligned")
    return Forecast(
        n_there=n_there,
        n_trials=n_trials,
        n_prompts=n_prompts,
        max_tokens=max_tokens,
        most_tokens=most_tokens,
        tokens=tokens,
        seconds=seconds,
        source=source,
        export_bytes=None if aligned is None else aligned.n_bytes,
        free_bytes=shutil.disk_usage(Path.cwd()).free,
        n_confirm=n_confirm,
        done=done,
        to_fetch=to_fetch,
        fetch_free_bytes=_free_in_hub_cache(),
        tokens_left=left,
        budget_seconds=None if budget is None else budget.seconds,
    )


def _free_in_hub_cache() -> int:
    from huggingface_hub.constants import HF_HUB_CACHE

    return shutil.disk_usage(existing(Path(HF_HUB_CACHE))).free


def _share(limit: float | None, wanted: float | None) -> float:
    """Of what is wanted the share that a limit pays."""
    return 1.0 if limit is None or not wanted else min(1.0, limit / wanted)


def _likely(checked: Checked, alike: _Alike | None, n_answers: int) -> tuple[int | None, float | None, str]:
    """Tokens and seconds of so many answers, where anything tells, and what tells."""
    n_prompts = len(checked.search_prompts)
    tokens = seconds = None
    source = ""
    if alike is not None:
        measured = alike.trials
        answers = sum(e.gain.n for e in measured)
        source = f"those of {len(measured)} trials of study {alike.name}"
        tokens = round(n_answers * sum(e.n_tokens for e in measured) / answers)
        n_parallel = 1 if checked.sites is None else checked.sites.n_parallel
        at_once = n_at_once(checked.spec.engine) if checked.memory is None else checked.memory.max_num_seqs
        spent_s = sum(
            e.switch_s + e.other_s + (e.generate_s + e.score_s) * _slower(e, n_parallel, at_once, alike.longest)
            for e in measured
        )
        seconds = tokens * spent_s / sum(e.n_generated for e in measured)
    elif checked.memory is not None and checked.memory.trial_s > 0:
        source = "the memory plan's estimate of a trial"
        seconds = n_answers / n_prompts * checked.memory.trial_s
    return tokens, seconds, source


@dataclass(frozen=True)
class _Alike:
    """Trials of a study that tell how long one takes, and the tokens of the longest answer at alpha = 0."""

    name: str
    trials: Sequence[Evaluation]
    longest: int


def _slower(e: Evaluation, n_parallel: int, at_once: int, longest: int) -> float:
    """How many times a trial's seconds it takes with another number of engines than it had."""
    now, then = (e.n_generated / (at_once * n) + longest for n in (n_parallel, e.n_parallel))
    return now / then


def _stored(checked: Checked) -> tuple[int, int, _Alike | None]:
    """How many trials this study has, and their tokens; those that tell how long one takes."""
    storage, own = checked.storage, checked.spec.name
    names = study_names(storage)
    if own in names:
        n_trials, n_tokens, alike = _trials(storage, own)
        if n_trials:
            return n_trials, n_tokens, alike
    wanted = _alike(checked.settings)
    for name in names:
        kept = stored_attributes(storage, name)
        if kept is not None and kept.settings is not None and _alike(kept.settings) == wanted:
            alike = _trials(storage, name)[2]
            if alike is not None:
                return 0, 0, alike
    return 0, 0, None


def _trials(storage: str, name: str) -> tuple[int, int, _Alike | None]:
    """How many trials a study has, and their tokens; those that generated anything in the run that finished them."""
    store = Store(storage, name, read_only=True)
    try:
        trials = evaluations(store.study)
        measured = [e for e in trials if e.n_generated]
        longest = max((rated.length for rated in store.rated(CONTROL, "search").values()), default=0)
        alike = _Alike(name, measured, longest) if measured else None
        return len(trials), sum(e.n_tokens for e in trials), alike
    finally:
        store.close()


def _alike(settings: Settings) -> list[object]:
    flat = settings.flat_as_of_now()
    return [flat.get(key) for key in _ALIKE]
