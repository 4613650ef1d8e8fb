"""A checkpoint's config -> how many tokens its context may hold, as vLLM 0.32 derives it (`_get_and_verify_max_len`).

Read without vLLM, whose import alone takes seconds, so that a context that is too long is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expo_search.config.spec import StudySpec
from expo_search.errors import CheckpointError, StudyError

_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
_SCALED_ALREADY = {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}


def allowed_context(path: Path, *, trust_remote_code: bool) -> int | None:
    """Tokens of prompt and answer together at most; None where the config does not say.

    The smallest number of positions that it names (Cohere's `model_max_length` goes before), times the factor of a
    rope scaling whose positions are not scaled already. vLLM's sliding windows shorten no context.

    Raises:
        CheckpointError: a value in the config that is of another type than the model's.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    except StrictDataclassError as fault:
        raise CheckpointError(
            where=f"config.json of {path}",
            found=" ".join(str(fault).split())[:200],
            expected="values of the types that the model has",
            do="download the file again",
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ImportError):
        return None  # a kind of model that only vLLM knows, which checks it later
    named = [n for key in _KEYS if isinstance(n := getattr(config, key, None), int | float)]
    if not named:
        return None
    derived = getattr(config, "model_max_length", None) or min(named)
    if "gemma3" not in config.model_type:
        factors = [rope.get("factor") for rope in _ropes(config) if rope.get("rope_type") not in _SCALED_ALREADY]
        derived *= next((f for f in reversed(factors) if f), 1.0)
    return int(derived)


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The rope parameters of a config, one table for each type of layer where those differ."""
    ropes = getattr(config, "rope_parameters", None)
    if isinstance(ropes, dict):
        tables = [table for table in ropes.values() if isinstance(table, dict)]
        yield from tables or [ropes]


def in_context(spec: StudySpec, aligned: Path) -> StudySpec:
    """The spec with a context that the checkpoint allows: what was set, or the smaller of that and the default.

    Raises:
        StudyError: one was set that is longer.
    """
    allowed = allowed_context(aligned, trust_remote_code=spec.trust_remote_code)
    if allowed is None:
        return spec
    _refuse_longer(spec, aligned, allowed)
    length = min(spec.engine.max_model_len, allowed)
    return spec.model_copy(update={"engine": spec.engine.model_copy(update={"max_model_len": length})})


def check_context(spec: StudySpec, aligned: Path, config: Mapping[str, Any]) -> None:
    """Refuse at once what `in_context` would, from the plain config.json: transformers takes seconds to import.

    A config that scales its positions, or names none, is left to `in_context`.

    Raises:
        StudyError: a context was set that is longer than the checkpoint's.
    """
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    named = [n for key in _KEYS if isinstance(n := text.get(key), int) and not isinstance(n, bool)]
    if named and not any("factor" in str(text.get(key)) for key in ("rope_scaling", "rope_parameters")):
        _refuse_longer(spec, aligned, max(named))


def _refuse_longer(spec: StudySpec, aligned: Path, allowed: int) -> None:
    asked = spec.engine.max_model_len
    if "max_model_len" in spec.engine.model_fields_set and asked > allowed:
        raise StudyError(
            where=f"max_model_len {asked}",
            found=f"{aligned}, whose context holds {allowed} tokens",
            expected=f"at most {allowed}",
            do=f"give --max-model-len {allowed} or less, or leave it out",
        )


def no_room(spec: StudySpec, longest: int, shortest: int) -> StudyError:
    """The fault of `max_tokens` that leave no prompt any room; prompts are of `shortest` to `longest` tokens.

    What would fit is for all prompts, or for the shortest where the longest fills the context alone.
    """
    length, asked = spec.engine.max_model_len, spec.sampling.max_tokens
    room = length - longest if length > longest else length - shortest
    return StudyError(
        where=f"max_tokens {asked}",
        found=f"a context of {length} tokens, and prompts of {shortest} to {longest}",
        expected="room for a prompt and its whole answer",
        do=f"give --max-tokens {room} or less, or a longer --max-model-len where the checkpoint allows it",
    )
