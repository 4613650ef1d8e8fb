"""GSM8K (Cobbe et al. 2021), grade-school word problems: 0-shot in the chat template, and 5-shot as plain text.

Prompt, ends of an answer and both matches are those of lm-evaluation-harness, read from its own `gsm8k.yaml`; the shots
are the first problems of the training split, the same for each item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from expo_search.bench.data import HubData, load_rows
from expo_search.bench.harness_package import need_harness
from expo_search.bench.task import Item, Metric
from expo_search.contracts import Request
from expo_search.store.bench_store import Answered, Score, Scores

_COLUMNS = {"question": str, "answer": str}
_HUB = "openai/gsm8k"
SHOTS = "gsm8k_shots"  # the name that a file of training problems is given by
N_SHOTS = 5
_FLEXIBLE, _STRICT = Metric("flexible", "the last number"), Metric("strict", "the number after ####")
_MAX_TOKENS = {0: 512, N_SHOTS: 256}  # a chat model writes its working out; lm-eval's own default for the shots' form


class Gsm8k:
    """The test problems. What decides is the last number of an answer in chat, and the form of the shots with shots."""

    def __init__(self, name: str, n_shots: int, data: Mapping[str, Path]) -> None:
        """`data`: files in the place of the Hub, by name: the task's own, and `gsm8k_shots`."""
        self.name = name
        self.title = "GSM8K" if not n_shots else f"GSM8K, {n_shots}-shot"
        self.metrics: Sequence[Metric] = (_STRICT, _FLEXIBLE) if n_shots else (_FLEXIBLE, _STRICT)
        harness = need_harness(name)
        rows = load_rows(name, data.get(name, data.get("gsm8k")), HubData(_HUB, "test", "main"), _COLUMNS)
        self.items: Sequence[Item] = [Item(str(i), row) for i, row in enumerate(rows.rows)]
        self._max_tokens = _MAX_TOKENS[n_shots]
        self.settings: Mapping[str, Any] = {"data": rows.digest, "checkers": harness, "max_tokens": self._max_tokens}
        self._shots = ""
        if n_shots:
            shots = load_rows(SHOTS, data.get(SHOTS), HubData(_HUB, "train", "main"), _COLUMNS)
            first = shots.rows[:n_shots]
            self._shots = "".join(f"{_asked(row['question'])} {row['answer']}\n\n" for row in first)
            self.settings |= {"shots": n_shots, "shots_data": shots.digest}

    def request(self, item: Item, answers: Sequence[str]) -> Request | None:
        """The problem, once, after the shots where there are some."""
        if answers:
            return None
        return Request(
            f"{self.name}/{item.id}",
            self._shots + _asked(item.row["question"]),
            is_raw=bool(self._shots),
            max_tokens=self._max_tokens,
            stop=tuple(_definition()["generation_kwargs"]["until"]),
        )

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        """Both matches of lm-eval, 0 or 1."""
        return {
            _STRICT.name: Score(_match("strict-match", answers[0].text, item.row["answer"])),
            _FLEXIBLE.name: Score(_match("flexible-extract", answers[0].text, item.row["answer"])),
        }


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


@cache
def _definition() -> Mapping[str, Any]:
    """lm-eval's own definition of the task."""
    import lm_eval
    import yaml

    file = Path(str(lm_eval.__file__)).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    definition: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return definition


def _match(name: str, answer: str, target: str) -> float:
    """1 where what a filter of lm-eval finds in an answer is the target, by its exact match; else 0."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    definition = _definition()
    steps = next(f["filter"] for f in definition["filter_list"] if f["name"] == name)
    options = {key: value for key, value in steps[0].items() if key != "function"}
    ((found,),) = RegexFilter(**options).apply([[answer]], [{}])
    metric = definition["metric_list"][0]
    same = exact_match_hf_evaluate(
        predictions=[found],
        references=[target],
        regexes_to_ignore=metric["regexes_to_ignore"],
        ignore_case=metric["ignore_case"],
        ignore_punctuation=metric["ignore_punctuation"],
    )
    return float(same["exact_match"])
