"""completions -> rewards: a sequence classifier with one label, over the conversation in its own chat template.

Batches are sorted by length and filled to a budget of tokens; the result does not depend on the batch but for the
rounding of the matrix products. Letters: B sequences of a batch, T tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.config.spec import RewardSpec
from expo_search.dtypes import reward_arithmetic
from expo_search.errors import RewardError
from expo_search.evaluation.conversation_scorer import ConversationScorer

if TYPE_CHECKING:
    import torch


class SequenceRewardModel(ConversationScorer):
    """A transformers sequence classifier that reads (user, assistant) conversations; higher is better.

    Runs on the GPU where there is one.

    Raises (on construction):
        RewardError: cannot be loaded, lacks weights, or has more than one label.
    """

    def __init__(self, path: Path, spec: RewardSpec, *, trust_remote_code: bool = False) -> None:
        import torch

        super().__init__(path, spec, trust_remote_code=trust_remote_code)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        computed = reward_arithmetic(spec.arithmetic, cuda=self._device.type == "cuda")
        self.dtype: torch.dtype = getattr(torch, computed)
        self._model = load_classifier(path, trust_remote_code=trust_remote_code, dtype=self.dtype)
        self._model.to(self._device).eval()
        if self._model.config.pad_token_id is None:
            # transformers reads the score at the last token that is not padding: without one it needs batches of one
            self._model.config.pad_token_id = self.tokenizer.pad_token_id
        self._keep_within(getattr(self._model.config.get_text_config(), "max_position_embeddings", None))

    def _rate(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], list[float]]]:
        for rows in self._batches([len(s) for s in sequences]):
            yield rows, self._forward([sequences[r] for r in rows])

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows sorted by length, longest first (an impossible batch fails at once), padded size within the budget."""
        batch: list[int] = []
        can_pad = self._model.config.pad_token_id is not None
        for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
            longest = lengths[batch[0]] if batch else lengths[row]
            if batch and (not can_pad or (len(batch) + 1) * longest > self._spec.batch_tokens):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _forward(self, sequences: Sequence[list[int]]) -> list[float]:
        """Scores (B,) of B token sequences, padded on the right to (B, T)."""
        import torch

        longest = max(map(len, sequences))
        pad = self._model.config.pad_token_id or 0
        ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        try:
            with torch.inference_mode():
                logits: torch.Tensor = self._model(
                    input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
                ).logits
        except (RuntimeError, MemoryError) as fault:
            if not isinstance(fault, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(fault):
                raise
            raise RewardError(
                where="reward model",
                found=f"out of memory for a batch of {ids.numel()} tokens",
                expected="room for it",
                do="lower batch_tokens in the [reward] table of a study file; the answers are stored",
            ) from fault
        values: list[float] = logits.float()[:, 0].tolist()
        return values


def load_classifier(path: Path, *, trust_remote_code: bool, **options: Any) -> Any:
    """The sequence classifier in transformers. `options`: of `from_pretrained`; `device_map="meta"` reads no weights.

    Raises:
        RewardError: cannot be loaded, lacks weights, or has more than one label.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    check_labels(path, trust_remote_code=trust_remote_code)
    try:
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            path, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as fault:
        raise RewardError(
            where=f"reward model {path}",
            found=" ".join(str(fault).split())[:200],
            expected="a sequence classifier in safetensors",
            do="check the folder",
        ) from None
    _refuse_random_weights(path, loading)
    return model


def _refuse_random_weights(path: Path, loading: dict[str, Any]) -> None:
    """Refuse a file without all weights: transformers would make up the rest at random, such as a missing head."""
    lacking = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    if lacking:
        raise RewardError(
            where=f"reward model {path}",
            found=f"no weights for {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}",
            expected="a trained sequence classifier, whole",
            do="give the checkpoint that has its head",
        )


def check_labels(path: Path, *, trust_remote_code: bool) -> None:
    """Read a reward model's config only.

    Raises:
        RewardError: no config, or more than one label.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as fault:
        raise RewardError(
            where=f"reward model {path}",
            found=" ".join(str(fault).split())[:200],
            expected="a config.json that transformers can read" + ("" if trust_remote_code else " without remote code"),
            do="check the path" + ("" if trust_remote_code else ", or pass --trust-remote-code"),
        ) from None
    if config.num_labels != 1:
        raise RewardError(
            where=f"reward model {path}",
            found=f"{config.num_labels} labels",
            expected="1 (a scalar reward)",
            do="give a reward model, not a classifier",
        )
