"""A server far away costs a search no time: what is kept is written behind it, in order, and read from memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from databases import PostgresServer, rows
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts
from optuna.trial import FrozenTrial
from optuna_dashboard import get_note, save_note
from sqlalchemy.orm import Session

from expo_search.config.spec import SearchSpec
from expo_search.contracts import Completion
from expo_search.errors import StoreError
from expo_search.evaluation.objective import Objective
from expo_search.search.loop import search
from expo_search.store.behind import Writer
from expo_search.store.optuna_rows import AttributeRow, Kind, write_attributes
from expo_search.store.study_store import Store

PROMPTS = make_prompts(40)  # looks after 16, 32 and all of them
SPEC = SearchSpec(sampler="expo", seed=5, alpha_min=0.0, alpha_max=1.0)
N_TRIALS = 5


class Transactions:
    """Takes the place of a database: what was written in each transaction. The first one waits until it is let go."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, work: Callable[[Session], None]) -> None:
        assert self.go.wait(10)
        self.made.append([])
        work(None)  # type: ignore[arg-type]

    def write(self, name: str) -> Callable[[Session], None]:
        return lambda _: self.made[-1].append(name)


@pytest.fixture
def made() -> Transactions:
    return Transactions()


@pytest.fixture
def writer(made: Transactions) -> Iterator[Writer]:
    writer = Writer(made)
    yield writer
    made.go.set()
    writer._thread.join(10) if writer._is_closed else writer.close()
    assert not writer._thread.is_alive()


class TestWriter:
    def test_what_waits_is_written_in_one_transaction_and_in_order(self, writer: Writer, made: Transactions) -> None:
        writer.put(made.write("a"))
        while writer._waiting:  # until it is taken up
            pass
        for name in "bc":
            writer.put(made.write(name))
        writer.put_step(lambda: made.made.append(["a step"]))
        for name in "de":
            writer.put(made.write(name))
        made.go.set()
        writer.flush()
        assert made.made == [["a"], ["b", "c"], ["a step"], ["d", "e"]]

    def test_after_a_fault_nothing_is_written_and_everybody_gets_it(self, writer: Writer, made: Transactions) -> None:
        def fail(_: Session) -> None:
            raise StoreError(where="w", found="f", expected="e", do="d")

        writer.put(fail)
        while writer._waiting:
            pass
        writer.put(made.write("later"))
        made.go.set()
        for use in (writer.flush, lambda: writer.put(made.write("too late")), writer.close):
            with pytest.raises(StoreError, match="w: f"):
                use()
        assert made.made == [[]]

    def test_a_flush_waits_for_what_was_given_before_it(self, writer: Writer, made: Transactions) -> None:
        writer.put(made.write("a"))
        waiting = threading.Thread(target=writer.flush)
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        made.go.set()
        waiting.join(10)
        assert made.made == [["a"]]


def test_attributes_are_rows_as_optuna_writes_them(url: str) -> None:
    """New ones and ones that are there, of a study and of trials, in the one statement or in the other."""
    store = Store(url, "s")
    study, trial = store.study, store.study.ask()
    ids: dict[Kind, int] = {"study user": study._study_id, "trial system": trial._trial_id}
    study.set_user_attr("there", "old")
    trial.storage.set_trial_system_attr(trial._trial_id, "there", [1])

    def put(*values: tuple[Kind, str, str]) -> None:
        with Session(store._engine) as session, session.begin():
            write_attributes(session, [AttributeRow(k, lambda k=k: ids[k], key, v) for k, key, v in values])  # type: ignore[misc]

    put(("study user", "there", '"new"'), ("study user", "fresh", "1"), ("study user", "fresh", "2"))
    put(("trial system", "there", "[2]"), ("study user", "last", "null"))
    study.set_user_attr("last", "over ours")
    again = Store(url, "s").study
    assert again.user_attrs == {"there": "new", "fresh": 2, "last": "over ours"}
    assert again.trials[0].system_attrs == {"there": [2]}


@pytest.fixture
def far(postgres: PostgresServer) -> str:
    return postgres.database()


def run(store: Store, **hooks: Any) -> None:
    objective = Objective(FakeModel(), FakeScorer(noise=0.1), store, PROMPTS, FakeWatcher())
    store.put_prompts("search", PROMPTS)
    search(store, objective, SPEC, N_TRIALS, **hooks)


def seen(trials: list[FrozenTrial]) -> list[tuple[object, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.distributions, t.user_attrs, t.system_attrs, t.intermediate_values)
        for t in trials
    ]


def test_what_optuna_reads_from_the_database_is_what_the_search_saw(far: str) -> None:
    store, in_memory = Store(far, "s"), list[FrozenTrial]()

    def look(_: object) -> None:
        assert isinstance(store.study._storage, optuna.storages.InMemoryStorage)
        in_memory[:] = store.study.get_trials()

    run(store, on_trial=look)
    assert len(in_memory) >= N_TRIALS
    assert seen(in_memory) == seen(Store(far, "s").study.get_trials()) == seen(store.study.get_trials())
    on_disk = optuna.load_study(study_name="s", storage=far)
    assert len(on_disk.get_trials(states=[optuna.trial.TrialState.COMPLETE])) == N_TRIALS


