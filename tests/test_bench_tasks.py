"""The tasks: what is asked, how lm-eval's checkers score it, and the files of those that another program judges."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from expo_search.bench import harness_package, ifeval
from expo_search.bench.ifeval import WITHOUT_PUNKT, Ifeval
from expo_search.bench.registry import load_tasks
from expo_search.bench.run import Chosen
from expo_search.bench.task import WrittenTask
from expo_search.contracts import Prompt, Request
from expo_search.errors import PromptsError, SettingsChanged, StudyError
from expo_search.store.bench_store import Answered, BenchStore, Score
from expo_search.store.study_store import Store

GSM8K = [
    {"question": "Ana has 2 apples and buys 1,003. How many?", "answer": "2 + 1003 = <<2+1003=1005>>1005\n#### 1,005"},
    {"question": "And 4 less 6?", "answer": "4 - 6 = -2\n#### -2"},
]
SHOTS = [{"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\n#### {i + 1}"} for i in range(6)]
IFEVAL = [
    {"key": 7, "prompt": "Use no comma and three words.", "instruction_id_list":
     ["punctuation:no_comma", "length_constraints:number_words"],
     "kwargs": [{}, {"relation": "at least", "num_words": 3, "num_highlights": None}]},
    {"key": 9, "prompt": "Two sentences.", "instruction_id_list": ["length_constraints:number_sentences"],
     "kwargs": [{"relation": "at least", "num_sentences": 2}]},
]  # fmt: skip
ALPACA = [{"dataset": "helpful_base", "instruction": 'Say "café".'}, {"instruction": "Count."}]
MT_BENCH = [
    {"question_id": 82, "category": "math", "turns": ["What is 2 + 2?", "And doubled?"]},
    {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now shorter."]},
]
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, rows: Sequence[Any]) -> Path:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def load(name: str, first: Any = None, /, **data: Path) -> Chosen:
    (chosen,) = load_tasks([name], data, first)
    assert isinstance(chosen, Chosen)
    return chosen


def said(text: str) -> list[Answered]:
    return [Answered(text, 1, "stop")]


def asked(chosen: Chosen, position: int = 0, answers: Sequence[str] = ()) -> Request:
    request = chosen.task.request(chosen.items[position], answers)
    assert isinstance(request, Request)
    return request


class TestGsm8k:
    def test_a_problem_is_one_user_turn_answered_greedily(self, put: Put) -> None:
        chosen = load("gsm8k", gsm8k=put("g", GSM8K))
        request = asked(chosen)
        assert request.messages == [{"role": "user", "content": f"Question: {GSM8K[0]['question']}\nAnswer:"}]
        assert (request.temperature, request.is_raw, request.stop[0]) == (0.0, False, "Question:")
        assert chosen.task.request(chosen.items[0], ["1005"]) is None

    def test_the_shots_stand_before_the_problem_as_plain_text(self, put: Put) -> None:
        chosen = load("gsm8k_5shot", 1, gsm8k=put("g", GSM8K), gsm8k_shots=put("s", SHOTS))
        request = asked(chosen)
        parts = request.text.split("\n\n")
        assert (request.is_raw, len(chosen.items), len(parts)) == (True, 1, 6)
        assert parts[0] == "Question: What is 0 + 1?\nAnswer: 0 + 1 = 1\n#### 1"
        assert parts[-1] == f"Question: {GSM8K[0]['question']}\nAnswer:"

    @pytest.mark.parametrize(
        ("answer", "strict", "flexible"),
        [
            ("2 + 1003 = 1005\n#### 1005", 1, 1),
            ("#### 1,005", 1, 1),
            ("She has $1,005.", 0, 1),
            ("#### 7, so 1005", 0, 1),
            ("#### 1005, not 9", 1, 0),
            ("I do not know.", 0, 0),
            ("", 0, 0),
        ],
    )
    def test_both_matches_of_lm_eval_score_an_answer(
        self, answer: str, strict: float, flexible: float, put: Put
    ) -> None:
        chosen = load("gsm8k", gsm8k=put("g", GSM8K))
        assert chosen.task.score(chosen.items[0], said(answer)) == {
            "strict": Score(strict),
            "flexible": Score(flexible),
        }

    def test_what_decides_is_the_form_that_was_asked_for(self, put: Put) -> None:
        data = {"gsm8k": put("g", GSM8K), "gsm8k_shots": put("s", SHOTS)}
        assert load("gsm8k", gsm8k=data["gsm8k"]).task.metrics[0].name == "flexible"
        assert load("gsm8k_5shot", **data).task.metrics[0].name == "strict"


class TestIfeval:
    def test_all_four_accuracies_are_googles(self, put: Put) -> None:
        chosen = load("ifeval_no_punkt", ifeval=put("i", IFEVAL))
        assert [item.id for item in chosen.items] == ["7"]
        assert asked(chosen).messages == [{"role": "user", "content": "Use no comma and three words."}]
        half = chosen.task.score(chosen.items[0], said("One, two three."))
        assert half == {
            "prompt_level_strict_acc": Score(0.0), "inst_level_strict_acc": Score(0.5, 2),
            "prompt_level_loose_acc": Score(0.0), "inst_level_loose_acc": Score(0.5, 2),
        }  # fmt: skip
        loose = chosen.task.score(chosen.items[0], said("Here, a line:\nThree words here."))
        assert (loose["prompt_level_strict_acc"].value, loose["prompt_level_loose_acc"].value) == (0.0, 1.0)
        assert {s.value for s in chosen.task.score(chosen.items[0], said("  ")).values()} == {0.0}

    @pytest.mark.parametrize(
        ("wrong", "found"),
        [
            ({"instruction_id_list": [], "kwargs": []}, r"key 7: instruction_id_list \[\], kwargs for 0"),
            ({"instruction_id_list": ["a", "b"], "kwargs": [{}]}, "kwargs for 1; expected at least one instruction's"),
            ({"instruction_id_list": [None], "kwargs": [{}]}, "None"),
            ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}, r"kwargs \[None\]; .* an object"),
        ],
    )
    def test_rows_that_cannot_be_checked_are_named_before_anything_starts(
        self, put: Put, wrong: dict[str, Any], found: str
    ) -> None:
        with pytest.raises(PromptsError, match=found):
            load("ifeval_no_punkt", ifeval=put("i", [{**IFEVAL[0], "key": 7, **wrong}]))

    @pytest.mark.parametrize(
        ("instruction", "given", "found"),
        [
            ("magic:wand", {}, "the instruction 'magic:wand'; expected one that IFEval has"),
            ("punctuation:no_comma", {"commas": 3}, "TypeError: .*commas"),
            ("length_constraints:number_words", {"relation": "at least", "num_words": "three"}, "TypeError: "),
            ("length_constraints:number_words", {"relation": "about", "num_words": 3}, "ValueError: "),
        ],
    )
    def test_an_instruction_that_no_checker_takes_is_named_before_anything_starts(
        self, instruction: str, given: dict[str, Any], found: str, put: Put
    ) -> None:
        rows = [{**IFEVAL[0], "instruction_id_list": [instruction], "kwargs": [given]}]
        file = put("i", [IFEVAL[0], {**rows[0], "key": 8}])
        with pytest.raises(StudyError, match=f"task ifeval_no_punkt, key 8: {found}"):
            load("ifeval_no_punkt", ifeval=file)
        chosen = load("ifeval_no_punkt", 1, ifeval=file)
        with pytest.raises(StudyError, match=f"key 8: {found}"):
            chosen.task.score(chosen.task.items[1], said("x"))

    def test_items_that_need_data_which_are_not_there_are_refused_before_anything_starts(
        self, put: Put, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ifeval, "has_punkt", lambda: False)
        file = put("i", IFEVAL)
        with pytest.raises(
            StudyError, match=r"1 of 2 items are checked; .*nltk.downloader punkt_tab, or take .*no_punkt"
        ):
            load("ifeval", ifeval=file)
        assert len(load("ifeval", 1, ifeval=file).items) == 1, "the first item needs none"
        monkeypatch.setattr(ifeval, "has_punkt", lambda: True)
        assert len(load("ifeval", ifeval=file).items) == 2


def need_nltks_data(*sources: str) -> set[str]:
    """The classes, functions and variables of these modules that use nltk, if only through one another.

    Its `RegexpTokenizer` needs no data.
    """

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("nltk.tokenize.RegexpTokenizer"):
            return
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
        for child in ast.iter_child_nodes(node):
            yield from names(child)

    trees = [ast.parse(source) for source in sources]
    tainted = {"nltk"}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = getattr(node, "module", None) or ""
            tainted |= {a.asname or a.name for a in node.names if f"{of}.{a.name}".lstrip(".").startswith("nltk")}
    used: dict[str, set[str]] = {}
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            used.setdefault(node.name, set()).update(names(node))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                used.setdefault(ast.unparse(target), set()).update(names(node.value))
    while more := {name for name, uses in used.items() if uses & tainted} - tainted:
        tainted |= more
    return tainted


class TestPunkt:
    """Which of IFEval's checkers cannot check without nltk's data: without them an item would be scored wrong."""

    def test_they_are_those_of_the_installed_harness_that_use_nltk_if_only_through_a_helper(self) -> None:
        from lm_eval.tasks.ifeval import instructions, instructions_registry, instructions_util

        modules = [Path(module.__file__).read_text() for module in (instructions, instructions_util)]
        using = need_nltks_data(*modules)
        checkers = instructions_registry.INSTRUCTION_DICT
        assert {id for id, checker in checkers.items() if checker.__name__ in using} == ifeval.NEED_PUNKT
        assert all(f"class {checker.__name__}(" in modules[0] for checker in checkers.values())

    @pytest.mark.parametrize(
        "checker",
        [
            "return nltk.word_tokenize(x)",
            "return util.nltk.sent_tokenize(x)",
            "return cut(x)",
            "return util.count(x)",
            "return by_helper()(x)",
            "return Other().check(x)",
            "return tokens(x)",
            "return KEPT.tokenize(x)",
        ],
    )
    def test_a_new_checker_would_be_seen(self, checker: str) -> None:
        helpers = """
