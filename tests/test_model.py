"""What a model does between its start and its first trial: kernels are compiled there, where no clock runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twins import make_tokenizer

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.engine import model
from expo_search.engine.canary import Noise
from expo_search.engine.model import VllmModel, warm_up_sizes
from expo_search.engine.start import ModelSpec

SAMPLING = SamplingSpec(max_tokens=100, temperature=0.6, top_k=17, top_p=0.8, presence_penalty=0.3)
SOURCES = {"aligned": "a", "sft": "s", "relative_delta": 0.1, "changed_share": 1.0, "n_bytes": 4}


class Engine:
    """In the place of a watched engine; keeps what it was asked, in order."""

    def __init__(self, *_: object) -> None:
        self.asked: list[Any] = []

    def call(self, method: str) -> list[Any]:
        assert method == "expo_sources"
        return [SOURCES]

    def warm_up(self, prompt: Sequence[int], batches: Sequence[Sequence[Any]]) -> None:
        self.asked.append((list(prompt), batches))

    def forget_prefixes(self) -> bool:
        self.asked.append("forget prefixes")
        return True

    def restart(self) -> None:
        self.asked.append("restart")


def started(monkeypatch: pytest.MonkeyPatch, folder: Path, *, gpu: bool) -> list[Any]:
    """What the engine was asked between its canary and the first trial, and after a restart."""

    def canary(model: Any, _: str) -> Noise:
        model._engine.asked.append("canary")
        return Noise(exact=True)

    monkeypatch.setattr(model, "WatchedEngine", Engine)
    monkeypatch.setattr(model, "check_switching", canary)
    monkeypatch.setattr(model, "has_gpu", lambda: gpu)
    make_tokenizer().save_pretrained(folder)
    live = VllmModel(ModelSpec(folder, folder, SAMPLING, EngineSpec(max_num_seqs=40), 42))
    live.restart()
    asked: list[Any] = live._engine.asked  # type: ignore[attr-defined]
    return asked


def test_on_a_gpu_batches_of_the_studys_own_sampling_are_drawn_before_a_trial_and_their_prefixes_forgotten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = started(monkeypatch, tmp_path, gpu=True)
    canary, (prompt, batches), forgotten, *after = asked
    assert (canary, forgotten) == ("canary", "forget prefixes")
    assert prompt
    assert [len(batch) for batch in batches] == [1, 2, 3, 4, 8, 16, 32, 40]
    drawn = [params for batch in batches for params in batch]
    assert {(p.temperature, p.top_k, p.top_p, p.presence_penalty, p.frequency_penalty) for p in drawn} == {
        (0.6, 17, 0.8, 0.3, 0.1)
    }
    assert {(p.max_tokens, p.ignore_eos, p.seed is None) for p in drawn} == {(4, True, False)}
    assert [a if isinstance(a, str) else "warm up" for a in after] == [
        "restart",
        "canary",
        "warm up",
        "forget prefixes",
    ]


def test_on_a_cpu_there_is_nothing_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert started(monkeypatch, tmp_path, gpu=False) == ["canary", "restart", "canary"]


def test_sizes_reach_the_largest_and_not_above() -> None:
    assert warm_up_sizes(1) == [1]
    assert warm_up_sizes(2) == [1, 2]
    assert warm_up_sizes(256) == [1, 2, 3, 4, 8, 16, 32, 64, 128, 256]
