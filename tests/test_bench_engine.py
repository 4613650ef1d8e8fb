"""Requests of benchmarks on the real engine: drawn as they say, rated as transformers rates; tasks of the harness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_fakes import CHOICE, TEXT, Recording, write_task
from transformers import AutoModelForCausalLM
from twins import make_pair

from expo_search.bench.harness_task import HarnessTask, load_harness
from expo_search.bench.result import read_bench
from expo_search.bench.run import run
from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Likelihood, Request
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.store.bench_store import BenchStore
from expo_search.store.study_store import Store

CONTEXT = 128


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    make_pair(folder, "llama-tied", delta=0.2)
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[VllmModel]:
    sampling = SamplingSpec(max_tokens=40, temperature=1.0)
    engine = EngineSpec(max_model_len=CONTEXT, kv_cache_gib=1, arithmetic="float32")
    model = VllmModel(ModelSpec(home / "aligned", home / "sft", sampling, engine, 42))
    yield model
    model.close()


@pytest.fixture(scope="module")
def reference(home: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(home / "aligned", dtype=torch.float32).eval()


def answer(model: VllmModel, request: Request) -> Completion:
    (completion,) = [c for c in model.generate([request], 0) if isinstance(c, Completion)]
    return completion


def test_a_request_is_drawn_as_it_says_and_not_as_the_study_does(model: VllmModel) -> None:
    model.materialize(0.0)
    ids = tuple(model.tokenizer(TEXT)["input_ids"])
    raw = answer(model, Request("a", TEXT, is_raw=True, max_tokens=9))
    assert raw.n_tokens <= 9
    assert answer(model, Request("b", "", ids=ids, max_tokens=9)).text == raw.text, "greedy, whatever its id"
    chat = answer(model, Request("c", TEXT, max_tokens=9))
    said = "".join(model.stream([{"role": "user", "content": TEXT}], 9))
    assert (chat.text == raw.text, chat.n_tokens) == (False, 9)
    assert said != chat.text, "the study draws at temperature 1"
    turns = Request("d", "And?", before=(("user", TEXT), ("assistant", "Yes.")), max_tokens=9)
    assert answer(model, turns).text not in (raw.text, chat.text)
    middle = raw.text[len(raw.text) // 2 :][:2]
    assert (
        answer(model, Request("e", TEXT, is_raw=True, max_tokens=9, stop=(middle,))).text
        == (raw.text[: raw.text.index(middle)])
    )
    nearly_full = Request("f", "", ids=tuple(ids[:1]) * (CONTEXT - 3), max_tokens=9)
    assert answer(model, nearly_full).n_tokens <= 3


def test_a_likelihood_is_the_one_of_transformers(model: VllmModel, reference: Any) -> None:
    model.materialize(0.0)
    ids = model.tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logs = torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)
    rated = logs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    for n in (1, 3, len(ids) - 1):
        found = answer(model, Request(f"r{n}", "", ids=tuple(ids), n_rated=n))
        assert isinstance(found, Likelihood)
        assert found.log_probability == pytest.approx(float(rated[-n:].sum()), abs=2e-3)
        assert found.is_greedy == bool((logs[-n - 1 : -1].argmax(-1) == torch.tensor(ids)[-n:]).all())
    greedy = int(logs[-1].argmax())
    assert answer(model, Request("g", "", ids=(*ids, greedy), n_rated=1)).is_greedy  # type: ignore[attr-defined]
    model.materialize(1.0)
    other = answer(model, Request("o", "", ids=tuple(ids), n_rated=3))
    assert other.log_probability != pytest.approx(float(rated[-3:].sum()), abs=1e-2)  # type: ignore[attr-defined]


ANSWER: dict[str, Any] = {
    "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
ROLLING: dict[str, Any] = {
    "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}" + " and so on" * 20,
    "metric_list": [{"metric": "word_perplexity"}],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "n_requests"), [("choice", 12), ("answer", 4), ("rolling", None)])
def test_a_task_of_the_harness_scores_as_it_does_with_its_own_model(
    kind: str, n_requests: int | None, model: VllmModel, home: Path, reference: Any, tmp_path: Path
) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    config: Any = {"choice": CHOICE, "answer": ANSWER, "rolling": ROLLING}[kind]
    (task,) = load_harness(f"lm_eval:{write_task(tmp_path, f'my_{kind}', 6, **config)}", 4)
    assert list(task.item_ids) == [f"my_{kind}/{i}" for i in range(4)]
    watcher, store = Recording(), BenchStore(Store(f"sqlite:///{tmp_path / 'b.db'}", "s"))
    ready = task.on(model.tokenizer, CONTEXT)
    run(model, store, [ready], [0.0, 1.0], seed=0, watcher=watcher)
    if n_requests is not None:
        assert [n - stored for *_, n, stored in watcher.starts] == [n_requests] * 2
    # vLLM's context holds the window's prefix, its last token and one that is generated
    longest = CONTEXT - 2 if kind == "rolling" else CONTEXT - 1
    own = HFLM(pretrained=reference, tokenizer=model.tokenizer, max_length=longest, batch_size=1)
    tasks = {"tasks": dict(task.tasks), "groups": {}, "group_map": {}}
    expected: Any = evaluate(own, tasks, limit=4, bootstrap_iters=0, log_samples=True)
    samples = expected["samples"][f"my_{kind}"]
    scores = store.scores(task.name, 0.0)
    for sample in samples:
        for metric, score in scores[f"my_{kind}/{sample['doc_id']}"].items():
            value = sample[metric]
            if isinstance(value, tuple | list):
                assert score.value * score.weight == pytest.approx(value[0], abs=0.02)
            else:
                assert score.value == float(value)
    (told,) = read_bench(store).tasks
    assert (told.title, told.n_items) == (f"my_{kind}", {0.0: 4, 1.0: 4})
    again = Recording()
    run(model, store, [ready], [0.0, 1.0], seed=0, watcher=again)
    assert again.starts == []


def test_a_run_of_the_harness_that_was_stopped_asks_no_stored_request_again(
    model: VllmModel, home: Path, tmp_path: Path
) -> None:
    from expo_search.evaluation.objective import Stopped

    (task,) = load_harness(f"lm_eval:{write_task(tmp_path, 'stopped', 6, **CHOICE)}", None)
    ready: HarnessTask = task.on(model.tokenizer, CONTEXT)
    store, asked = BenchStore(Store(f"sqlite:///{tmp_path / 'b.db'}", "s")), list[int]()

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 7

    with pytest.raises(Stopped):
        run(model, store, [ready], [0.0], seed=0, watcher=Recording(), stop=stop)
    watcher = Recording()
    run(model, store, [ready], [0.0], seed=0, watcher=watcher)
    assert [n - stored for *_, n, stored in watcher.starts] == [18 - 7]
