"""Answers that come some tokens at a time are the same ones, every token counted; a start that fails leaves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twins import make_pair, make_tokenizer

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Prompt
from expo_search.engine import watched
from expo_search.engine.memory_plan import MemoryPlan
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.errors import MaterializeError

PROMPTS = [Prompt(f"p{i}", f"Tell me {i} things about rivers.") for i in range(12)]

PENALTIES = ("presence_penalty", "frequency_penalty")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmModel]:
    folder = tmp_path_factory.mktemp("pair")
    make_pair(folder, "llama-tied", delta=0.2)
    engine = EngineSpec(max_model_len=128, kv_cache_gib=1)
    spec = ModelSpec(folder / "aligned", folder / "sft", SamplingSpec(max_tokens=40), engine, 42)
    found = VllmModel(spec)
    yield found
    found.close()


def answers(model: VllmModel, **changes: Any) -> tuple[list[Completion], list[int], int]:
    """Completions by prompt, the tokens handed over at each step, and how many outputs those were."""
    before, n_outputs = model._spec, 0
    step = model._engine.step

    def counted() -> Any:
        nonlocal n_outputs
        outputs = step()
        n_outputs += len(outputs)
        return outputs

    model._spec = replace(before, **changes)
    model._engine.step = counted  # type: ignore[method-assign]
    try:
        items = list(model.generate(PROMPTS, 0))
    finally:
        model._spec = before
        del model._engine.step
    completions = sorted((i for i in items if isinstance(i, Completion)), key=lambda c: c.prompt.id)
    return completions, [i for i in items if isinstance(i, int)], n_outputs


def test_answers_handed_over_sixteen_tokens_at_a_time_are_the_same_and_every_token_is_counted(
    model: VllmModel,
) -> None:
    model.materialize(0.5)
    whole, tokens, n_outputs = answers(model)
    assert n_outputs == sum(tokens) == sum(c.n_tokens for c in whole)
    # the longest first: which ones are long differs between processors
    texts = sorted((c.text for c in whole), key=len, reverse=True)
    assert len(set(texts)) > 1
    assert len(texts[2]) > 22
    # after a few tokens, in a second block of 16 and one token into it
    strings = tuple(texts[i][at : at + 2] for i, at in ((0, 5), (1, 20), (2, 16)))
    stopping: dict[str, Any] = {"stop_strings": strings}
    ids: dict[str, Any] = {"stop_token_ids": tuple(model.tokenizer.encode(texts[0][20], add_special_tokens=False))}
    for stops, reasons in (({}, {"length"}), (stopping, {"stop", "length"}), (ids, {"stop", "length"})):
        each, tokens_each, _ = answers(model, **stops)
        some, tokens_some, n_some = answers(model, output_tokens=16, **stops)
        assert some == each
        assert {c.finish_reason for c in each} >= reasons - {"length"}
        assert sum(tokens_some) == sum(tokens_each) == sum(c.n_tokens for c in each)
        assert len(tokens_some) == len(tokens_each), "the engine takes the same steps"
        assert n_some <= sum(2 + c.n_tokens / 16 for c in each), "the first token, every sixteenth, and the end"


def test_an_answer_that_is_shown_as_it_comes_still_comes_token_by_token(model: VllmModel) -> None:
    before = model._spec
    turns = [{"role": "user", "content": "Tell me about rivers."}]
    pieces = list(model.stream(turns, 20))
    model._spec = replace(before, output_tokens=16)
    try:
        assert list(model.stream(turns, 20)) == pieces
    finally:
        model._spec = before
    assert len(pieces) > 16


def test_vllm_takes_every_value_that_a_study_may_have_as_it_is(model: VllmModel) -> None:
    bounds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 0.01}, {"temperature": 2.0}, {"top_p": 1e-9}, {"top_p": 1.0},
        {"top_k": 0}, {"top_k": 10**6}, {"max_tokens": 1}, *({name: end} for end in (-2.0, 2.0) for name in PENALTIES),
    ]  # fmt: skip
    for values in bounds:
        sampling = SamplingSpec.model_validate(values)
        model._spec, before = replace(model._spec, sampling=sampling, stop_strings=("a",)), model._spec
        try:
            params = model._params(PROMPTS[0], 0)
        finally:
            model._spec = before
        assert {name: getattr(params, name) for name in values} == values


def test_a_plan_for_a_gpu_hands_over_some_tokens_at_a_time(model: VllmModel) -> None:
    spec = model._spec.planned(MemoryPlan({}, {}, "gpu", 0.8, max_num_seqs=384))
    assert (spec.output_tokens, spec.engine.max_num_seqs, spec.sources_on_host) == (16, 384, False)


def test_a_pair_that_is_refused_after_its_engine_has_started_leaves_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    stopped: list[bool] = []
    report = {"aligned": "same", "sft": "same", "relative_delta": 0.0, "changed_share": 0.0, "n_bytes": 1}
    calls = {"expo_pid": os.getpid(), "expo_sources": report}
    core = SimpleNamespace(shutdown=lambda: stopped.append(True))
    llm = SimpleNamespace(
        collective_rpc=lambda method, **_: [calls[method]], llm_engine=SimpleNamespace(engine_core=core)
    )
    monkeypatch.setattr(watched, "start_engine", lambda _: llm)
    with pytest.raises(MaterializeError, match="the same weights"):
        VllmModel(ModelSpec(tmp_path, tmp_path, SamplingSpec(), EngineSpec(), 42))
    assert stopped == [True]
