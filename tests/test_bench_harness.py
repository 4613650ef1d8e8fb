"""Tasks of lm-evaluation-harness on a fake model: shots, the leaderboard's members, what is asked, kept and scored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench_fakes import CHOICE, TEXT, RatingModel, Recording, write_task
from twins import make_tokenizer

from expo_search.bench import harness_task
from expo_search.bench.harness_task import HarnessTask, load_harness
from expo_search.bench.registry import load_tasks
from expo_search.bench.result import read_bench
from expo_search.bench.run import run
from expo_search.contracts import Request
from expo_search.errors import EngineError, PromptsError, SettingsChanged, StudyError
from expo_search.evaluation.objective import Stopped
from expo_search.store.bench_store import BenchStore, Score
from expo_search.store.study_store import Store

TOKENIZER = make_tokenizer()
CONTEXT = 4096
GRADED: dict[str, Any] = {
    "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "1",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for name, pattern in (("strict", "#### ([0-9])"), ("anywhere", "([0-9])"))
    ],
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> BenchStore:
    return BenchStore(Store(f"sqlite:///{tmp_path / 'b.db'}", "s"))


def load(folder: Path, name: str, n: int, *, context: int = CONTEXT, **config: Any) -> HarnessTask:
    (task,) = load_harness(f"lm_eval:{write_task(folder, name, n, **config)}", None)
    return task.on(TOKENIZER, context)


def prompts(model: RatingModel, alpha: float) -> set[str]:
    return {TOKENIZER.decode(request.ids) for at, request in model.requests if at == alpha}


def test_shots_are_the_same_at_every_alpha_and_in_a_run_that_goes_on(store: BenchStore, tmp_path: Path) -> None:
    shown = load(tmp_path, "shown", 6, n_train=12, num_fewshot=3, **CHOICE)
    model, asked = RatingModel(), list[int]()
    run(model, store, [shown], [0.0, 1.0], seed=0, watcher=Recording())
    assert prompts(model, 0.0) == prompts(model, 1.0)
    assert {prompt.count("train") for prompt in prompts(model, 0.0)} == {3}
    assert len({prompt[: prompt.index("test")] for prompt in prompts(model, 0.0)}) > 1, "each item has shots of its own"

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 7

    with pytest.raises(Stopped):
        run(model, store, [shown], [2.0], seed=0, watcher=Recording(), stop=stop)
    again, watcher = load(tmp_path, "shown", 6, n_train=12, num_fewshot=3, **CHOICE), Recording()
    run(model, store, [again], [2.0], seed=0, watcher=watcher)
    assert watcher.starts == [("lm_eval:shown", "shown", 2.0, 18, 7)]
    assert prompts(model, 2.0) == prompts(model, 0.0)


def test_answers_with_other_shots_are_not_gone_on_with(store: BenchStore, tmp_path: Path) -> None:
    for shots in (0, 2):
        task = load(tmp_path, "shown", 3, n_train=6, num_fewshot=shots, **CHOICE)
        assert task.kept().get("shots") == ({"shown": 2} if shots else None)
        if not shots:
            run(RatingModel(), store, [task], [0.0], seed=0, watcher=Recording())
    with pytest.raises(SettingsChanged, match=r"shots: None there, {'shown': 2} now"):
        run(RatingModel(), store, [task], [0.0], seed=0, watcher=Recording())


def test_what_the_context_cuts_is_counted_and_said(store: BenchStore, tmp_path: Path) -> None:
    watcher = Recording()
    long = load(tmp_path, "long", 4, context=100, n_train=6, num_fewshot=5, **CHOICE)
    short = load(tmp_path, "short", 4, context=100, **CHOICE)
    run(RatingModel(), store, [long, short], [0.0], seed=0, watcher=watcher)
    assert watcher.remarks == ["12 of 12 requests are longer than the context of 100 tokens and lost their beginning"]
    graded = load(tmp_path, "graded", 2, context=40, **GRADED)
    run(RatingModel(), store, [graded], [0.0], seed=0, watcher=watcher)
    assert watcher.remarks[1].startswith("2 of 2 requests are longer than the context of 40 tokens")


@pytest.mark.parametrize(
    ("n_left", "room", "cuts"),
    [(200, 200, []), (199, 199, ["may cut 2 of 2 answers short"]), (64, 64, ["may cut 2 of 2 answers short"]),
     (10, 64, ["2 of 2 requests are longer than the context", "may cut 2 of 2 answers short"])],
)  # fmt: skip
def test_an_answer_gets_less_room_before_its_prompt_is_cut(
    n_left: int, room: int, cuts: list[str], store: BenchStore, tmp_path: Path
) -> None:
    """Also where a task would have an answer fill the whole context, of which one token was left for the prompt."""
    filler = "And so on. " * 20
    given: dict[str, Any] = GRADED | {
        "doc_to_text": filler + "{{q}}", "generation_kwargs": {"until": ["."], "max_gen_toks": 200},
    }  # fmt: skip
    n_prompt = len(TOKENIZER(f"{filler}{TEXT} test 0?")["input_ids"])
    model, watcher, context = RatingModel(), Recording(), n_prompt + n_left
    task = load(tmp_path, "roomy", 2, context=context, **given)
    run(model, store, [task], [0.0], seed=0, watcher=watcher)
    assert [(r.max_tokens, len(r.ids)) for _, r in model.requests] == [(room, min(n_prompt, context - room))] * 2
    assert len(watcher.remarks) == len(cuts)
    assert all(cut in remark for cut, remark in zip(cuts, watcher.remarks, strict=True))


def test_the_filter_that_a_task_lists_first_decides(store: BenchStore, tmp_path: Path) -> None:
    run(RatingModel(), store, [load(tmp_path, "graded", 2, **GRADED)], [0.0], seed=0, watcher=Recording())
    metrics = [name for name, _ in store.settings("lm_eval:graded")["metrics"]]
    assert metrics == ["exact_match,strict", "exact_match,anywhere"]


def described(store: BenchStore, task: HarnessTask) -> list[list[str]]:
    metrics: list[list[str]] = store.settings(task.name)["metrics"]
    return metrics


def test_a_perplexitys_log_likelihood_is_its_score_and_higher_is_better(store: BenchStore, tmp_path: Path) -> None:
    likely: dict[str, Any] = {"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": " So it is."}
    one = load(tmp_path, "likely", 3, **likely)
    run(RatingModel(), store, [one], [0.0], seed=0, watcher=Recording())
    rated = {answers[0].log_probability for answers in store.answers(one.name, 0.0).values()}
    assert {scores["log_likelihood"].value for scores in store.scores(one.name, 0.0).values()} == rated
    assert all(value is not None and value < 0 for value in rated)
    assert described(store, one) == [["acc", "acc"], ["log_likelihood", "log-likelihood per item"]]

    rolling = load(tmp_path, "rolling", 2, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{q}}")
    run(RatingModel(), store, [rolling], [0.0], seed=0, watcher=Recording())
    scores = store.scores(rolling.name, 0.0)["rolling/0"]
    n_words, n_bytes = len(f"{TEXT} test 0?".split()), len(f"{TEXT} test 0?")
    assert (scores["word_perplexity"].weight, scores["byte_perplexity"].weight) == (n_words, n_bytes)
    assert scores["word_perplexity"].value * n_words == pytest.approx(scores["bits_per_byte"].value * n_bytes)
    assert [title for _, title in described(store, rolling)] == [
        "log-likelihood per word", "log-likelihood per byte", "log-likelihood per byte",
    ]  # fmt: skip


def test_what_an_f1_is_computed_from_scores_no_item(store: BenchStore, tmp_path: Path) -> None:
    """It is a pair of numbers too, (gold, prediction): which of them could be divided went by the answers."""

    def second(_: float, request: Request) -> float:
        return -1.0 if " b" in TOKENIZER.decode(request.ids) else -2.0

    two = {"doc_to_choice": "{{choices[:2]}}", "doc_to_target": "{{gold % 2}}"}
    task = load(tmp_path, "both", 6, **CHOICE | two, metric_list=[{"metric": "f1"}, {"metric": "acc"}])
    run(RatingModel(rates=second), store, [task], [0.0, 1.0], seed=0, watcher=Recording())
    assert described(store, task) == [["acc", "acc"]]
    assert {tuple(scores) for scores in store.scores(task.name, 1.0).values()} == {("acc",)}


def test_a_metric_that_one_alpha_lacks_is_compared_at_none_and_the_others_go_on(
    store: BenchStore, tmp_path: Path
) -> None:
    task, watcher = load(tmp_path, "shrinks", 3, **CHOICE), Recording()
    run(RatingModel(), store, [task], [0.0], seed=0, watcher=watcher)
    store.describe(task.name, {"metrics": [["f1", "f1"], ["acc", "acc"]]})
    run(RatingModel(), store, [task], [1.0], seed=0, watcher=watcher)
    assert described(store, task) == [["acc", "acc"]]
    assert watcher.remarks == ["not every item has a number for f1: compared by the others alone"]
    assert [c.metric for c in read_bench(store).compared] == ["acc"]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (CHOICE | {"metric_list": [{"metric": "f1"}, {"metric": "mcc"}]},
         "unfit has no metric that scores each item: it lists f1, mcc; expected one such as acc or exact_match"),
        (GRADED | {"metric_list": [{"metric": "bleu"}]}, "unfit has no metric that scores each item: it lists bleu"),
        (GRADED | {"unsafe_code": True}, "unfit runs code that the model writes"),
    ],
)  # fmt: skip
def test_a_task_that_would_end_in_an_error_is_refused_before_anything_starts(
    config: dict[str, Any], found: str, tmp_path: Path
) -> None:
    with pytest.raises(StudyError, match=found):
        load(tmp_path, "unfit", 2, **config)


RATE = """
def rate(doc, results):
    if MODE == "fails":
        raise LookupError("no punkt")
    return {"acc": float("nan") if MODE == "nan" else 1.0, "length": len(results[0])}

