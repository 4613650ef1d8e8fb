"""MT-Bench (Zheng et al. 2023): 80 questions of two turns, answered as FastChat does, in its `model_answer` format.

Temperatures go by category, as in FastChat's `llm_judge/common.py`. Nothing is scored here: its judge does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_search.bench.data import HubData, load_rows
from expo_search.bench.task import Item, Metric
from expo_search.contracts import Request
from expo_search.errors import PromptsError
from expo_search.store.bench_store import Answered, Scores

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
_OTHER_TEMPERATURE = 0.7  # FastChat's, of a category that it does not know
_MAX_TOKENS = 1024


class MtBench:
    """The questions, turn by turn in the chat template."""

    name, title = "mt_bench", "MT-Bench"
    metrics: Sequence[Metric] = ()

    def __init__(self, data: Mapping[str, Path]) -> None:
        """`data`: a file in the place of the Hub: FastChat's `question.jsonl`, or the Hub's columns."""
        rows = load_rows(
            self.name, data.get(self.name), HubData("HuggingFaceH4/mt_bench_prompts", "train"), {"category": str}
        )
        self.items: Sequence[Item] = [self._item(row, f"task {self.name}, {rows.source}") for row in rows.rows]
        self.settings: Mapping[str, Any] = {"data": rows.digest, "max_tokens": _MAX_TOKENS}

    @staticmethod
    def _item(row: Mapping[str, Any], where: str) -> Item:
        number, turns = row.get("question_id", row.get("prompt_id")), row.get("turns", row.get("prompt"))
        texts = isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)
        if not isinstance(number, int) or not texts:
            raise PromptsError(
                where=where,
                found=f"columns {', '.join(sorted(map(str, row)))}",
                expected="the columns question_id (a number), category (text) and turns (a list of texts)",
                do="give FastChat's question.jsonl",
            )
        return Item(str(number), {"question_id": number, "category": row["category"], "turns": turns})

    def request(self, item: Item, answers: Sequence[str]) -> Request | None:
        """The next turn, after those that were answered."""
        turns = item.row["turns"]
        if len(answers) == len(turns):
            return None
        said = [[("user", turn), ("assistant", answer)] for turn, answer in zip(turns, answers, strict=False)]
        return Request(
            f"{self.name}/{item.id}/{len(answers)}",
            turns[len(answers)],
            before=tuple(pair for pairs in said for pair in pairs),
            max_tokens=_MAX_TOKENS,
            temperature=TEMPERATURES.get(item.row["category"], _OTHER_TEMPERATURE),
        )

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:  # noqa: ARG002
        """None."""
        return {}

    def file(self, generator: str, answered: Sequence[tuple[Item, Sequence[Answered]]]) -> tuple[str, bytes]:
        """`mt_bench/model_answer/{generator}.jsonl`, by question; an answer's id follows from what it says."""
        lines = []
        for item, answers in sorted(answered, key=lambda pair: int(pair[0].row["question_id"])):
            turns = [a.text for a in answers]
            told = json.dumps([generator, item.id, turns]).encode()
            row = {
                "question_id": item.row["question_id"],
                "answer_id": hashlib.blake2b(told, digest_size=11).hexdigest(),
                "model_id": generator,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time.time(),
            }
            lines.append(json.dumps(row) + "\n")
        return f"mt_bench/model_answer/{generator}.jsonl", "".join(lines).encode()
