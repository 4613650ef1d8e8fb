"""The search with fakes of model and scorer: asked to stop, and with an engine that dies under it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from databases import rows
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts
from optuna.trial import TrialState

from expo_search.cli.main import main
from expo_search.cli.signals import same_command, stop_on_signals, terminate_as_ctrl_c
from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion, Prompt
from expo_search.errors import EngineDied, StoreError
from expo_search.evaluation.objective import Objective, Stopped
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.search.confirm import confirm
from expo_search.search.loop import evaluations, search, why_done
from expo_search.store.attributes import engine_failure
from expo_search.store.study_store import Store

PROMPTS = make_prompts(40)  # looks after 16, 32 and all of them
SPEC = SearchSpec(sampler="random", seed=5, alpha_min=0.0, alpha_max=1.0)
N_TRIALS = 4
DIED = {"where": "vLLM engine", "found": "it crashed", "expected": "an engine", "do": "look"}


def crash() -> None:
    raise EngineDied(**DIED)


def run(
    url: str,
    model: FakeModel | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_failure: Callable[[EngineDied], None] | None = None,
) -> list[Evaluation]:
    store = Store(url, "s")
    objective = Objective(model or FakeModel(), FakeScorer(), store, PROMPTS, FakeWatcher())
    return search(store, objective, SPEC, N_TRIALS, stop=stop, on_failure=on_failure)


def outcome(found: list[Evaluation]) -> list[tuple[object, ...]]:
    """Everything but times and the numbers of trials."""
    return [(e.alpha, e.reward, e.gain, e.outcome, e.mean_length, e.fingerprint) for e in found]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    return outcome(run(f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}"))


def answers(url: str) -> list[tuple[float, str]]:
    """(alpha, prompt id) of every stored answer, which its text says."""
    found = [json.loads(str(text)) for (text,) in rows(url, "SELECT text FROM expo_completions")]
    return [(alpha, prompt) for alpha, prompt, *_ in found]


class AskedAfter:
    """A request to stop that comes with the n-th answer of a model, as a signal does: in the middle of a look."""

    def __init__(self, model: FakeModel, n_answers: int) -> None:
        self._model, self._n = model, n_answers

    def __call__(self) -> bool:
        return len(self._model.asked) >= self._n


class TestStop:
    @pytest.mark.parametrize("n_answers", [1, 40, 60])
    def test_a_search_that_is_asked_to_stop_finishes_its_look_and_goes_on_later_as_if_it_had_not_been(
        self, url: str, unbroken: list[tuple[object, ...]], n_answers: int
    ) -> None:
        model, again = FakeModel(), FakeModel()
        run(url, model, stop=AskedAfter(model, n_answers))
        stored = answers(url)
        assert len(stored) >= n_answers
        assert sorted(stored) == sorted(model.asked)
        assert len(model.asked) - n_answers < 16 + model.in_flight, "more than the look under way"
        assert outcome(run(url, again)) == unbroken
        assert set(stored).isdisjoint(again.asked)

    def test_a_stop_between_two_trials_begins_no_other(self, url: str) -> None:
        model = FakeModel()
        assert run(url, model, stop=lambda: True) == []
        assert model.asked == []

    @pytest.mark.parametrize("n_answers", [1, 41])
    def test_a_confirmation_stops_after_the_look_under_way(self, url: str, n_answers: int) -> None:
        """Looks at 16, 32 and 40: the 1st answer is of the control's first look, the 41st of the winner's."""
        store, model, again = Store(url, "s"), FakeModel(), FakeModel()
        objective = Objective(model, FakeScorer(), store, PROMPTS, FakeWatcher(), part="confirm")
        with pytest.raises(Stopped):
            confirm(store, objective, 1, 0.3, PROMPTS, stop=AskedAfter(model, n_answers))
        assert n_answers + 15 <= len(model.asked) <= n_answers + 15 + model.in_flight
        confirm(store, Objective(again, FakeScorer(), store, PROMPTS, FakeWatcher(), part="confirm"), 1, 0.3, PROMPTS)
        assert len(set(model.asked + again.asked)) == len(model.asked + again.asked) == 80

    def test_a_confirmation_stops_between_its_two_measurements(self, url: str) -> None:
        run(url)
        store, model = Store(url, "s"), FakeModel()
        fresh = [p for p in make_prompts(50) if p not in PROMPTS]
        objective = Objective(model, FakeScorer(), store, fresh, FakeWatcher(), part="confirm")
        with pytest.raises(Stopped):
            confirm(store, objective, 1, 0.3, fresh, stop=lambda: bool(model.asked))
        again = FakeModel()
        confirm(store, Objective(again, FakeScorer(), store, fresh, FakeWatcher(), part="confirm"), 1, 0.3, fresh)
        assert {alpha for alpha, _ in model.asked} == {0.0}
        assert {alpha for alpha, _ in again.asked} == {0.3}

    @pytest.mark.parametrize("is_written", [True, False])
    def test_an_interrupt_while_answers_are_written_is_no_fault_and_loses_none(
        self,
        url: str,
        unbroken: list[tuple[object, ...]],
        monkeypatch: pytest.MonkeyPatch,
        is_written: bool,
    ) -> None:
        write, n_calls = Store.add_completions, 0

        def interrupted(store: Store, *batch: Any, **options: Any) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls == 3 and not is_written:
                raise KeyboardInterrupt
            write(store, *batch, **options)
            if n_calls == 3:  # as where SQLAlchemy gives the connection back
                raise KeyboardInterrupt

        monkeypatch.setattr(Store, "add_completions", interrupted)
        model, again = FakeModel(), FakeModel()
        with pytest.raises(KeyboardInterrupt):
            run(url, model)
        assert n_calls == 4, "what was on its way is written after all"
        assert len(answers(url)) == len(set(answers(url))) >= 32 + 8
        assert outcome(run(url, again)) == unbroken
        assert set(answers(url)) == {*model.asked, *again.asked}


class DiesFrom(FakeModel):
    """Its engine dies at every alpha from this one on."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.least = alpha

    def generate(self, prompts: Sequence[Prompt], seed: int) -> Iterator[Completion | int]:
        if self.alphas[-1] >= self.least:
            crash()
        return super().generate(prompts, seed)


