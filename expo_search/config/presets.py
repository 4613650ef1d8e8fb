"""A preset or TOML file, with options laid over it -> `StudySpec`.

A preset is a study file that ships with the package (`studies/NAME.toml`); a file of one's own has the same tables and
may build on a preset with `preset = "zephyr"` in its first lines.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from expo_search.config.own_scorer import beside
from expo_search.config.several_rewards import apart, over
from expo_search.config.spec import StudySpec, check_consent, check_given, check_spec
from expo_search.errors import StudyError
from expo_search.folders import path_in, user_path

_MODELS = ("aligned", "sft", "adapter", "reward_model", "check_reward_model")
_PATHS = {"pair": _MODELS, "prompts": ("source",)}  # settings that may be one


def studies_folder() -> Path:
    """The folder of presets: inside an installed package, beside the package in a source tree."""
    package = Path(__file__).parent.parent
    installed = package / "studies"
    return installed if installed.is_dir() else package.parent / "studies"


@cache
def preset_names() -> dict[str, Path]:
    """Preset name or alias -> its study file, sorted by name."""
    files = {file.stem: file for file in studies_folder().glob("*.toml")}
    aliases = {alias: file for file in files.values() for alias in _read_toml(file).get("pair", {}).get("aliases", ())}
    return dict(sorted((files | aliases).items()))


def load_study(
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
) -> StudySpec:
    """Read a preset or a file (or neither, when the overrides name a pair) and lay the overrides over it.

    `overrides` is table -> key -> value, as in the file; a list as the pair's `reward_model` is several reward models.
    The context cap of the pair is the engine's unless set.

    Raises:
        StudyError: values of the overrides that are not allowed, before a file is read; unknown preset; not TOML; every
            value that is not allowed, in one message; a reward model beside another judge, or a split of a file, in the
            overrides; a scorer that the file names, without consent to run it (one in the overrides is the caller's
            own); a file that gives itself consent.
    """
    check_given(overrides or {})
    where, data, asked = "command line", dict[str, Any](), preset
    if file is not None:
        file = user_path(file)
        where, data = str(file), _beside(file, apart(_read_toml(file)))
        _refuse_own_consent(where, data)
        preset = data.pop("preset", preset)
        if asked not in (None, preset):
            raise StudyError(
                where=f"--pair {asked}",
                found=f"preset = {preset!r} in {file}",
                expected="one pair",
                do="drop --pair, or the file's `preset`",
            )
    if preset is not None:
        base_file = _preset_file(preset, None if file is None or asked is not None else file)
        where = str(file or f"preset {base_file.stem}")
        data = _over(_read_toml(base_file) | {"name": base_file.stem}, data)
    data = _over(data, apart(overrides or {}))
    if name is not None:
        data["name"] = name
    elif "name" not in data:
        data["name"] = file.stem if file else "custom"
    if trust_remote_code:
        data["trust_remote_code"] = True
    pair, engine = data.get("pair"), data.get("engine", {})
    if isinstance(pair, dict) and "max_model_len" in pair and isinstance(engine, dict):
        data["engine"] = {"max_model_len": pair["max_model_len"]} | engine
    if isinstance(data.get("reward"), Mapping) and "judge_url" in data["reward"]:
        data = _over({"search": {"objective": "win-rate"}}, data)
    spec = check_spec(data, where, overrides)
    named = (overrides or {}).get("reward", {})
    asked_model = (overrides or {}).get("pair", {}).get("reward_model")
    if asked_model is not None and spec.reward.rates_itself:
        raise StudyError(
            where=f"--reward-model {asked_model}",
            found=f"{spec.reward.named} to rate the answers as well",
            expected="one of the two",
            do="drop it, or the scorer or judge",
        )
    asked_split = (overrides or {}).get("prompts", {}).get("split")
    if asked_split is not None and user_path(spec.prompts.source).is_file():
        raise StudyError(
            where=f"--prompts-split {asked_split}",
            found=f"prompts of the file {spec.prompts.source}",
            expected="a Hub data set, which has splits",
            do="drop it, or name a data set with --prompts",
        )
    if all(named.get(key) is None for key in ("scorer", "judge_url")):  # else the caller names it
        check_consent(spec, where)
    return spec


def _preset_file(preset: str, named_in: Path | None) -> Path:
    """`named_in`: a study file that names it; else an option does."""
    known = preset_names()
    if not isinstance(preset, str):
        raise StudyError(where="preset", found=repr(preset), expected="a preset's name", do="see `expo-search pairs`")
    if preset not in known:
        near = difflib.get_close_matches(preset.lower(), known, n=3, cutoff=0.4)
        raise StudyError(
            where="--pair" if named_in is None else str(named_in),
            found=f"unknown preset {preset!r}",
            expected=f"one of {', '.join(near)}" if near else "a preset's name",
            do=(f"did you mean {'--pair ' if named_in is None else ''}{near[0]}? " if near else "")
            + "see `expo-search pairs`, or give "
            + ("--sft, --aligned, --reward-model and --prompts" if named_in is None else "a table [pair]"),
        )
    return known[preset]


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            where=str(file), found="no such file", expected="a study file in TOML", do="check the path"
        ) from None
    except (OSError, ValueError, RecursionError) as fault:  # ValueError: not UTF-8, not TOML, a number too long
        raise StudyError(
            where=str(file), found=str(fault), expected="a study file in TOML", do="fix the file"
        ) from None


def _refuse_own_consent(where: str, data: Mapping[str, Any]) -> None:
    """A file may come from anybody, and consent to run what it names from the user alone.

    Raises:
        StudyError: it has the key.
    """
    if "trust_remote_code" in data:
        raise StudyError(
            where=where,
            found="trust_remote_code",
            expected="consent to run remote code from the command line alone",
            do="drop it, and give --trust-remote-code once you have looked at what the file names",
        )


def _beside(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    """A study file's settings with its relative paths seen from its folder. What is not there stays: a Hub id."""
    folder, found = file.parent, dict(data)
    for table, keys in _PATHS.items():
        values = data.get(table)
        if not isinstance(values, Mapping):
            continue
        for key in keys:
            value = values.get(key)
            if isinstance(value, str) and (placed := _placed(folder, value)) != value:
                found[table] = dict(found[table]) | {key: placed}
    reward = data.get("reward")
    if isinstance(reward, Mapping) and isinstance(reward.get("scorer"), str):
        found["reward"] = dict(reward) | {"scorer": beside(reward["scorer"], folder)}
    if "rewards" in data and isinstance(data["rewards"], list):
        found["rewards"] = [_model_beside(folder, entry) for entry in data["rewards"]]
    return found


