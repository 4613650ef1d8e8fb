"""The real engine, crashed and stopped under way: what the search sees, and that a new one gives the same answers."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from twins import edit, make_pair

from expo_search.config.spec import EngineSpec, SamplingSpec
from expo_search.contracts import Completion, Prompt
from expo_search.engine import watched
from expo_search.engine.machine import Machine
from expo_search.engine.memory_plan import MemoryPlan, plan_memory
from expo_search.engine.model import VllmModel
from expo_search.engine.needs import Needs
from expo_search.engine.start import ModelSpec, start_engine
from expo_search.engine.watched import WatchedEngine
from expo_search.engine.worker.loader import write_fault
from expo_search.errors import EngineDied, EngineError, MaterializeError

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


def test_an_engine_is_started_anew_with_what_is_free_once_the_old_one_has_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward model that holds more than was planned for it would else leave too little to start with."""
    started: list[ModelSpec] = []
    workers: list[subprocess.Popen[bytes]] = []

    def start(spec: ModelSpec) -> SimpleNamespace:
        started.append(spec)
        workers.append(subprocess.Popen(["sleep", "60"]))
        core = SimpleNamespace(shutdown=lambda: None)
        ranks = [workers[-1].pid]
        return SimpleNamespace(
            llm_engine=SimpleNamespace(engine_core=core), collective_rpc=lambda _, args: [*ranks, *args]
        )

    def plan_again() -> MemoryPlan:
        assert psutil.Process(workers[0].pid).status() == psutil.STATUS_ZOMBIE, "it would still hold its memory"
        return MemoryPlan({}, {}, "host", 0.5, max_num_seqs=64)

    monkeypatch.setattr(watched, "start_engine", start)
    spec = ModelSpec(folder / "aligned", folder / "sft", SAMPLING, EngineSpec(), 42, plan_again=plan_again)
    engine = WatchedEngine(spec.planned(MemoryPlan({}, {}, "gpu", 0.8, max_num_seqs=128)))
    engine.restart()
    assert [s.gpu_memory_utilization for s in started] == [0.8, 0.5]
    assert [s.sources_on_host for s in started] == [False, True]
    assert [s.engine.max_num_seqs for s in started] == [128, 64]
    engine.close()
    for worker in workers:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize(
    ("finds", "error", "told"),
    [(True, MaterializeError, "^weight x: NaN"), (False, EngineError, "Engine core initialization failed")],
)
def test_of_an_engine_that_does_not_start_the_loaders_fault_is_told_where_there_is_one(
    finds: bool, error: type[Exception], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(folder / "aligned", folder / "sft", SAMPLING, EngineSpec(), 42)

    def fails(*, model_loader_extra_config: dict[str, Any], **_: object) -> None:
        if finds:
            fault = MaterializeError(where="weight x", found="NaN", expected="numbers", do="look")
            write_fault(fault, Path(model_loader_extra_config["expo_fault_file"]))
        raise RuntimeError("Engine core initialization failed.")  # all that vLLM says of another process

    monkeypatch.setattr("vllm.LLM", fails)
    with pytest.raises(error, match=told):
        start_engine(spec)


@pytest.mark.slow  # an engine in a process of its own starts slowly
def test_a_fault_that_the_loader_finds_in_another_process_is_told_in_its_own_words(tmp_path: Path) -> None:
    aligned, sft = make_pair(tmp_path, "llama-tied")
    edit(sft, lambda name, t: t * float("nan") if name == "model.norm.weight" else t)
    engine = EngineSpec(max_model_len=128, kv_cache_gib=1, own_process=True)
    named = r"^sft checkpoint, tensor model.norm.weight of .*: numbers that are not finite"
    with pytest.raises(MaterializeError, match=named):
        start_engine(ModelSpec(aligned, sft, SAMPLING, engine, 42))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of the system call is of x86-64")
def test_a_process_has_ended_when_the_last_of_its_threads_has() -> None:
    """What a GPU's driver waits for as well: the first thread alone is a zombie at once."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(2,)).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit of this thread, not of the process
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        begun = time.monotonic()
        watched._wait_for_end([process.pid], 0.3)
        assert time.monotonic() - begun >= 0.3, "one thread runs on"
        watched._wait_for_end([process.pid], 30)
        assert psutil.Process(process.pid).num_threads() == 1


def test_an_engine_without_room_left_is_an_error_in_the_plans_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = SimpleNamespace(shutdown=lambda: None)
    llm = SimpleNamespace(
        llm_engine=SimpleNamespace(engine_core=core), collective_rpc=lambda _, args: [os.getpid(), *args]
    )
    monkeypatch.setattr(watched, "start_engine", lambda _: llm)

    def plan_again() -> MemoryPlan:
        needs = Needs(live=14 << 30, packed=0, sources=28 << 30, reward_model=0, kv_per_token=1 << 17)
        return plan_memory(needs, EngineSpec(), Machine(host_free=64 << 30, gpu_free=10 << 30, gpu_total=80 << 30))

    spec = ModelSpec(folder / "aligned", folder / "sft", SAMPLING, EngineSpec(), 42, plan_again=plan_again)
    engine = WatchedEngine(spec.planned(MemoryPlan({}, {}, "gpu", 0.8)))
    with pytest.raises(EngineError, match=r"GPU memory: 10\.0 GiB free"):
        engine.restart()


def test_an_engine_on_a_cpu_is_started_anew_as_it_was(folder: Path) -> None:
    def never() -> MemoryPlan:
        raise AssertionError("its KV cache is planned by its size alone")

    spec = ModelSpec(folder / "aligned", folder / "sft", SAMPLING, EngineSpec(), 42, plan_again=never)
    on_cpu = spec.planned(MemoryPlan({}, {}, "host", None))
    assert (on_cpu.engine.max_num_seqs, on_cpu.output_tokens) == (256, 1)
    assert on_cpu.planned_again() is on_cpu


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


ORPHANS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_engine_faults import model_of
if __name__ == "__main__":
    model = model_of(Path({folder!r}), own_process=True)
    print("processes", *model._engine._watchdog.processes, flush=True)
    time.sleep(600)
"""


def orphans(script: str, folder: Path) -> list[psutil.Process]:
    """What is left of the processes that a script names, half a minute after it was killed."""
    file = folder / "orphans.py"  # what is spawned imports it
    file.write_text(script)
    owner = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        said = next(line for line in owner.stdout if line.startswith("processes"))  # after vLLM's own lines
        processes = [psutil.Process(int(pid)) for pid in said.split()[1:]]
        assert len(processes) >= 1
    finally:
        owner.kill()
        owner.wait()
    _, alive = psutil.wait_procs(processes, timeout=30)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow  # an engine of processes of its own; `test_pool.py` kills what started a pool
def test_an_engines_processes_end_with_the_one_that_started_them_also_where_it_is_killed(
    folder: Path, tmp_path: Path
) -> None:
    assert orphans(ORPHANS.format(tests=str(Path(__file__).parent), folder=str(folder)), tmp_path) == []