class TestEngineThatDies:
    @pytest.mark.parametrize("n_answers", [0, 40, 60])
    def test_the_trial_fails_with_the_reason_and_is_repeated_on_a_new_engine_without_generating_anything_twice(
        self, url: str, unbroken: list[tuple[object, ...]], n_answers: int
    ) -> None:
        model, said = FakeModel(dies_after=n_answers, die=crash), list[EngineDied]()
        found = run(url, model, on_failure=said.append)
        assert outcome(found) == unbroken
        assert (model.restarts, len(said)) == (1, 1)
        assert len(model.asked) == len(set(model.asked)) == len(answers(url))
        failed = Store(url, "s").study.get_trials(states=(TrialState.FAIL,))
        assert [engine_failure(t) for t in failed] == ["vLLM engine: it crashed; expected an engine; look"]
        assert not Store(url, "s").study.get_trials(states=(TrialState.RUNNING,))

    def test_the_control_keeps_its_number(self, url: str) -> None:
        found = run(url, FakeModel(dies_after=3, die=crash))
        assert found[0].trial == CONTROL
        assert found[0].alpha == 0

    @pytest.mark.parametrize("n_answers", [5, 60])
    def test_a_second_failure_ends_the_search_and_the_same_command_goes_on_later(
        self, url: str, unbroken: list[tuple[object, ...]], n_answers: int
    ) -> None:
        model = FakeModel(dies_after=n_answers, die=crash, dies_again=1)
        with pytest.raises(EngineDied, match="it crashed"):
            run(url, model)
        assert model.restarts == 1
        before, again = answers(url), FakeModel()
        assert len(before) == len(model.asked) == n_answers + 1
        assert why_done(Store(url, "s").study, SPEC, 1, None) is None or n_answers > 40
        assert outcome(run(url, again)) == unbroken
        assert set(before).isdisjoint(again.asked)

    def test_an_alpha_that_ends_every_engine_is_left_out_after_two_runs_or_where_the_range_has_no_more_of_it(
        self, url: str
    ) -> None:
        wide = SearchSpec(sampler="grid", alpha_min=0.0, alpha_max=4.0, racing=False)

        def searched(spec: SearchSpec, n_trials: int) -> list[float]:
            store = Store(url, "s")
            objective = Objective(DiesFrom(2.0), FakeScorer(), store, PROMPTS, FakeWatcher())
            return [e.alpha for e in search(store, objective, spec, n_trials)]

        for told in (r"look$", r"look; the same command goes on without this trial$"):
            with pytest.raises(EngineDied, match=told):
                searched(wide, 3)
        with pytest.raises(EngineDied, match=r"look$"):
            searched(wide, 3)  # the next one, 4.0, as 2.0 is left out
        narrow = wide.model_copy(update={"alpha_max": 1.0})
        assert sorted(searched(narrow, 3)) == [0.0, 0.5, 1.0]

    def test_expo_looks_beside_an_alpha_that_ends_every_engine(self, url: str) -> None:
        store, spec = Store(url, "s"), SearchSpec(tolerance=0.0)
        found: list[Evaluation] = []
        for _ in range(12):
            objective = Objective(DiesFrom(0.4), FakeScorer(), store, PROMPTS, FakeWatcher())
            with contextlib.suppress(EngineDied):
                found = search(store, objective, spec, 6)
        failed = [t.params["alpha"] for t in store.study.get_trials(states=(TrialState.FAIL,))]
        assert len(found) == 6
        assert failed[:4] == [0.5] * 4
        assert all(e.alpha < 0.4 <= alpha for e in found for alpha in failed)

    def test_an_engine_that_dies_once_in_each_of_two_trials_ends_nothing(
        self, url: str, unbroken: list[tuple[object, ...]]
    ) -> None:
        model = FakeModel(dies_after=5, die=crash)
        crash_again_in_the_next_trial(model)
        assert outcome(run(url, model)) == unbroken
        assert model.restarts == 2

    def test_a_new_engine_that_does_not_start_ends_the_search_and_loses_nothing(
        self, url: str, unbroken: list[tuple[object, ...]]
    ) -> None:
        class Unstartable(FakeModel):
            def restart(self) -> None:
                crash()

        with pytest.raises(EngineDied):
            run(url, Unstartable(dies_after=50, die=crash))
        assert outcome(run(url)) == unbroken

    def test_an_engine_that_goes_down_with_a_stop_is_no_failure(
        self, url: str, unbroken: list[tuple[object, ...]]
    ) -> None:
        model = FakeModel(dies_after=50, die=crash)
        run(url, model, stop=AskedAfter(model, 50))
        assert model.restarts == 0
        assert not Store(url, "s").study.get_trials(states=(TrialState.FAIL,))
        assert outcome(run(url)) == unbroken

    def test_a_process_that_is_killed_between_the_failure_and_the_repetition_repeats_it_later(
        self, url: str, unbroken: list[tuple[object, ...]]
    ) -> None:
        def end(_: EngineDied) -> None:
            raise KeyboardInterrupt

        model = FakeModel(dies_after=10, die=crash)
        with pytest.raises(KeyboardInterrupt):
            run(url, model, on_failure=end)
        again = FakeModel()
        assert outcome(run(url, again)) == unbroken
        assert set(model.asked).isdisjoint(again.asked)


