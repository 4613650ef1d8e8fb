"""The real engine, crashed and stopped under way: what the search sees, and that a new one gives the same answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from twins import make_pair

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Prompt
from expo_search.engine.model import VllmModel
from expo_search.engine.start import ModelSpec
from expo_search.errors import EngineDied

PROMPTS = [Prompt(f"p{i}", f"Tell me {i} things about rivers.") for i in range(6)]
SAMPLING = SamplingSpec(max_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    make_pair(out, "llama-tied", delta=0.2)
    return out


def model_of(folder: Path, **engine: object) -> VllmModel:
    options = EngineSpec(max_model_len=128, kv_cache_gib=1, **engine)
    return VllmModel(ModelSpec(folder / "aligned", folder / "sft", SAMPLING, options, 42))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[VllmModel]:
    """An engine in a process of its own, as on a GPU."""
    found = model_of(folder, own_process=True)
    yield found
    for pid in found._engine._watchdog.processes:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def answers(model: VllmModel, alpha: float) -> dict[str, str]:
    model.materialize(alpha)
    return {c.prompt.id: c.text for c in model.generate(PROMPTS, 0) if isinstance(c, Completion)}


def engine_of(model: VllmModel) -> int:
    """The process that computes."""
    return max(model._engine._watchdog.processes, key=lambda pid: psutil.Process(pid).memory_info().rss)


def be_impatient(model: VllmModel) -> None:
    """From here on: a busy machine can be slower than a test wants to wait for a hang."""
    watchdog = model._engine._watchdog
    watchdog._timeout_s = watchdog._left_s = 2


def in_the_midst(model: VllmModel, act: Callable[[], None]) -> None:
    """Begin to generate, act after the first tokens, go on to the end."""
    for i, _ in enumerate(model.generate(PROMPTS, 0)):
        if i == 2:
            act()


@pytest.mark.slow  # an engine in a process of its own starts slowly, and twice here
def test_an_engine_process_that_is_killed_or_stands_still_is_noticed_and_a_new_one_gives_the_same_answers(
    model: VllmModel,
) -> None:
    expected = answers(model, 0.5)
    assert len(set(expected.values())) > 1

    # a terminal sends Ctrl-C to all processes: the engine's must live on until the chunk is finished
    for pid in model._engine._watchdog.processes:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert answers(model, 0.5) == expected
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()), "this process still gets it"

    pid = engine_of(model)
    started = time.monotonic()
    with pytest.raises(EngineDied):
        in_the_midst(model, lambda: os.kill(pid, signal.SIGKILL))
    assert time.monotonic() - started < 300, "noticed by its end, not by the time without a token"
    model.restart()
    assert engine_of(model) != pid
    assert answers(model, 0.5) == expected

    os.kill(engine_of(model), signal.SIGSTOP)
    be_impatient(model)
    with pytest.raises(EngineDied, match="no token for 2 s"):  # a switch waits for an answer that never comes
        model.materialize(0.7)


@pytest.mark.slow
def test_an_engine_process_that_stands_still_in_generation_or_dies_before_a_switch_starts_anew(
    model: VllmModel,
) -> None:
    model.restart()
    expected = answers(model, 0.5)
    pid = engine_of(model)

    def stand_still() -> None:
        os.kill(pid, signal.SIGSTOP)
        be_impatient(model)

    with pytest.raises(EngineDied, match="no token for 2 s"):
        in_the_midst(model, stand_still)
    model.restart()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    os.kill(engine_of(model), signal.SIGKILL)
    with pytest.raises(EngineDied):
        model.materialize(0.7)
    model.restart()
    assert answers(model, 0.5) == expected


def test_an_engine_in_this_process_that_hangs_is_interrupted_and_can_start_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(folder)
    expected = answers(model, 0.5)
    assert model._engine._watchdog.processes == []
    llm_engine = model._engine._llm.llm_engine
    monkeypatch.setattr(llm_engine, "step", lambda: time.sleep(600))
    be_impatient(model)
    with pytest.raises(EngineDied, match="no token for 2 s"):
        list(model.generate(PROMPTS, 0))
    model.restart()
    assert answers(model, 0.5) == expected
    monkeypatch.setattr(model._engine._llm.llm_engine, "step", out_of_memory)
    with pytest.raises(EngineDied, match=r"RuntimeError: .* can't allocate memory"):
        list(model.generate(PROMPTS, 0))
    model.close()


def out_of_memory() -> None:
    """As PyTorch says it."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] data. DefaultCPUAllocator: can't allocate memory")


def test_gibberish_and_logits_that_are_no_numbers_are_answers_and_no_crash(folder: Path) -> None:
    model = model_of(folder)
    for alpha in (1e3, 1e30):
        texts = answers(model, alpha)
        assert len(texts) == len(PROMPTS), alpha
    assert len(set(answers(model, 0.0).values())) > 1, "and the engine is well afterwards"
    model.close()