def _model_beside(folder: Path, entry: object) -> object:
    """One of several reward models of a study file, its folder as `_beside` has it."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("model"), str):
        return entry
    return dict(entry) | {"model": _placed(folder, entry["model"])}


def _placed(folder: Path, value: str) -> str:
    if not value:  # which is no path, and would lie where the folder does
        return value
    if not value.startswith(("./", "../")):
        return path_in(folder, value) if _exists(folder / value) else value
    path = path_in(folder, value)
    # a path that is not there is a mistake, and no Hub id
    return path if path.startswith(("/", "..")) or _exists(folder / value) else f"./{path}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _without_others_revisions(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`base` without the revisions of checkpoints in whose place `top` names others."""
    pair, given = base.get("pair"), top.get("pair")
    if not isinstance(pair, Mapping) or not isinstance(given, Mapping):
        return dict(base)
    replaced = {role for role in _MODELS if given.get(role) not in (None, pair.get(role))}
    revisions = {f"{role.removesuffix('_model')}_revision" for role in replaced}
    return dict(base) | {"pair": {key: value for key, value in pair.items() if key not in revisions}}


def _over(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`, tables merged key by key. Giving checkpoints replaces a preset's parts."""
    base, top = over(base, top)
    merged = _without_others_revisions(base, top)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = dict(merged[key]) | dict(value)
        else:
            merged[key] = value
    return merged