MODE = "%s"
"""


def own_rule(folder: Path, mode: str | None) -> HarnessTask:
    """A task that scores by a function `rate` of a file beside it; None: which is there."""
    if mode is not None:
        (folder / "rules.py").write_text(RATE % mode)
    file = Path(write_task(folder, "ruled", 3, **GRADED | {"filter_list": None}))
    file.write_text(file.read_text().removesuffix("}") + ', "process_results": !function rules.rate}')
    (task,) = load_harness(f"lm_eval:{file}", None)
    return task.on(TOKENIZER, CONTEXT)


def test_a_task_that_fails_is_one_line_and_its_answers_are_kept(store: BenchStore, tmp_path: Path) -> None:
    task = own_rule(tmp_path, "fails")
    with pytest.raises(StudyError, match=r"task lm_eval:ruled: LookupError: no punkt; .*answers that came are kept"):
        run(RatingModel(), store, [task], [0.0], seed=0, watcher=Recording())
    assert len(store.answers(task.name, 0.0)) == 3


def test_a_score_that_is_no_number_is_none(store: BenchStore, tmp_path: Path) -> None:
    task = own_rule(tmp_path, "nan")
    run(RatingModel(), store, [task], [0.0], seed=0, watcher=Recording())
    assert described(store, task) == [["length", "length"]]


def test_a_fault_that_is_not_the_tasks_keeps_its_kind(store: BenchStore, tmp_path: Path) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    task = load(tmp_path, "graded", 3, **GRADED)
    with pytest.raises(ZeroDivisionError):
        run(RatingModel(dies_after=1, die=crash), store, [task], [0.0], seed=0, watcher=Recording())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_log_probability_that_is_no_number_is_refused_and_never_taken_for_certainty(
    value: float, store: BenchStore, tmp_path: Path
) -> None:
    def last(_: float, request: Request) -> float:
        return value if "test 2" in TOKENIZER.decode(request.ids) else -1.0

    task = load(tmp_path, "choice", 3, **CHOICE)
    with pytest.raises(EngineError, match=r"task lm_eval:choice, alpha 0, .* a log-probability of (nan|-inf)"):
        run(RatingModel(rates=last), store, [task], [0.0], seed=0, watcher=Recording())
    kept = store.answers(task.name, 0.0)
    assert kept
    assert all(answer.log_probability is not None for (answer,) in kept.values())


class TestDefinition:
    def test_other_prompts_scores_functions_or_shots_are_other_settings(
        self, store: BenchStore, tmp_path: Path
    ) -> None:
        shown = {"n_train": 6, "num_fewshot": 2, **CHOICE}
        one = load(tmp_path, "mine", 4, **shown)
        run(RatingModel(), store, [one], [0.0], seed=0, watcher=Recording())
        assert load(tmp_path, "mine", 4, **shown).kept() == one.kept()
        other_shots = load(tmp_path, "mine", 4, **shown | {"n_train": 7})
        for changed in (load(tmp_path, "mine", 4, **shown | {"doc_to_text": "Now: {{q}}"}), other_shots):
            with pytest.raises(SettingsChanged, match=rf"\(definition: '{one.definition}' there, '\w+' now\)"):
                run(RatingModel(), store, [changed], [0.5], seed=0, watcher=Recording())
        ruled = [own_rule(tmp_path, mode).definition for mode in ("nan", "nan", "other")]
        assert ruled[0] == ruled[1] != ruled[2]

    def test_it_has_no_address_of_a_function_and_no_place_of_a_file(self, tmp_path: Path) -> None:
        told = []
        for place in ("here", "there"):
            folder = tmp_path / place
            folder.mkdir()
            (folder / "rules.py").write_text(
                "from functools import partial\n"
                "def add(doc, results, n): return {'acc': n}\n"
                "rate = partial(add, n=1)  # whose text names its address\n"
            )
            told.append(own_rule(folder, None).definition)
        assert told[0] == told[1]

    def test_what_was_begun_without_it_is_not_gone_on_with_until_it_is_made_anew(
        self, store: BenchStore, tmp_path: Path
    ) -> None:
        """Versions that kept none cut other prompts, and had `perplexity` the other way round."""
        task, model = load(tmp_path, "mine", 3, **CHOICE), RatingModel()
        store.pin(task.name, {key: value for key, value in task.kept().items() if key != "definition"})
        with pytest.raises(SettingsChanged, match=r"task lm_eval:mine: .*rules of an earlier version.*bench --again"):
            run(model, store, [task], [0.0, 1.0], seed=0, watcher=Recording())
        assert model.alphas == []
        store.forget(task.name)
        run(model, store, [task], [0.0], seed=0, watcher=Recording())
        assert store.settings(task.name)["definition"] == task.definition


def test_a_perplexity_that_was_stored_with_the_wrong_sign_is_not_shown(store: BenchStore) -> None:
    """Of the harness's tasks, before 2026-11-30: less was better. One's own scorer names its metrics as it likes."""
    begun: Mapping[str, dict[str, Any]] = {"lm_eval:mine": {"versions": {"mine": "1"}}, "mine:rate": {}}
    for task, kept in begun.items():
        store.pin(task, kept | {"metrics": [["acc", "acc"], ["perplexity", "perplexity"]]})
        for alpha in (0.0, 1.0):
            store.add(task, alpha, {}, {("mine/0", 0): {"acc": Score(1.0), "perplexity": Score(9.0)}})
    shown = [(c.task, c.metric) for c in read_bench(store).compared]
    assert shown == [("lm_eval:mine", "acc"), ("mine:rate", "acc"), ("mine:rate", "perplexity")]


def own_leaderboard(folder: Path) -> None:
    """Built as the harness's: a task, a group of groups of tagged tasks, and a tag of which one task counts."""
    write_task(folder, "one", 2, n_train=4, **CHOICE)
    for name in ("two", "three", "four"):
        write_task(folder, name, 2, n_train=4, tag="deep_tasks", **CHOICE)
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        write_task(folder, name, 2, tag="truthfulqa", **CHOICE)
    groups: Mapping[str, list[Any]] = {
        "inner": ["deep"],
        "deep": ["deep_tasks"],
        "openllm": [
            {"task": name, "num_fewshot": shots} for name, shots in {"one": 3, "truthfulqa": 0, "inner": 2}.items()
        ],
    }
    for name, members in groups.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"group": name, "task": members}))


