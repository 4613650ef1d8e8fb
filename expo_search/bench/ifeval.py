"""IFEval (Zhou et al. 2023), instructions whose following a program can check: Google's checkers, as lm-eval has them.

Some checkers cut an answer into sentences or words by nltk's punkt data, which are fetched from a server. Without them
those checkers fail, so they are looked for before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_search.bench.data import HubData, load_rows
from expo_search.bench.harness_package import need_harness
from expo_search.bench.task import Item, Metric, TaskData
from expo_search.contracts import Request
from expo_search.errors import PromptsError, StudyError
from expo_search.store.bench_store import Answered, Score, Scores
from expo_search.text import shortened

WITHOUT_PUNKT = "ifeval_no_punkt"  # the items whose checkers need no data
MAX_TOKENS = 1280  # as lm-eval's `ifeval.yaml` has it
# the checkers that call nltk's sentence or word tokenizer (lm-eval 0.4.13, `instructions.py`)
NEED_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
_COLUMNS = {"prompt": str, "instruction_id_list": list, "kwargs": list, "key": int}
_METRICS = (
    Metric("prompt_level_strict_acc", "prompts, strict"),
    Metric("inst_level_strict_acc", "instructions, strict"),
    Metric("prompt_level_loose_acc", "prompts, loose"),
    Metric("inst_level_loose_acc", "instructions, loose"),
)


class Ifeval:
    """The prompts, asked once each in the chat template, greedily; all four accuracies."""

    metrics: Sequence[Metric] = _METRICS

    def __init__(self, name: str, data: Mapping[str, Path]) -> None:
        """`data`: files in the place of the Hub, by name."""
        self.name = name
        harness = need_harness(name, "nltk", "langdetect", "immutabledict")
        file = data.get(name, data.get("ifeval"))
        rows = load_rows(name, file, HubData("google/IFEval", "train"), _COLUMNS)
        _check_instructions(rows)
        self._is_of_a_file = file is not None
        items = [Item(str(row["key"]), row) for row in rows.rows]
        self.title = "IFEval"
        if name == WITHOUT_PUNKT:
            items = [item for item in items if not NEED_PUNKT & set(item.row["instruction_id_list"])]
            self.title = f"IFEval, the {len(items)} items without punkt"
        self.items: Sequence[Item] = items
        self.settings: Mapping[str, Any] = {"data": rows.digest, "checkers": harness, "max_tokens": MAX_TOKENS}

    def check(self, items: Sequence[Item]) -> None:
        """Look whether the checkers of these items have what they need; those of a file are tried out.

        Raises:
            StudyError: nltk's punkt data are wanted, and not there; an item of a file that cannot be checked.
        """
        wanting = [item for item in items if NEED_PUNKT & set(item.row["instruction_id_list"])]
        if wanting and not has_punkt():
            raise StudyError(
                where=f"task {self.name}",
                found=f"no punkt_tab among nltk's data, by which {len(wanting)} of {len(items)} items are checked",
                expected="punkt_tab in one of nltk's folders",
                do=f"python -m nltk.downloader punkt_tab, or take the task {WITHOUT_PUNKT}, the other items",
            )
        for item in items if self._is_of_a_file else ():
            self.score(item, [Answered("", 0, "stop")])  # which makes its checkers, from what the row says

    def request(self, item: Item, answers: Sequence[str]) -> Request | None:
        """Its prompt, once."""
        return None if answers else Request(f"ifeval/{item.id}", item.row["prompt"], max_tokens=MAX_TOKENS)

    def score(self, item: Item, answers: Sequence[Answered]) -> Scores:
        """Whether all instructions are followed, and the share of them, strictly and loosely.

        Raises:
            StudyError: there is no checker of one of them, or it fails.
        """
        import langdetect
        from lm_eval.tasks.ifeval.utils import process_results

        langdetect.DetectorFactory.seed = 0  # it draws at random: the same answer must have the same score
        try:
            results = process_results(item.row, [answers[0].text])
        except Exception as fault:  # other people's code, on somebody's row
            unknown = isinstance(fault, KeyError)
            raise StudyError(
                where=f"task {self.name}, key {item.id}",
                found=f"the instruction {fault}" if unknown else f"{type(fault).__name__}: {shortened(str(fault))}",
                expected="one that IFEval has" if unknown else "instructions and kwargs that its checkers take",
                do="fix the item, or take it out of the data",
            ) from None
        scores = {}
        for metric in _METRICS:
            value = results[metric.name]
            followed = list(value) if isinstance(value, list | tuple) else [value]
            scores[metric.name] = Score(sum(map(bool, followed)) / len(followed), len(followed))
        return scores


def _check_instructions(rows: TaskData) -> None:
    """Check that each row has instructions, with what each of them is to be checked by.

    Raises:
        PromptsError: one has not.
    """
    for row in rows.rows:
        ids, kwargs = row["instruction_id_list"], row["kwargs"]
        are_named = ids and all(isinstance(id, str) for id in ids) and len(kwargs) == len(ids)
        if not are_named or not all(isinstance(given, Mapping) for given in kwargs):
            told = f"kwargs {kwargs!r}" if are_named else f"instruction_id_list {ids!r}, kwargs for {len(kwargs)}"
            raise PromptsError(
                where=f"task ifeval, {rows.source}, key {row['key']}",
                found=told[:120],
                expected="at least one instruction's name, with kwargs for each, an object",
                do="give rows as google/IFEval has them",
            )


def has_punkt() -> bool:
    """Whether nltk finds the data that its sentence and word tokenizers need."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True
