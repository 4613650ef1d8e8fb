"""Two checkpoints -> whether they make a pair, and what the sft side must be given specially. Headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expo_search.checkpoint.folder import Checkpoint
from expo_search.errors import CheckpointError, MaterializeError
from expo_search.text import first_of

if TYPE_CHECKING:
    import torch


_POOLING = (
    "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "RewardModel", "ForRetrieval", "ForRanking",
    "ForQuestionAnswering", "ForMultipleChoice",
)  # fmt: skip
_INPUTS = (["embed_tokens"], ["tok_embeddings"], ["word_embeddings"], ["embeddings"], ["wte"], ["embed_in"])
_WRITING = ("LMHeadModel", "ChatGLMModel", "ChatModel", "OmniModel", "AudioModel", "LMModel", "UltravoxModel")


@dataclass(frozen=True)
class PairCheck:
    """Result of `check_pair`: names of tensors that need special treatment when sft is loaded.

    Attributes:
        longer_vocabulary: name -> (rows of aligned, rows of sft) of embeddings whose first dimension differs.
        tied_in_sft: output layers that only aligned stores; sft's is its input embedding.
        skipped_in_sft: output layers that only sft stores, though aligned ties them.
    """

    longer_vocabulary: Mapping[str, tuple[int, int]]
    tied_in_sft: Mapping[str, str]
    skipped_in_sft: tuple[str, ...]


def check_pair(aligned: Checkpoint, sft: Checkpoint) -> PairCheck:
    """Compare names, shapes and architecture of the two; one error has the number of faults and the first of them.

    Raises:
        CheckpointError: a model that writes no text; other architecture; tensors that one side lacks; other shapes.
    """
    for role, checkpoint in (("aligned", aligned), ("sft", sft)):
        if _scores_or_embeds(checkpoint.architecture):
            raise CheckpointError(
                where=f"{role} checkpoint {checkpoint.path}",
                found=f"{checkpoint.architecture}, a model that scores or embeds text",
                expected="a model that writes text (...ForCausalLM): its answers are what is judged",
                do="give the chat model; a reward model goes to --reward-model",
            )
    if aligned.architecture != sft.architecture:
        raise CheckpointError(
            where=f"sft checkpoint {sft.path}",
            found=f"architecture {sft.architecture}",
            expected=f"{aligned.architecture}, that of {aligned.path}",
            do="give the SFT checkpoint that the aligned model was trained from",
        )
    faults: list[str] = []
    tied: dict[str, str] = {}
    skipped: list[str] = []
    vocabulary: dict[str, tuple[int, int]] = {}
    vocab_sizes = {_vocabulary_size(c) for c in (aligned, sft)}
    for name in sorted(set(aligned.tensors) | set(sft.tensors)):
        a, s = aligned.tensors.get(name), sft.tensors.get(name)
        if a and s:
            if a.shape == s.shape:
                continue
            if a.shape[1:] == s.shape[1:] and len(vocab_sizes) == 2 and _is_vocabulary(name):
                vocabulary[name] = (a.shape[0], s.shape[0])
            else:
                faults.append(f"{name}: aligned {list(a.shape)}, sft {list(s.shape)}")
        elif s is None and _is_output(name) and sft.tied_embeddings and (e := _input_embedding(sft)):
            tied[name] = e
        elif a is None and _is_output(name) and aligned.tied_embeddings:
            skipped.append(name)
        else:
            faults.append(f"{name}: only in {'aligned' if a else 'sft'}")
    if faults:
        raise CheckpointError(
            where=f"pair {aligned.path} / {sft.path}",
            found=f"{len(faults)} tensors that do not match ({first_of(faults)})",
            expected="the same names and shapes on both sides",
            do="give the SFT checkpoint that the aligned model was trained from",
        )
    return PairCheck(vocabulary, tied, tuple(skipped))


def _scores_or_embeds(architecture: str) -> bool:
    """Whether a model has a head without a vocabulary, or none, judged by its name in transformers and vLLM."""
    return architecture.endswith(_POOLING) or (architecture.endswith("Model") and not architecture.endswith(_WRITING))


def with_rows_of(aligned: torch.Tensor, sft: torch.Tensor) -> torch.Tensor:
    """The vocabulary tensor of `sft` in the shape of `aligned`, whose rows stand in for those that `sft` lacks.

    Such rows do not move with alpha.
    """
    import torch

    if aligned.shape == sft.shape:
        return sft
    rows = min(len(aligned), len(sft))
    out = aligned.to(torch.promote_types(aligned.dtype, sft.dtype)).clone()
    out[:rows] = sft[:rows]
    return out


def _is_output(name: str) -> bool:
    return name.split(".")[-2:-1] in (["lm_head"], ["output"], ["embed_out"])


def _is_vocabulary(name: str) -> bool:
    return _is_output(name) or name.split(".")[-2:-1] in _INPUTS


def _vocabulary_size(checkpoint: Checkpoint) -> object:
    """Vocabulary size of the language model, also where the config describes other models beside it."""
    text = checkpoint.config.get("text_config")
    return checkpoint.config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)


def _input_embedding(checkpoint: Checkpoint) -> str | None:
    return next((n for n in checkpoint.tensors if _is_vocabulary(n) and not _is_output(n)), None)


def same_weights(aligned: Path, sft: Path) -> MaterializeError:
    """The error for a pair of two checkpoints with the same weights."""
    return MaterializeError(
        where=f"pair {aligned} / {sft}",
        found="aligned and sft hold the same weights",
        expected="two different checkpoints",
        do="check --sft and --aligned",
    )