def crash_again_in_the_next_trial(model: FakeModel) -> None:
    """After the first restart, die once more, 50 answers later."""
    restart = model.restart

    def once_more() -> None:
        restart()
        if model.restarts == 1:
            model.dies_after = len(model.asked) + 50

    model.restart = once_more  # type: ignore[method-assign]


def test_trials_of_another_program_are_refused(url: str) -> None:
    store = Store(url, "s")
    store.study.tell(store.study.ask(), 1.0)
    with pytest.raises(StoreError, match="trials without 'alpha'; expected trials that this version"):
        evaluations(store.study)


class TestSignals:
    @pytest.fixture(autouse=True)
    def handlers(self) -> Iterator[None]:
        before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        yield
        assert signal.getsignal(signal.SIGINT) == before[signal.SIGINT]
        for number, handler in before.items():
            signal.signal(number, handler)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_signal_is_a_request_and_the_second_stops_now(self, number: signal.Signals) -> None:
        said: list[str] = []
        with stop_on_signals(said.append) as stop:
            assert not stop()
            os.kill(os.getpid(), number)
            assert stop()
            assert len(said) == 1
            assert "Ctrl-C again stops now" in said[0]
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)

    def test_outside_a_search_sigterm_is_a_ctrl_c(self) -> None:
        terminate_as_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    def test_a_fault_that_comes_up_while_a_stop_clears_up_is_a_stop(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def stopped(fault: Callable[[], None]) -> None:
            try:
                raise KeyboardInterrupt
            finally:
                fault()

        def full() -> None:
            raise StoreError(where="--storage x", found="a full disk", expected="room", do="free some")

        died, no_room = (
            "vLLM engine: it crashed; expected an engine; look",
            "--storage x: a full disk; expected room; free some",
        )
        ends = "is kept, the same command goes on"

        monkeypatch.setattr("sys.argv", ["expo-search", "--pair", "demo"])
        for command, code, said in (
            (partial(stopped, crash), 130, [died, f"stopped; what was finished {ends}"]),
            (partial(stopped, full), 130, [no_room, f"stopped; what was stored {ends}"]),
            (crash, 2, [died]),
        ):
            monkeypatch.setattr("expo_search.cli.main.app", command)
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == code
            assert capsys.readouterr().err.splitlines() == [f"expo-search: {line}" for line in said]

    def test_in_another_thread_signals_stay_as_they_are(self) -> None:
        seen: list[bool] = []

        def work() -> None:
            with stop_on_signals(print) as stop:
                seen.append(stop())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [False]

    def test_a_ctrl_c_does_not_reach_processes_that_were_kept_from_it_and_reaches_this_one(
        self, tmp_path: Path
    ) -> None:
        code = (
            "import multiprocessing as m, os, signal, threading, time\n"
            "from expo_search.engine.start import not_for_children\n"
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
            "def child(pipe): signal.signal(signal.SIGINT, signal.SIG_DFL); pipe.recv(); pipe.send('alive')\n"
            "if __name__ == '__main__':\n"
            "    here, there = m.Pipe()\n"
            "    with not_for_children():\n"
            "        process = m.get_context('spawn').Process(target=child, args=(there,))\n"
            "        process.start()\n"
            "        os.kill(process.pid, signal.SIGINT)\n"
            "        here.send('?'); print(here.recv(), flush=True)\n"
            "        try: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
            "        except KeyboardInterrupt: print('interrupted')\n"
        )
        script = tmp_path / "script.py"
        script.write_text(code)
        found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
        assert found.stdout.split() == ["alive", "interrupted"], found.stderr

    def test_the_command_that_goes_on_can_be_pasted_and_shows_no_password(self) -> None:
        typed = ["--pair", "demo", "--study-name", "my study", "--storage", "postgresql://me:hunter2@host/db"]
        assert same_command(typed) == (
            "expo-search --pair demo --study-name 'my study' --storage 'postgresql://me:***@host/db'"
        )
