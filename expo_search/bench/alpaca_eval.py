"""AlpacaEval 2.0 (Dubois et al. 2024): the answers, in the form in which that project's judge takes them.

They are drawn as the study draws its own, since the leaderboard leaves sampling to the model. Nothing is scored here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_search.bench.data import HubFile, load_rows
from expo_search.bench.task import Item, Metric
from expo_search.contracts import Prompt
from expo_search.store.bench_store import Answered, Scores


class AlpacaEval:
    """The 805 instructions, asked once each in the chat template."""

    name, title = "alpaca_eval", "AlpacaEval"
    metrics: Sequence[Metric] = ()

    def __init__(self, data: Mapping[str, Path]) -> None:
        """`data`: a file in the place of the Hub, by the task's name; it needs `instruction` alone."""
        hub = HubFile("tatsu-lab/alpaca_eval", "alpaca_eval.json")
        rows = load_rows(self.name, data.get(self.name), hub, {"instruction": str})
        self.items: Sequence[Item] = [Item(str(i), row) for i, row in enumerate(rows.rows)]
        self.settings: Mapping[str, Any] = {"data": rows.digest, "sampling": "the study's"}

    def request(self, item: Item, answers: Sequence[str]) -> Prompt | None:
        """Its instruction, once."""
        return None if answers else Prompt(f"{self.name}/{item.id}", item.row["instruction"])

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:  # noqa: ARG002
        """None."""
        return {}

    def file(self, generator: str, answered: Sequence[tuple[Item, Sequence[Answered]]]) -> tuple[str, bytes]:
        """`outputs_alpaca/{generator}.json`: a list of {dataset, instruction, output, generator}, indented by 2."""
        rows = [
            {
                "dataset": item.row.get("dataset", "unknown"),
                "instruction": item.row["instruction"],
                "output": answers[0].text,
                "generator": generator,
            }
            for item, answers in answered
        ]
        return f"outputs_alpaca/{generator}.json", json.dumps(rows, indent=2).encode()
