"""Everything that changes a reward: what all trials of one study are made under."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from expo_search.checkpoint.folder import Checkpoint
from expo_search.config.spec import StudySpec
from expo_search.contracts import Prompt
from expo_search.dtypes import Dtypes
from expo_search.inputs.prompts import prompts_hash
from expo_search.inputs.source import LOCAL, Pair, Source


def sources_settings(pair: Pair, aligned: Checkpoint, sft: Checkpoint) -> dict[str, Any]:
    """What identifies the two checkpoints of a search."""
    return {
        "pair.aligned": _identity(pair.aligned, aligned),
        "pair.sft": _identity(pair.sft, sft),
        "files.aligned": aligned.sample_hash,
        "files.sft": sft.sample_hash,
    }


def advice_on_changes(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Advice to who has other settings than a study; where only the machine is another, an option that goes on."""
    arithmetic = stored.get("engine.arithmetic")
    differing = {key for key in stored.keys() & settings.keys() if stored[key] != settings[key]}
    if arithmetic and differing <= {"engine.arithmetic", "reward.arithmetic"}:
        return f"--arithmetic {arithmetic} goes on as there, or give another --study-name"
    return "drop the differing options, or give another --study-name"


def _identity(source: Source, checkpoint: Checkpoint) -> str:
    """A folder is what is in it, wherever it lies and however its path is spelled."""
    name = LOCAL if source.revision == LOCAL else f"{source.id}@{source.revision}"
    return f"{name}#{checkpoint.header_hash}"


def study_settings(
    spec: StudySpec,
    pair: Pair,
    aligned: Checkpoint,
    sft: Checkpoint,
    reward: Checkpoint,
    prompts: Sequence[Prompt],
    templates: Mapping[str, object],
    dtypes: Dtypes,
) -> dict[str, Any]:
    """Everything that changes a reward or the sampler's view of the study, flat."""
    flat: dict[str, Any] = {
        "pair.reward_model": _identity(pair.reward_model, reward),
        "files.reward_model": reward.sample_hash,
        "pair.stop_token_ids": list(spec.pair.stop_token_ids),
        "pair.stop_strings": list(spec.pair.stop_strings),
        "prompts.n": len(prompts),
        "prompts.hash": prompts_hash(prompts),
        "reward.max_tokens": spec.reward.max_tokens,
        "reward.arithmetic": dtypes.reward,
        "engine.dtype": spec.engine.dtype,
        "engine.arithmetic": dtypes.engine,
        "engine.max_model_len": spec.engine.max_model_len,
        "engine.tensor_parallel": spec.engine.tensor_parallel,  # fingerprints are by rank
    }
    # when to end changes no trial, and `expo` takes trials from any range: its range may be widened in mid-study
    free = {"tolerance"} | ({"alpha_min", "alpha_max"} if spec.search.sampler == "expo" else set())
    search = {f"search.{key}": value for key, value in spec.search.model_dump().items() if key not in free}
    tables = _flat("sampling", spec.sampling) | _flat("guardrails", spec.guardrails) | search
    texts = {key: hashlib.sha256(str(text).encode()).hexdigest()[:16] for key, text in templates.items()}
    return sources_settings(pair, aligned, sft) | flat | texts | tables


def _flat(table: str, values: Any) -> dict[str, Any]:
    return {f"{table}.{key}": value for key, value in values.model_dump().items()}