import nltk
from nltk.tokenize import sent_tokenize as tokens
KEPT = nltk.data.load("punkt")
def cut(x):
    return nltk.sent_tokenize(x)
def count(x):
    return len(cut(x))
def by_helper():
    return cut
class Other:
    def check(self, x):
        return cut(x)
def words(x):
    return nltk.tokenize.RegexpTokenizer("w+").tokenize(x)
"""
        made = f"class Checker:\n    def check(self, x):\n        {checker}\n"
        assert "Checker" in need_nltks_data(made, helpers)
        assert "Checker" not in need_nltks_data(made.replace(checker, "return util.words(x)"), helpers)

    @pytest.mark.skipif("IFEVAL" not in os.environ, reason="IFEVAL names no file with google/IFEval's 541 items")
    def test_each_of_the_541_items_has_checkers_that_take_an_answer(self) -> None:
        file = Path(os.environ["IFEVAL"])
        items = {name: Ifeval(name, {"ifeval": file}).items for name in ("ifeval", WITHOUT_PUNKT)}
        without = {item.id for item in items[WITHOUT_PUNKT]}
        assert (len(items["ifeval"]), len(without)) == (541, 477)
        assert sum(item.id not in without for item in items["ifeval"]) == 64
        task = Ifeval("ifeval", {"ifeval": file})
        checked = [item for item in task.items if item.id in without or ifeval.has_punkt()]
        for answer in ("", "One sentence. And another, with a comma!\n\n* a point"):
            for item in checked:
                assert set(task.score(item, said(answer))) == {metric.name for metric in task.metrics}


class TestOwn:
    @pytest.fixture
    def scorer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        """Writes a function's body, and gives its name."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.modules", dict(sys.modules))
        made: list[str] = []

        def write(body: str) -> str:
            module = f"my_scorer_{len(made)}_{tmp_path.name}"
            made.append(module)
            (tmp_path / f"{module}.py").write_text(f"def rate(row, answer):\n    {body}\nnumber = 3\n")
            return f"{module}:rate"

        return write

    def test_a_function_scores_what_a_file_asks(self, put: Put, scorer: Callable[[str], str]) -> None:
        rows = [{"prompt": "Say A.", "wanted": "A", "max_tokens": 3}, {"prompt": "Say B.", "wanted": "B"}]
        name = scorer('return {"right": answer == row["wanted"], "length": len(answer)}')
        chosen = load(name, **{name: put("mine", rows)})
        assert [m.name for m in chosen.task.metrics] == ["right", "length"]
        assert (asked(chosen).max_tokens, asked(chosen, 1).max_tokens) == (3, 512)
        assert chosen.task.score(chosen.items[1], said("B")) == {"right": Score(1.0), "length": Score(1.0)}
        one = scorer("return len(answer) / 10")
        assert load(one, **{one: put("mine", rows)}).task.score(chosen.items[0], said("abc")) == {"score": Score(0.3)}
        assert load(one, **{one: put("mine", rows)}).kept()["scorer_file"] != chosen.kept()["scorer_file"]

    def test_a_scorers_rules_are_its_files_whatever_it_is_made_of(
        self, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        name, kept = "rules.py:rate", list[Any]()
        for worth in (1, 1, 2):  # what a helper of it returns
            (tmp_path / "rules.py").write_text(
                f"from functools import partial\ndef worth(): return {worth}\n"
                "def scored(row, answer, n): return n * worth()\nrate = partial(scored, n=2)\n"
            )
            kept.append(load(name, **{name: put("mine", [{"prompt": "?"}])}).kept())
        assert kept[0] == kept[1] != kept[2]

    def test_a_scorer_that_an_earlier_version_knew_by_its_lines_goes_on_where_they_are_the_same(
        self, put: Put, scorer: Callable[[str], str], tmp_path: Path
    ) -> None:
        lines = "def rate(row, answer):\n    return 1\n"  # what `scorer` writes
        name = scorer("return 1")
        now = load(name, **{name: put("mine", [{"prompt": "?"}])}).kept()
        store = BenchStore(Store(f"sqlite:///{tmp_path / 'b.db'}", "s"))
        begun = {key: value for key, value in now.items() if key != "scorer_file"}
        store.pin(name, begun | {"scorer": hashlib.sha256(lines.encode()).hexdigest()[:16]})
        store.check(name, now)
        changed = lines.replace("1", "2")
        store.forget(name)
        store.pin(name, begun | {"scorer": hashlib.sha256(changed.encode()).hexdigest()[:16]})
        with pytest.raises(SettingsChanged, match=r"\(scorer: '\w+' there, '\w+' now\)"):
            store.check(name, now)

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ("return answer[0]", "item 0: IndexError: string index out of range; expected a scorer that takes any"),
            ("return None", "item 0: None; expected a finite number"),
            ("return float('nan')", "item 0: nan"),
            ("return {}", "item 0: no metric"),
            ("return 1 +", "SyntaxError"),
        ],
    )
    def test_one_that_fails_is_named_before_anything_starts(
        self, body: str, found: str, put: Put, scorer: Callable[[str], str]
    ) -> None:
        name = scorer(body)
        with pytest.raises(StudyError, match=f"scorer {name}.*{found}"):
            load(name, **{name: put("mine", [{"prompt": "?"}])})

    @pytest.mark.parametrize("given", [0, -1, 2.5, "many", True, float("nan"), float("inf")])
    def test_a_row_has_a_whole_number_of_tokens_or_none(
        self, given: Any, put: Put, scorer: Callable[[str], str]
    ) -> None:
        name = scorer("return 0")
        rows = [{"prompt": "?", "max_tokens": None}, {"prompt": "?", "max_tokens": 8.0}]
        chosen = load(name, **{name: put("mine", rows)})
        assert (asked(chosen).max_tokens, asked(chosen, 1).max_tokens) == (512, 8)
        with pytest.raises(PromptsError, match=r"item 2: max_tokens .*; expected a whole number from 1"):
            load(name, **{name: put("mine", [*rows, {"prompt": "?", "max_tokens": given}])})

    @pytest.mark.parametrize(
        ("name", "found"), [("no_module:rate", "ModuleNotFoundError"), ("json:nothing", "AttributeError")]
    )
    def test_a_name_of_no_function_is_refused(self, name: str, found: str, put: Put) -> None:
        with pytest.raises(StudyError, match=found):
            load(name, **{name: put("mine", [{"prompt": "?"}])})
        with pytest.raises(PromptsError, match=r"task json:dumps: no data; .*--data json:dumps=FILE"):
            load("json:dumps")


