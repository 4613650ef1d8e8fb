"""Which architectures make a pair at all; names and shapes are in `test_checkpoint_folder.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from twins import make_pair, make_reward_model

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.pair_check import check_pair
from expo_search.errors import CheckpointError


def checkpoint(architecture: str, path: str = "x") -> Checkpoint:
    return Checkpoint(Path(path), {"architectures": [architecture]}, {})


@pytest.mark.parametrize(
    "architecture",
    [
        "LlamaForSequenceClassification", "Qwen3ForSequenceClassification", "BertForTokenClassification",
        "InternLM2ForRewardModel", "Qwen2ForProcessRewardModel", "RobertaForMaskedLM", "JinaForRanking",
        "ColPaliForRetrieval",
        "LlamaModel", "Qwen2Model", "BertModel", "NomicBertModel", "Gemma3TextModel", "LlamaBidirectionalModel",
    ],
)  # fmt: skip
def test_models_that_score_or_embed_are_refused_with_the_reason(architecture: str) -> None:
    for aligned, sft, role in (
        (checkpoint(architecture, "a"), checkpoint(architecture, "s"), "aligned checkpoint a"),
        (checkpoint("LlamaForCausalLM", "a"), checkpoint(architecture, "s"), "sft checkpoint s"),
    ):
        with pytest.raises(CheckpointError) as fault:
            check_pair(aligned, sft)
        assert str(fault.value) == (
            f"{role}: {architecture}, a model that scores or embeds text; expected a model that writes text "
            "(...ForCausalLM): its answers are what is judged; give the chat model; a reward model goes to "
            "--reward-model"
        )


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForCausalLM", "InternLM2ForCausalLM", "GPT2LMHeadModel", "ChatGLMModel", "Gemma3ForConditionalGeneration"],
)
def test_models_that_write_are_not(architecture: str) -> None:
    check_pair(checkpoint(architecture), checkpoint(architecture))


def test_a_real_reward_model_given_as_aligned_is_refused_before_any_engine_starts(tmp_path: Path) -> None:
    aligned = open_checkpoint(make_reward_model(tmp_path / "reward"), role="aligned")
    _, sft = make_pair(tmp_path, "llama-tied")
    with pytest.raises(CheckpointError, match="LlamaForSequenceClassification, a model that scores or embeds text"):
        check_pair(aligned, open_checkpoint(sft, role="sft"))
