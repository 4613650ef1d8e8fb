"""A stored study whose best alpha lies at the edge of its range -> the one command that looks past it.

The database keeps the whole spec, not what was typed: options are given where the spec differs from the preset with
its pair, or from the defaults. What no option can say came from a study file, whose name is not known: FILE.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from expo_search.bench.result import Asked
from expo_search.config.amounts import as_time, as_tokens
from expo_search.config.options import DEFAULT_STORAGE, DEFAULT_TRIALS, OPTIONS, TRIALS_OF_A_BUDGET, option_of
from expo_search.config.presets import load_study, preset_names
from expo_search.config.spec import PairSpec, StudySpec
from expo_search.errors import ExpoError
from expo_search.results.verdict import Verdict
from expo_search.search.alpha_range import WIDEST, bounds
from expo_search.text import shown

_MORE_TRIALS = 10  # for the new part of a range
_NO_SETTING = {"aligned_revision", "sft_revision", "reward_revision", "published_alpha", "family", "aliases", "licence"}
_NO_SETTING |= {"notes", "needs_remote_code", "check_reward_revision", "adapter_revision"}
_OF_ONE = ("max_tokens", "batch_tokens")  # which several reward models have each


def search_again(stored: Mapping[str, Any] | None, name: str, url: str, edge: float | None, n_trials: int) -> str:
    """The command; empty where the best alpha lies at no edge, or the spec is none that this version can read.

    `expo` takes trials from any range, so the same study goes on; other samplers need a study of their own.
    """
    try:
        spec = None if stored is None or edge is None else StudySpec.model_validate(stored)
    except ValidationError:
        spec = None
    if spec is None or edge is None:
        return ""
    end, value = _past(spec, edge)
    goes_on = spec.search.sampler == "expo"
    trials = max(DEFAULT_TRIALS, n_trials + _MORE_TRIALS if goes_on else n_trials)
    options = ["--trials", str(trials)] if trials != DEFAULT_TRIALS else []
    options += ["--study-name", name if goes_on else f"{name[:98]}-2"]
    options += ["--trust-remote-code"] if spec.trust_remote_code else []
    options += ["--storage", shown(url)] if url != DEFAULT_STORAGE else []
    return shlex.join(["expo-search", *_settings(spec), *_last(end, value, spec), *options])


def go_on(
    stored: Mapping[str, Any] | None,
    name: str,
    url: str,
    n_trials: int | None,
    budget: Mapping[str, float | None] | None = None,
) -> str:
    """The command that goes on with a study until it has n_trials; empty where its spec is none that can be read.

    `budget`: of a search that has one (see `StudyAttributes`), which says how many trials it may have.
    """
    try:
        spec = None if stored is None else StudySpec.model_validate(stored)
    except ValidationError:
        spec = None
    if spec is None:
        return ""
    ends = [(end, getattr(spec.search, end)) for end in ("alpha_min", "alpha_max")]
    given = [word for end, value in ends if value != "auto" for word in _given("search", end, value)]
    options = _limits(budget) if budget else []
    if not budget and n_trials not in (None, DEFAULT_TRIALS):
        options = ["--trials", str(n_trials)]
    settings = _settings(spec)
    if "FILE" in settings or name != (_preset_of(spec)[0] or "custom"):
        options += ["--study-name", name]
    options += ["--trust-remote-code"] if spec.trust_remote_code else []
    options += ["--storage", shown(url)] if url != DEFAULT_STORAGE else []
    return shlex.join(["expo-search", *settings, *given, *options])


def bench_on(name: str, url: str, asked: Asked, best: float | None, *, asks_consent: bool = False) -> str:
    """The command that goes on with a benchmark that was not finished; `best`: the alpha that it takes by itself."""
    options = [word for task, file in asked.data.items() for word in ("--data", f"{task}={file}")]
    options += [] if asked.limit is None else ["--limit", str(asked.limit)]
    if asked.alphas and list(asked.alphas) != [0.0, best]:
        options += ["--alphas", ",".join(map(_written, asked.alphas))]
    options += ["--trust-remote-code"] if asks_consent else []
    options += ["--storage", shown(url)] if url != DEFAULT_STORAGE else []
    return shlex.join(["expo-search", "bench", name, "--tasks", ",".join(asked.tasks), *options])


def _limits(budget: Mapping[str, float | None]) -> list[str]:
    """The options that give a search this budget; of --time the whole, which is of one run."""
    tokens, seconds, trials = (budget.get(key) for key in ("tokens", "seconds", "trials"))
    return [
        *([] if tokens is None else ["--tokens", as_tokens(int(tokens))]),
        *([] if seconds is None else ["--time", as_time(seconds)]),
        *([] if trials in (None, TRIALS_OF_A_BUDGET) else ["--trials", str(trials)]),
    ]


def _past(spec: StudySpec, edge: float) -> tuple[str, float | str]:
    """(end of the range, where to put it): twice as far out, and over 0; `expo` needs no number above."""
    if edge == bounds(spec.search, spec.pair.published_alpha)[1]:
        if spec.search.sampler == "expo" and edge < WIDEST[1]:
            return "alpha_max", "auto"
        return "alpha_max", 2 * edge if edge > 0 else 1.0 if edge == 0 else 0.0
    return "alpha_min", 2 * edge if edge < 0 else -1.0 if edge == 0 else 0.0


def _last(end: str, value: float | str, spec: StudySpec) -> list[str]:
    """The range: the end that is moved, and the other one where it was given."""
    other = "alpha_min" if end == "alpha_max" else "alpha_max"
    kept = getattr(spec.search, other)
    given = [] if kept == "auto" else _given("search", other, kept)
    return [*given, *_given("search", end, value)]


def _settings(spec: StudySpec) -> list[str]:
    """The options, but the range's, that make this spec again."""
    preset, base = _preset_of(spec)
    words: list[str] = [] if preset is None else ["--pair", preset]
    unsaid = False
    for table, values in spec.model_dump(mode="json").items():
        if table in ("name", "trust_remote_code"):
            continue
        if table == "rewards":  # each is run as the others, but for what `[[reward]]` alone can say
            words += [word for entry in values for word in _given("pair", "reward_model", entry["model"])]
            usually = base.reward
            unsaid |= any(entry[key] != getattr(usually, key) for entry in values for key in _OF_ONE)
            continue
        usual = base.model_dump(mode="json")[table]
        for key, value in values.items():
            if key in _NO_SETTING or key in ("alpha_min", "alpha_max") or value == usual.get(key):
                continue
            if spec.rewards and (key == "reward_model" or (table == "reward" and key in _OF_ONE)):
                continue
            if spec.reward.rates_itself and (table, key) == ("pair", "reward_model"):  # which rates nothing then
                continue
            option = option_of(table, key)
            if option and all(getattr(getattr(spec, other), key) == value for other in option.also):
                words += _given(table, key, value)
            elif not _said_elsewhere(spec, table, key, value):
                unsaid = True
    if preset is None and not unsaid:
        rated = () if spec.reward.rates_itself else ("reward_model",)
        pair = {key: getattr(spec.pair, key) for key in ("aligned", "adapter", "sft", *rated)}
        return [word for key, value in pair.items() if value for word in _given("pair", key, value)] + words
    return ["--study", "FILE", *(words[2:] if preset is not None else words)] if unsaid else words