def test_a_search_waits_for_the_database_three_times_a_trial(far: str) -> None:
    """Its thread: the weights, which answers are stored, and sometimes those of the trial that it races against."""
    store, here, waited = Store(far, "s"), threading.current_thread(), Counter[int]()
    n_trials = 0

    def count(*_: object) -> None:
        if threading.current_thread() is here:
            waited[n_trials] += 1

    for engine in (store._engine, store.storage.engine):
        sa.event.listen(engine, "before_cursor_execute", count)

    def finished(_: object) -> None:
        nonlocal n_trials
        n_trials += 1

    run(store, on_trial=finished)
    assert all(waited[trial] <= 3 for trial in range(1, N_TRIALS)), waited


def test_answers_that_are_not_written_yet_are_read_all_the_same(far: str) -> None:
    store, prompts = Store(far, "s"), make_prompts(3)
    answers = {i: Completion(p, f"answer \0 {i}", i, "stop") for i, p in enumerate(prompts)}
    with store.owned():
        for trial in range(6):
            assert store.n_completions(trial, "search", 3) == 0
            store.pin_weights(trial, "search", 0.5, "f")
            store.add_completions(trial, "search", answers)
            store.add_rewards(trial, "search", {0: 0.25, 2: 0.5})
        in_memory = [store.completions(t, "search", prompts) for t in range(6)]
        rated = [store.rated(t, "search") for t in range(6)]
        assert [store.n_tokens(t, "search") for t in range(6)] == [3] * 6
    again = Store(far, "s")
    assert [again.completions(t, "search", prompts) for t in range(6)] == in_memory
    assert [again.rated(t, "search") for t in range(6)] == rated
    assert in_memory[5][0].completion.text == "answer \ufffd 0"
    assert [s.reward for s in in_memory[0]] == [0.25, None, 0.5]


def test_a_part_that_is_dropped_while_the_study_is_held_is_gone(far: str) -> None:
    store, prompts = Store(far, "s"), make_prompts(3)
    with store.owned():
        store.put_prompts("confirm", prompts)
        assert store.prompts("confirm") == prompts
        store.add_completions(0, "confirm", {0: Completion(prompts[0], "a", 1, "stop")})
        store.drop("confirm")
        assert store.prompts("confirm") == []
        assert store.completions(0, "confirm", prompts) == []
        store.put_prompts("confirm", prompts[::-1])
        assert store.prompts("confirm") == prompts[::-1]
    assert rows(far, "SELECT count(*) FROM expo_completions") == [(0,)]


def test_what_somebody_else_wrote_into_the_study_meanwhile_is_seen_by_who_asks_for_it(far: str) -> None:
    store, there = Store(far, "s"), list[object]()
    with store.owned():
        store.study.set_user_attr("mine", 1)
        optuna.load_study(study_name="s", storage=far).set_user_attr("theirs", 2)
        store.later(lambda study: there.append(study.user_attrs))
        store.flush()
    assert there == [{"mine": 1, "theirs": 2}]


@pytest.mark.parametrize("held", [False, True])
def test_a_note_in_many_pieces_is_one_transaction(far: str, held: bool) -> None:
    store, long, commits = Store(far, "s"), "word " * 5000, list[object]()
    count = commits.append

    def save(study: optuna.Study) -> None:
        assert get_note(study) == "theirs"
        sa.event.listen(sa.Engine, "commit", count)
        save_note(study, long)

    save_note(optuna.load_study(study_name="s", storage=far), "theirs")
    with store.owned() if held else nullcontext():
        store.later(save)
        store.flush()
        sa.event.remove(sa.Engine, "commit", count)
    assert len(commits) == 1
    assert get_note(optuna.load_study(study_name="s", storage=far)) == long


def test_a_trial_that_somebody_else_adds_meanwhile_ends_the_search(far: str) -> None:
    """Answers are kept by the trial's number, which would now be another one's."""
    store = Store(far, "s")

    def go_on_beside_another() -> None:
        with store.owned():
            store.study.ask()
            store.flush()
            optuna.load_study(study_name="s", storage=far).ask()
            trial = store.study.ask()
            store.add_completions(trial.number, "search", {0: Completion(PROMPTS[0], "mine", 1, "stop")})
            store.flush()

    with pytest.raises(StoreError, match="another trial 1 than this search's"):
        go_on_beside_another()
    assert rows(far, "SELECT * FROM expo_completions") == []


def test_a_study_from_which_a_trial_was_taken_is_refused(far: str) -> None:
    store = Store(far, "s")
    for _ in range(2):
        store.study.ask()
    with Session(store._engine) as session, session.begin():
        session.execute(sa.text("DELETE FROM trials WHERE number = 0"))
    with pytest.raises(StoreError, match="another trial 0 than this search's"), Store(far, "s").owned():
        pass
