"""A written checkpoint, loaded in a fresh engine, compared with the trial it was made from: weights and answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_search.contracts import Completion
from expo_search.dtypes import STORED, Asked, own_dtype, weights_dtype
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.errors import CheckpointError, EngineDied
from expo_search.store.answer_rows import Stored
from expo_search.text import storable

_FEW = 8  # prompts that are repeated first


def verify(
    folder: Path,
    spec: ModelSpec,
    fingerprint: str,
    stored: Sequence[Stored],
    say: Callable[[str], None],
    give_up: Callable[[EngineDied], None] | None = None,
) -> str:
    """Load `folder` as the aligned model of `spec` in a fresh engine and compare it with a trial; says what is equal.

    First some of the trial's own prompts are repeated, with its seeds. An engine's rounding can depend on which
    prompts share a batch, so where an answer differs all are repeated, in one batch as in the trial.

    Args:
        stored: the trial's answers, by position. give_up: see `VllmModel`.

    Raises:
        CheckpointError: other weights than the trial's, or other answers.
    """
    say("verifying: starting vLLM on what was written")
    model = VllmModel(replace(spec, aligned=folder), give_up)
    try:
        written = model.materialize(0.0).fingerprint
        if written != fingerprint:
            raise _differs(folder, f"weights with fingerprint {written}", f"{fingerprint}, the trial's")
        few = stored[:_FEW]
        differing = _differing(model, few, spec.seed)
        if differing:
            few = stored
            say(f"{differing} of {_FEW} answers differ in another batch; repeating all, in one batch as in the trial")
            differing = _differing(model, stored, spec.seed)
        if differing:
            raise _differs(
                folder, f"{differing} of {len(few)} answers that differ from the trial's", "the same answers"
            )
    finally:
        model.close()
    return f"fingerprint {fingerprint} and {len(few)} of the trial's {len(stored)} answers, the same"


def trial_dtype(asked: Asked, config: Mapping[str, Any], stored: Collection[str] = ()) -> str | None:
    """The dtype of the weights that were evaluated; None where vLLM chose it: it rounds float32 to a smaller one.

    `stored`: the dtypes of the aligned checkpoint's tensors, as safetensors spells them.
    """
    own = own_dtype(config)
    if asked != "auto":
        return asked
    live = weights_dtype("auto", config, stored)
    return live if _is_rounded_otherwise(live, stored) else None if own in (None, "float32") else own


def dtype_to_write(asked: Asked, config: Mapping[str, Any], stored: Collection[str]) -> str | None:
    """The dtype in which a checkpoint holds the trial's weights; None: as the aligned one stores them it does.

    `stored`: see `trial_dtype`.
    """
    trial = trial_dtype(asked, config, stored)
    if trial is None or (trial == own_dtype(config) and not _is_rounded_otherwise(trial, stored)):
        return None
    return trial


def _is_rounded_otherwise(dtype: str, stored: Collection[str]) -> bool:
    """Whether a checkpoint has weights in a 16-bit dtype that is not this one: as stored, theta(alpha) is another."""
    return bool({STORED["bfloat16"], STORED["float16"]} & set(stored) - {STORED[dtype]})


def engine_dtype(
    asked: Asked, config: Mapping[str, Any], written: str | None, stored: Collection[str] = ()
) -> str | None:
    """The dtype in which the engine must load what was written to have the trial's weights; None if it cannot.

    A checkpoint in float32 holds theta(alpha) before its last rounding, so the engine can round it as it did live.
    `stored`: see `trial_dtype`.
    """
    trial, own = trial_dtype(asked, config, stored), own_dtype(config)
    if trial is None:
        return "auto" if written in (None, own) else None
    return trial if (written or own) in (trial, "float32") else None


def _differing(model: VllmModel, stored: Sequence[Stored], seed: int) -> int:
    """How many of the stored answers differ when the model answers again with the same seeds."""
    prompts = [s.completion.prompt for s in stored]
    again = {
        c.prompt: replace(c, text=storable(c.text)) for c in model.generate(prompts, seed) if isinstance(c, Completion)
    }
    return sum(again[s.completion.prompt] != s.completion for s in stored)


def _differs(folder: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        where=f"--verify of {folder.name}",
        found=found,
        expected=expected,
        do="report this with the log file; nothing was left. Where the hardware or vLLM changed since the trial, "
        "export without --verify",
    )