def _said_elsewhere(spec: StudySpec, table: str, key: str, value: object) -> bool:
    """Whether a setting follows from an option of another table."""
    if (table, key) == ("pair", "max_model_len"):
        return value == spec.engine.max_model_len
    by = next((o for o in OPTIONS if o.key == key and table in o.also), None)
    return by is not None and getattr(getattr(spec, by.table), key) == value


def _given(table: str, key: str, value: object) -> list[str]:
    """An option with its value, as typed."""
    option = option_of(table, key)
    assert option is not None, f"no option for {table}.{key}"
    if option.kind is bool:
        return [option.flag if value else option.flag.replace("--", "--no-", 1)]
    return [option.flag, _written(value)]


def _preset_of(spec: StudySpec) -> tuple[str | None, StudySpec]:
    """The preset with this pair, and what it says; where there is none, the pair with all defaults."""
    same = ("aligned", "adapter", "sft", "parts", *(() if spec.rewards else ("reward_model",)))
    for stem in sorted({file.stem for file in preset_names().values()}, key=lambda stem: stem != spec.name):
        preset = _preset(stem)
        if preset is not None and all(getattr(preset.pair, key) == getattr(spec.pair, key) for key in same):
            return stem, preset
    pair = {key: value for key in same if (value := getattr(spec.pair, key)) is not None}
    return None, StudySpec.model_construct(name=spec.name, pair=PairSpec.model_validate(pair))


@cache
def _preset(stem: str) -> StudySpec | None:
    """A preset; none where somebody changed its file. Read once: a search names its commands after each trial."""
    try:
        return load_study(preset=stem, trust_remote_code=True)
    except ExpoError:
        return None


def _written(value: object) -> str:
    """As people write it, where that is the same number."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def next_steps(
    name: str,
    url: str,
    verdict: Verdict,
    *,
    has_bench: bool = False,
    asks_consent: bool = False,
    shapes: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """(command, purpose) of what can be done with a study now. A password in the URL is not shown.

    Args:
        asks_consent: the pair, or what rates the study, runs with consent alone.
        shapes: kinds of those that are shown to be better than the recommended alpha for all weights.
    """
    at = "" if url == DEFAULT_STORAGE else f" --storage {shlex.quote(shown(url))}"
    asks = " --trust-remote-code" if asks_consent else ""
    study = shlex.quote(name)
    steps = []
    if verdict.again:
        steps.append((verdict.again, "the same search, past the edge of its range"))
    if verdict.recommended is not None and verdict.confirmed is None:
        steps.append((f"expo-search confirm {study}{at}{asks}", "measure the gain on prompts the search never saw"))
    if verdict.recommended is not None and not has_bench:
        steps.append((f"expo-search bench {study}{at}{asks}", "what the best alpha does where no reward model looks"))
    if verdict.recommended is not None:
        steps.append((f"expo-search export {study} --out DIR{at}{asks}", "the model at the best alpha"))
        for kind in shapes:
            spread = f"expo-search export {study} --shape {kind} --out DIR{at}{asks}"
            steps.append((spread, "the same with an alpha for each weight, which is better"))
        steps.append((f"expo-search compare {study} --alphas 0,{verdict.alpha:.4g}{at}{asks}", "answers side by side"))
    steps.append((f"expo-search show {study}{at}", "trials, curve, verdict"))
    steps.append((f"expo-search dashboard {study}{at}", "look into the study in a browser"))
    steps.append((f"expo-search report {study} --out report.html{at}", "all of it on one page"))
    return steps