class TestFiles:
    def test_alpaca_eval_is_drawn_as_the_study_draws_and_written_as_its_judge_takes_it(self, put: Put) -> None:
        chosen = load("alpaca_eval", alpaca_eval=put("a", ALPACA))
        prompt = chosen.task.request(chosen.items[0], ())
        assert type(prompt) is Prompt
        assert prompt.text == 'Say "café".'
        assert isinstance(chosen.task, WrittenTask)
        answered = [(item, said(text)) for item, text in zip(chosen.items, ["café\n", "1 2"], strict=True)]
        assert chosen.task.file("m_a0.1", answered) == (
            "outputs_alpaca/m_a0.1.json",
            b'[\n  {\n    "dataset": "helpful_base",\n    "instruction": "Say \\"caf\\u00e9\\".",\n'
            b'    "output": "caf\\u00e9\\n",\n    "generator": "m_a0.1"\n  },\n'
            b'  {\n    "dataset": "unknown",\n    "instruction": "Count.",\n'
            b'    "output": "1 2",\n    "generator": "m_a0.1"\n  }\n]',
        )

    def test_mt_bench_asks_the_second_turn_after_the_first_and_is_written_as_fastchat_does(
        self, put: Put, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.time", lambda: 1700000000.25)
        chosen = load("mt_bench", mt_bench=put("m", MT_BENCH))
        first, second = asked(chosen), asked(chosen, 0, ["4"])
        assert [m["content"] for m in second.messages] == ["What is 2 + 2?", "4", "And doubled?"]
        assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
        assert (first.temperature, asked(chosen, 1).temperature) == (0.0, 0.7)
        assert first.id != second.id
        assert chosen.task.request(chosen.items[0], ["4", "8"]) is None
        assert isinstance(chosen.task, WrittenTask)
        answered = [(item, [*said("4"), *said("8é")]) for item in chosen.items]
        place, content = chosen.task.file("m_a0.1", answered)
        assert place == "mt_bench/model_answer/m_a0.1.jsonl"
        one, two = content.decode().splitlines()
        ids = [json.loads(line)["answer_id"] for line in (one, two)]
        assert two == (
            f'{{"question_id": 82, "answer_id": "{ids[1]}", "model_id": "m_a0.1", '
            '"choices": [{"index": 0, "turns": ["4", "8\\u00e9"]}], "tstamp": 1700000000.25}'
        )
        assert len(set(ids)) == 2
        assert [len(i) for i in ids] == [22, 22]

    def test_a_form_of_mt_bench_that_has_other_columns_is_read_or_refused(self, put: Put) -> None:
        hub = [{"prompt_id": 81, "category": "stem", "prompt": ["One", "Two"], "reference": []}]
        assert asked(load("mt_bench", mt_bench=put("h", hub))).temperature == 0.1
        with pytest.raises(PromptsError, match="question_id"):
            load("mt_bench", mt_bench=put("x", [{"category": "math", "turns": "One"}]))


class TestLoading:
    @pytest.mark.parametrize(
        ("name", "rows", "found"),
        [
            (
                "gsm8k",
                [{"question": "?"}],
                "line 1: columns question; expected the columns question \\(text\\), answer",
            ),
            ("gsm8k", ["?"], "line 1: a str; expected an object"),
            ("alpaca_eval", [{"instruction": 1}], "another type of instruction"),
            ("ifeval", [], "no rows"),
            ("mt_bench", [{"question_id": 1, "category": "math", "turns": [None]}], r"turns \(a list of texts\)"),
            (
                "mt_bench",
                [{"question_id": 1, "category": "math", "turns": [text]} for text in "ab"],
                "task mt_bench: 2 items with the id 1; expected one; give each its own",
            ),
        ],
    )
    def test_data_of_another_form_are_refused_with_the_line(
        self, name: str, rows: Sequence[Any], found: str, put: Put
    ) -> None:
        with pytest.raises(PromptsError, match=found):
            load(name, **{name: put("d", rows)})

    def test_other_data_are_other_settings(self, put: Put) -> None:
        one, two = (load("gsm8k", gsm8k=put("g", rows)).kept()["data"] for rows in (GSM8K, GSM8K[:1]))
        assert one != two
        assert load("gsm8k", 1, gsm8k=put("g", GSM8K)).kept()["data"] == one, "a limit takes of the same data"

    @pytest.mark.parametrize(
        ("names", "data", "found"),
        [
            ([], {}, "--tasks: nothing; expected names of basics, ifeval"),
            (["gsm8"], {}, "unknown task 'gsm8'; expected one of gsm8k"),
            (["basics"], {"gsm8k": Path("x.jsonl")}, "--data gsm8k=x.jsonl: data of a task that is not asked for"),
            (
                ["lm_eval:ifeval"],
                {"ifeval": Path("x.jsonl")},
                "--data ifeval=x.jsonl: data of a task that is not asked",
            ),
            (["gsm8k_mine:rate"], {"gsm8k": Path("x.jsonl")}, "--data gsm8k=x.jsonl: data of a task that is not asked"),
        ],
    )
    def test_names_that_are_none_are_refused(self, names: list[str], data: dict[str, Path], found: str) -> None:
        with pytest.raises(StudyError, match=found):
            load_tasks(names, data)
        with pytest.raises(StudyError, match="--limit: 0"):
            load_tasks(["basics"], {}, 0)

    def test_a_task_whose_checkers_are_not_installed_says_what_to_install(
        self, put: Put, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(harness_package, "find_spec", lambda _: None)
        with pytest.raises(StudyError, match=r'no lm_eval, nltk, langdetect, .*pip install "expo-search\[bench\]"'):
            load("ifeval", ifeval=put("i", IFEVAL))
        assert load("basics", 3).items[2:]
