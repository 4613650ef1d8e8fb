"""What the scripts share: preference data, text as the reward model reads it, batches, the optimiser.

Letters for shapes: N sequences, T tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REWARD_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The base's own format without a system turn."""
BASE_NAME = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Preference:
    """One prompt with an answer that was preferred and one that was not; `gap` in points of ten."""

    prompt: str
    chosen: str
    rejected: str
    gap: float


def read_preferences(source: str, split: str = "train_prefs") -> list[Preference]:
    """A JSONL file with prompt, chosen, rejected, or a Hub data set in UltraFeedback-binarized's columns."""
    if Path(source).is_file():
        rows: Iterable[dict[str, Any]] = read_rows(Path(source))
    else:
        from datasets import load_dataset

        rows = load_dataset(source, split=split)
    return [Preference(row["prompt"].strip(), _text(row["chosen"]), _text(row["rejected"]), _gap(row)) for row in rows]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_rows(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """Write objects as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids without any special token added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def without_middle(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> str:
    """The text with its middle taken out, to `max_tokens` tokens; questions stand at either end."""
    ids = token_ids(tokenizer, text)
    if len(ids) <= max_tokens:
        return text
    head = max_tokens // 2
    return str(tokenizer.decode(ids[:head] + ids[head - max_tokens :]))


def conversation_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> list[int]:
    """Prompt and answer as the reward model reads them: its template, no system turn."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, chat_template=REWARD_TEMPLATE, tokenize=False)
    return token_ids(tokenizer, str(text))


def padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (N, T), padded with 0 on the right."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


@torch.no_grad()
def rewards(model: nn.Module, sequences: Sequence[Sequence[int]], batch_size: int = 32) -> list[float]:
    """The score of each sequence, computed in length order so that little is padded."""
    model.eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    scores = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = padded([sequences[i] for i in batch])
        for i, score in zip(
            batch, model(input_ids=ids, attention_mask=mask).logits.float()[:, 0].tolist(), strict=True
        ):
            scores[i] = score
    return scores


def load_reward_model(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward checkpoint in bfloat16, and its tokenizer."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.bfloat16)
    return model.eval(), AutoTokenizer.from_pretrained(checkpoint)


class MasterAdamW:
    """AdamW on float32 copies of bfloat16 parameters: steps below a bfloat16 ulp add up, none is lost."""

    def __init__(self, groups: Sequence[tuple[list[nn.Parameter], float]]) -> None:
        self.live = [p for parameters, _ in groups for p in parameters]
        masters = [[p.detach().float().clone().requires_grad_() for p in parameters] for parameters, _ in groups]
        self.masters = [master for group in masters for master in group]
        self.rates = [rate for _, rate in groups]
        self.adam = torch.optim.AdamW([{"params": group} for group in masters], betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, share: float) -> None:
        """One step at `share` of each group's learning rate, gradients clipped to norm 1; in place."""
        for live, master in zip(self.live, self.masters, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.adam.step()
        with torch.no_grad():
            for live, master in zip(self.live, self.masters, strict=True):
                live.copy_(master)


def save_adapter(model: Any, folder: Path) -> None:
    """Save a PEFT model's adapter, its configuration free of this machine's paths."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": BASE_NAME}
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _text(answer: str | list[dict[str, str]]) -> str:
    return answer.strip() if isinstance(answer, str) else answer[-1]["content"].strip()


def _gap(row: dict[str, Any]) -> float:
    scores = row.get("metadata", row)
    return float(scores.get("score_chosen", 10.0)) - float(scores.get("score_rejected", 0.0))
