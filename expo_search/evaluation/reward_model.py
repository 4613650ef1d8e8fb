"""completions -> rewards: a sequence classifier with one label, over the conversation in its own chat template.

Batches are sorted by length and filled to a budget of tokens; the result does not depend on the batch but for the
rounding of the matrix products. A batch that does not fit in memory halves the budget for the rest of the run. Letters:
B sequences of a batch, T tokens of its longest.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_search.config.spec import RewardSpec
from expo_search.dtypes import reward_arithmetic
from expo_search.errors import RewardError
from expo_search.evaluation.conversation_scorer import ConversationScorer

if TYPE_CHECKING:
    import torch

# as transformers names them; a reward model that a repository's own code makes has a name of its own
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


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
        # by default transformers keeps every layer's keys and values for a generation that does not follow
        self._model.config.get_text_config().use_cache = False
        self._keep_within(getattr(self._model.config.get_text_config(), "max_position_embeddings", None))
        self._budget = self._budget_said = spec.batch_tokens

    def close(self) -> None:
        """Free the weights, also where something refers to this object: a traceback that a library keeps is enough."""
        import torch

        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _rate(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], list[float]]]:
        lengths = [len(s) for s in sequences]
        # longest first: an impossible batch fails at once
        left = sorted(range(len(lengths)), key=lambda r: -lengths[r])
        while left:
            rows = left[: self._n_front([lengths[r] for r in left])]
            values = self._forward_within_memory([sequences[r] for r in rows])
            if values is None:
                continue  # within the smaller budget
            left = left[len(rows) :]
            yield rows, values

    def _n_front(self, lengths: Sequence[int]) -> int:
        """How many rows, sorted by length and longest first, fill a batch of the budget's padded size; at least 1."""
        if self._model.config.pad_token_id is None:
            return 1
        return max(1, min(len(lengths), self._budget // max(lengths[0], 1)))

    def _forward_within_memory(self, sequences: Sequence[list[int]]) -> list[float] | None:
        """As `_forward`; None where there is no memory for the batch, with the budget smaller from then on.

        Raises:
            RewardError: no memory for a single sequence.
        """
        import torch

        n_tokens = len(sequences) * max(map(len, sequences))
        try:
            values = self._forward(sequences)
        except (RuntimeError, MemoryError) as fault:
            if not isinstance(fault, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(fault):
                raise
            if len(sequences) == 1:
                raise RewardError(
                    where="reward model",
                    found=f"out of memory for one conversation of {n_tokens} tokens",
                    expected="room for it",
                    do="free memory on its device, or take a smaller pair or reward model; the answers are stored",
                ) from fault
        else:
            if self._budget < self._budget_said:
                self._budget_said = self._budget
                logging.getLogger(__name__).warning(
                    "the reward model ran out of memory: batches of %d tokens from here on, instead of %d",
                    self._budget,
                    self._spec.batch_tokens,
                )
            return values
        # after the handler, whose traceback held the tensors of the pass that failed
        self._budget = min(self._budget, n_tokens) // 2
        torch.cuda.empty_cache()
        return None

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
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).logits
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


def check_whole(path: Path, *, trust_remote_code: bool) -> None:
    """Check that a folder holds a whole reward model, by its config and the names of its weights; reads no weight.

    Raises:
        RewardError: as `load_classifier`.
    """
    load_classifier(path, trust_remote_code=trust_remote_code, device_map="meta")


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
        RewardError: no config, a language model, or more than one label.
    """
    refuse_language_model(path)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as fault:
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


def refuse_language_model(path: Path) -> None:
    """Refuse it by config.json alone: transformers takes seconds to import, and would give it a random head.

    Raises:
        RewardError: `architectures` names a language model.
    """
    try:
        named = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return  # said by what reads it whole
    if str(named).endswith(_LANGUAGE_MODELS):
        raise RewardError(
            where=f"reward model {path}",
            found=f"{named}, a language model: it has no score head",
            expected="a sequence classifier with one label",
            do="give a reward model",
        )
