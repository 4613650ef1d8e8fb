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
from expo_search.bench.run import run
from expo_search.contracts import Request
from expo_search.errors import EngineError, PromptsError, SettingsChanged, StoreError, StudyError
from expo_search.evaluation.objective import Stopped
from expo_search.store.bench_store import Answered, BenchStore
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
    assert watcher.starts == [("shown", 2.0, 18, 7)]
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
    store.forget(task.name)
    store.pin(task.name, task.kept())
    store.add(task.name, 0.0, {(item, 0): Answered("", 0, "stop", None, False) for item in kept})  # by earlier versions
    with pytest.raises(StoreError, match=rf"{len(kept)} stored log-probabilities that are no number; .*bench --again"):
        run(RatingModel(), store, [task], [0.0], seed=0, watcher=Recording())


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
