"""A stored study whose best alpha lies at the edge of its range -> the one command that looks past it.

The database keeps the whole spec, not what was typed: options are given where the spec differs from the preset with
its pair, or from the defaults. What no option can say came from a study file, whose name is not known: FILE.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from expo_search.config.presets import load_study, preset_names
from expo_search.config.spec import DEFAULT_STORAGE, SearchSpec, StudySpec
from expo_search.errors import ExpoError
from expo_search.results.verdict import Verdict
from expo_search.search.alpha_range import WIDEST
from expo_search.text import shown

_N_TRIALS = 20  # of a search that is not told another number
_MORE_TRIALS = 10  # for the new part of a range
_OPTIONS = {
    "pair": {"sft": "--sft", "aligned": "--aligned", "adapter": "--adapter", "reward_model": "--reward-model"},
    "prompts": {"source": "--prompts", "n": "--n-prompts"},
    "sampling": {"max_tokens": "--max-tokens", "temperature": "--temperature"},
    "search": {
        "alpha_min": "--alpha-min", "alpha_max": "--alpha-max", "objective": "--objective", "sampler": "--sampler",
        "tolerance": "--tolerance", "seed": "--seed",
    },
    "engine": {
        "dtype": "--dtype", "arithmetic": "--arithmetic", "max_model_len": "--max-model-len",
        "tensor_parallel": "--tensor-parallel", "sources": "--sources", "timeout_s": "--engine-timeout",
    },
}  # fmt: skip
_NO_SETTING = {"aligned_revision", "sft_revision", "reward_revision", "published_alpha", "family", "aliases", "licence"}
_NO_SETTING |= {"notes", "needs_remote_code"}


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
    end, value = _past(spec.search, edge)
    goes_on = spec.search.sampler == "expo"
    trials = max(_N_TRIALS, n_trials + _MORE_TRIALS if goes_on else n_trials)
    options = ["--trials", str(trials)] if trials != _N_TRIALS else []
    options += ["--study-name", name if goes_on else f"{name[:98]}-2"]
    options += ["--trust-remote-code"] if spec.trust_remote_code else []
    options += ["--storage", shown(url)] if url != DEFAULT_STORAGE else []
    return shlex.join(["expo-search", *_settings(spec), *_last(end, value, spec), *options])


def _past(search: SearchSpec, edge: float) -> tuple[str, float | str]:
    """(end of the range, where to put it): twice as far out, and over 0; `expo` needs no number above."""
    if search.alpha_max == edge:
        if search.sampler == "expo" and edge < WIDEST[1]:
            return "alpha_max", "auto"
        return "alpha_max", 2 * edge if edge > 0 else 1.0 if edge == 0 else 0.0
    return "alpha_min", 2 * edge if edge < 0 else -1.0 if edge == 0 else 0.0


def _last(end: str, value: float | str, spec: StudySpec) -> list[str]:
    """The range: the end that is moved, and the other one where it was given."""
    other = "alpha_min" if end == "alpha_max" else "alpha_max"
    kept = getattr(spec.search, other)
    given = [] if kept == "auto" else [_OPTIONS["search"][other], _written(kept)]
    return [*given, _OPTIONS["search"][end], _written(value)]


def _settings(spec: StudySpec) -> list[str]:
    """The options, but the range's, that make this spec again."""
    preset, base = _preset_of(spec)
    words: list[str] = [] if preset is None else ["--pair", preset]
    unsaid = False
    for table, values in spec.model_dump(mode="json").items():
        if table in ("name", "trust_remote_code"):
            continue
        usual = base.model_dump(mode="json")[table]
        for key, value in values.items():
            if key in _NO_SETTING or key in ("alpha_min", "alpha_max") or value == usual[key]:
                continue
            if key == "racing":
                words.append("--racing" if value else "--no-racing")
            elif key in _OPTIONS.get(table, {}) and (key != "arithmetic" or value == spec.reward.arithmetic):
                words += [_OPTIONS[table][key], _written(value)]
            elif (table, key, value) not in (
                ("pair", "max_model_len", spec.engine.max_model_len),
                ("reward", "arithmetic", spec.engine.arithmetic),  # one option for both
            ):
                unsaid = True
    if preset is None and not unsaid:
        pair = {"aligned": spec.pair.aligned, "adapter": spec.pair.adapter, "sft": spec.pair.sft}
        pair |= {"reward_model": spec.pair.reward_model}
        return [w for k, v in pair.items() if v for w in (_OPTIONS["pair"][k], v)] + words
    return ["--study", "FILE", *(words[2:] if preset is not None else words)] if unsaid else words


def _preset_of(spec: StudySpec) -> tuple[str | None, StudySpec]:
    """The preset with this pair, and what it says; where there is none, the pair with all defaults."""
    same = ("aligned", "adapter", "sft", "reward_model", "parts")
    for stem in sorted({file.stem for file in preset_names().values()}, key=lambda stem: stem != spec.name):
        try:
            preset = load_study(preset=stem, trust_remote_code=True)
        except ExpoError:  # a file that somebody changed
            continue
        if all(getattr(preset.pair, key) == getattr(spec.pair, key) for key in same):
            return stem, preset
    pair = {key: value for key in same if (value := getattr(spec.pair, key)) is not None}
    return None, StudySpec.model_validate({"name": spec.name, "pair": pair})


def _written(value: object) -> str:
    """As people write it, where that is the same number."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


def next_steps(name: str, url: str, found: Verdict) -> list[tuple[str, str]]:
    """(command, purpose) of what can be done with a study now. A password in the URL is not shown."""
    at = "" if url == DEFAULT_STORAGE else f" --storage {shlex.quote(shown(url))}"
    study = shlex.quote(name)
    steps = []
    if found.again:
        steps.append((found.again, "the same search, past the edge of its range"))
    if found.word == "better" and found.confirmed is None:
        steps.append((f"expo-search confirm {study}{at}", "measure the gain on prompts the search never saw"))
    if found.word == "better" and found.best is not None:
        steps.append((f"expo-search export {study} --out DIR{at}", "the model at the best alpha"))
        steps.append(
            (f"expo-search compare {study} --alphas 0,{found.best.alpha:.4g} -n 5{at}", "answers side by side")
        )
    steps.append((f"expo-search show {study}{at}", "trials, curve, verdict"))
    steps.append((f"expo-search dashboard {study}{at}", "look into the study in a browser"))
    steps.append((f"expo-search report {study} --out report.html{at}", "all of it on one page"))
    return steps