def test_the_leaderboards_members_are_loaded_whole_each_with_its_shots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    own_leaderboard(tmp_path)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(harness_task, "_manager", lambda **_: manager)
    members = load_harness("lm_eval:openllm", None)
    shots = {task.name: task.kept().get("shots") for task in members}
    assert shots == {
        "lm_eval:openllm/one": {"one": 3},
        "lm_eval:openllm/truthfulqa_mc2": None,
        "lm_eval:openllm/inner": {"two": 2, "three": 2, "four": 2},
    }
    assert len(members[2].item_ids) == 6
    (alone,) = load_harness("lm_eval_chat:openllm/one", 1)
    assert (alone.name, alone.item_ids) == ("lm_eval_chat:openllm/one", ["one/0"])
    assert {task.name for task in load_harness("lm_eval:one", None)} == {"lm_eval:one"}
    with pytest.raises(StudyError, match=r"unknown task 'lm_eval:openllm/won'.*did you mean lm_eval:openllm/one\?"):
        load_harness("lm_eval:openllm/won", None)


def test_an_unknown_task_of_the_harness_and_data_that_are_not_to_be_had_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(write_task(tmp_path, "gone", 1, **CHOICE))
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(PromptsError, match=r"task lm_eval:.*gone.yaml: "):
        load_harness(f"lm_eval:{file}", None)
    index = SimpleNamespace(all_tasks=["arc_challenge", "hellaswag"], task_index={})  # its own takes seconds to read
    monkeypatch.setattr(harness_task, "_manager", lambda **_: index)
    with pytest.raises(StudyError, match=r"unknown task 'lm_eval:helaswag'; expected one of lm_eval:hellaswag"):
        load_harness("lm_eval:helaswag", None)


def test_two_files_of_one_name_and_a_group_with_its_member_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for folder in (tmp_path / "mine", tmp_path / "yours"):
        folder.mkdir()
        files.append(f"lm_eval:{write_task(folder, 'sums', 1, **CHOICE)}")
    with pytest.raises(
        StudyError, match=r"--tasks: .*mine/sums.yaml and .*yours/sums.yaml, both of task lm_eval:sums;"
    ):
        load_tasks(files, {})
    from lm_eval.tasks import TaskManager

    own_leaderboard(tmp_path)
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(harness_task, "_manager", lambda **_: manager)
    with pytest.raises(StudyError, match=r"lm_eval:openllm and lm_eval:openllm/one, both of task lm_eval:openllm/one;"):
        load_tasks(["lm_eval:openllm", "lm_eval:openllm/one"], {})
