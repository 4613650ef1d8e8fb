"""Many engines as one, in real Ray with engines that compute nothing: what is answered, and what a lost one costs."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import fakes
import pool_fakes
import psutil
import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, Killed, make_prompts
from pool_fakes import POISON, REFUSED, FakeRecipe, noted

from expo_search.config.spec import SearchSpec
from expo_search.contracts import BackgroundScorer, Completion, Prompt, Watcher
from expo_search.errors import EngineDied, EngineError, MaterializeError, PromptsError, RewardError
from expo_search.evaluation.objective import Objective
from expo_search.pool import cluster as cluster_module
from expo_search.pool import member
from expo_search.pool.actor import Share
from expo_search.pool.cluster import Cluster, Node, Place, cores_each, room
from expo_search.pool.pool import Pool, PooledRewardModels
from expo_search.search.loop import search
from expo_search.session.sites import sites_for
from expo_search.store.study_store import Store

ray = pytest.importorskip("ray")
ANYWHERE = Place()  # fake engines need no core of their own
Started = Callable[..., Pool]


@pytest.fixture(autouse=True)
def _soon_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that computes nothing need not rest between two starts."""
    monkeypatch.setattr(member, "_PAUSE_S", 0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    sent_by_value()
    with closing(Cluster()) as here:
        yield here


def sent_by_value(*more: Any) -> None:
    for module in (pool_fakes, fakes, *more):  # a worker does not see this folder
        ray.cloudpickle.register_pickle_by_value(module)


def test_exit_codes_of_children_are_still_told(cluster: Cluster) -> None:
    assert subprocess.run([sys.executable, "-c", "import sys; sys.exit(2)"], check=False).returncode == 2


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Started]:
    """Starts a pool whose faults come from files in `tmp_path`."""
    pools = []

    def start_pool(n: int = 2, place: Place = ANYWHERE, on: Cluster = cluster, **options: Any) -> Pool:
        recipe = FakeRecipe(tmp_path, **{k: options.pop(k) for k in ("n_at_once", "step_s", "several") if k in options})
        pools.append(Pool(on, recipe, place, n, **options))
        return pools[-1]

    yield start_pool
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engines of `whole` note."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Pool]]:
    pools = dict[str, Pool]()
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture
def whole(cluster: Cluster, folder: Path, kept: dict[str, Pool]) -> Iterator[Started]:
    """A pool for a test that loses no engine, and that others use too: an engine's process takes seconds to start."""

    def empty() -> None:
        for file in folder.iterdir():
            file.unlink()

    def pool_of(n: int = 2, **options: Any) -> Pool:
        settings = f"{n} {options}"
        if settings not in kept:
            kept[settings] = Pool(cluster, FakeRecipe(folder, **options), ANYWHERE, n)
        pool = kept[settings]
        pool.materialize(0.0)
        answered(pool, make_prompts(1))  # drops what was begun ahead
        empty()
        return pool

    yield pool_of
    assert not (folder / "starts").exists(), "an engine was lost"


def answered(pool: Pool, prompts: list[Prompt], seed: int = 0) -> list[Completion]:
    return [item for item in pool.generate(prompts, seed) if isinstance(item, Completion)]


def by_prompt(completions: list[Completion]) -> dict[str, str]:
    assert len({c.prompt for c in completions}) == len(completions), "a prompt was answered twice"
    return {c.prompt.id: c.text for c in completions}


def texts(alpha: float, prompts: list[Prompt]) -> dict[str, str]:
    return {p.id: json.dumps([alpha, p.id]) for p in prompts}


def wait_for(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


class TestAnswers:
    def test_every_prompt_is_answered_once_at_the_alpha_that_was_set(self, whole: Started) -> None:
        pool, prompts = whole(2), make_prompts(40)
        for alpha in (0.0, 0.5):
            assert pool.materialize(alpha).alpha == alpha
            assert by_prompt(answered(pool, prompts)) == texts(alpha, prompts)

    def test_tokens_are_told_as_they_come(self, whole: Started) -> None:
        pool, prompts = whole(2), make_prompts(12)
        pool.materialize(0.0)
        items = list(pool.generate(prompts, 0))
        completions = [item for item in items if isinstance(item, Completion)]
        assert sum(item for item in items if isinstance(item, int)) == sum(c.n_tokens for c in completions)

    def test_engines_have_equal_parts_of_few_prompts(self, whole: Started, folder: Path) -> None:
        pool = whole(2, n_at_once=64)
        pool.materialize(0.0)
        answered(pool, make_prompts(40))
        assert sorted(Counter(pid for _, _, pid in noted(folder / "asked")).values()) == [20, 20]

    def test_an_engine_takes_more_as_it_has_room(self, whole: Started, folder: Path) -> None:
        pool = whole(2)
        pool.materialize(0.0)
        answered(pool, make_prompts(60))
        each = Counter(pid for _, _, pid in noted(folder / "asked")).values()
        assert len(each) == 2
        assert min(each) >= 15  # of 30, had they all the same lengths

    def test_all_are_at_the_same_weights_or_it_is_an_error(self, whole: Started, folder: Path) -> None:
        pool = whole(2)
        (folder / "other switch").touch()
        with pytest.raises(MaterializeError, match="other weights in one engine than in another"):
            pool.materialize(0.5)
        assert pool.materialize(0.5).fingerprint == FakeModel().materialize(0.5).fingerprint

    def test_what_cannot_be_set_is_told_in_the_engines_words(self, whole: Started) -> None:
        pool = whole(2)
        with pytest.raises(EngineError, match="at most 100"):
            pool.materialize(1000.0)
        pool.materialize(1.0)
        assert len(answered(pool, make_prompts(4))) == 4

    def test_a_trial_that_stops_leaves_nothing_to_the_next(self, whole: Started) -> None:
        pool, prompts = whole(2, step_s=0.05), make_prompts(60)
        pool.materialize(0.0)
        first = pool.generate(prompts, 0)
        next(item for item in first if isinstance(item, Completion))
        first.close()  # type: ignore[attr-defined]
        pool.materialize(2.0)
        few = prompts[:10]
        assert by_prompt(answered(pool, few)) == texts(2.0, few)

    def test_a_prompt_that_is_refused_is_the_callers_fault_and_the_pool_goes_on(self, whole: Started) -> None:
        pool = whole(2)
        pool.materialize(0.0)
        with pytest.raises(PromptsError, match="too long"):
            answered(pool, [*make_prompts(5), Prompt(REFUSED, "")])
        pool.materialize(0.0)
        assert len(answered(pool, make_prompts(5))) == 5

    def test_progress_sees_each_engine(self, whole: Started) -> None:
        pool = whole(2, step_s=0.05)
        assert [e.state for e in pool.engines()] == ["idle", "idle"]
        pool.materialize(0.0)
        items = pool.generate(make_prompts(40), 0)
        next(item for item in items if isinstance(item, Completion))
        busy = pool.engines()
        assert {e.state for e in busy} == {"answering"}
        assert all(e.n_prompts > 0 for e in busy)
        assert any(e.tokens_per_s > 0 for e in busy)
        assert len([item for item in items if isinstance(item, Completion)]) == 39


class TestAhead:
    """Half of the engines begin with the alpha that is expected next."""

    def asked(self, folder: Path) -> Counter[tuple[float, str]]:
        return Counter((float(alpha), id) for alpha, id, _ in noted(folder / "asked"))

    def test_what_was_begun_is_taken_over_and_nothing_is_answered_twice(self, whole: Started, folder: Path) -> None:
        pool, prompts = whole(3, n_at_once=64), make_prompts(60)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts[:40], 0)
        assert by_prompt(answered(pool, prompts[:40])) == texts(0.5, prompts[:40])
        wait_for(lambda: len(noted(folder / "asked")) == 80)
        pids = {alpha: {pid for a, _, pid in noted(folder / "asked") if float(a) == alpha} for alpha in (0.5, 1.0)}
        assert (len(pids[0.5]), len(pids[1.0])) == (2, 1)
        assert not pids[0.5] & pids[1.0]
        assert pool.materialize(1.0).fingerprint == FakeModel().materialize(1.0).fingerprint
        items = list(pool.generate(prompts, 0))
        completions = [item for item in items if isinstance(item, Completion)]
        assert by_prompt(completions) == texts(1.0, prompts)
        assert sum(item for item in items if isinstance(item, int)) == sum(c.n_tokens for c in completions)
        assert set(self.asked(folder).values()) == {1}
        assert by_prompt(answered(pool, prompts)) == texts(1.0, prompts), "a second time they are answered anew"

    def test_answers_that_are_under_way_go_on_while_the_others_switch(self, whole: Started, folder: Path) -> None:
        pool, prompts = whole(2, n_at_once=64, step_s=0.1), make_prompts(30)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts, 0)
        first = pool.generate(prompts, 0)
        next(item for item in first if isinstance(item, Completion))
        first.close()  # type: ignore[attr-defined]
        pool.materialize(1.0)
        assert by_prompt(answered(pool, prompts)) == texts(1.0, prompts)
        assert {n for (alpha, _), n in self.asked(folder).items() if alpha == 1.0} == {1}

    @pytest.mark.parametrize("asked", ["another alpha", "other prompts", "another seed"])
    def test_what_is_not_asked_for_is_dropped_and_its_tokens_are_counted(
        self, whole: Started, folder: Path, asked: str
    ) -> None:
        pool, prompts = whole(2, n_at_once=64), make_prompts(40)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts, 0)
        n_before = sum(c.n_tokens for c in answered(pool, prompts))  # an answer is as long at every alpha
        wait_for(lambda: len(noted(folder / "asked")) == 80)
        wait_for(lambda: all(e.n_prompts == 0 for e in pool.engines()))
        alpha = 0.25 if asked == "another alpha" else 1.0
        pool.materialize(alpha)
        items = list(pool.generate(prompts[:30] if asked == "other prompts" else prompts, int(asked == "another seed")))
        completions = [item for item in items if isinstance(item, Completion)]
        assert by_prompt(completions) == texts(alpha, [c.prompt for c in completions])
        n_tokens = sum(item for item in items if isinstance(item, int))
        assert n_tokens == sum(c.n_tokens for c in completions) + n_before

    def test_prompts_that_fill_the_engines_leave_none_for_it(self, whole: Started, folder: Path) -> None:
        pool, prompts = whole(2), make_prompts(9)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts, 0)
        answered(pool, prompts)
        assert {alpha for alpha, _ in self.asked(folder)} == {0.5}

    def test_one_engine_looks_at_nothing_ahead(self, whole: Started, folder: Path) -> None:
        pool, prompts = whole(1, n_at_once=64), make_prompts(9)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts, 0)
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        pool.materialize(1.0)
        assert by_prompt(answered(pool, prompts)) == texts(1.0, prompts)
        assert set(self.asked(folder).values()) == {1}

    @pytest.mark.parametrize("fault", ["die", pytest.param("fail", marks=pytest.mark.slow)])
    @pytest.mark.parametrize("n_lost", [1, 2])
    def test_a_lost_engine_costs_time_alone(self, start: Started, tmp_path: Path, fault: str, n_lost: int) -> None:
        pool, prompts = start(2, n_at_once=64, step_s=0.05), make_prompts(60)
        pool.materialize(0.5)
        pool.answer_ahead(1.0, prompts, 0)
        (tmp_path / fault).touch()
        items = pool.generate(prompts, 0)
        first = next(item for item in items if isinstance(item, Completion))
        if n_lost == 2:
            (tmp_path / fault).touch()
        assert by_prompt([first, *(i for i in items if isinstance(i, Completion))]) == texts(0.5, prompts)
        pool.materialize(1.0)
        assert by_prompt(answered(pool, prompts)) == texts(1.0, prompts)

    def test_an_alpha_that_cannot_be_set_is_told_when_it_is_asked_for(self, whole: Started) -> None:
        pool, prompts = whole(2, n_at_once=64), make_prompts(9)
        for asks in (False, True):
            pool.materialize(0.5)
            pool.answer_ahead(1000.0, prompts, 0)
            assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
            if asks:
                with pytest.raises(EngineError, match="at most 100"):
                    pool.materialize(1000.0)
        pool.materialize(0.25)
        assert by_prompt(answered(pool, prompts)) == texts(0.25, prompts)


class TestLosses:
    @pytest.mark.parametrize("fault", ["die", pytest.param("fail", marks=pytest.mark.slow), "hang"])
    def test_a_lost_engine_gives_its_prompts_back_and_joins_anew(
        self, start: Started, tmp_path: Path, fault: str
    ) -> None:
        said: list[str] = []
        pool, prompts = start(2, limit_s=3.0, step_s=0.02, say=said.append), make_prompts(80)
        pool.materialize(0.5)
        (tmp_path / fault).touch()
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        assert any("is lost" in line and "prompts go back" in line for line in said)
        wait_for(lambda: all(e.serves for e in pool.engines()))
        assert len(noted(tmp_path / "starts")) == 3
        (new, *_) = noted(tmp_path / "starts")[-1]
        n_before = len(noted(tmp_path / "asked"))
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)  # the new one is at the alpha of the others
        assert new in {pid for _, _, pid in noted(tmp_path / "asked")[n_before:]}

    def test_one_that_joins_anew_and_cannot_switch_answers_nothing(self, start: Started, tmp_path: Path) -> None:
        said: list[str] = []
        pool, prompts = start(2, step_s=0.05, say=said.append), make_prompts(200)
        pool.materialize(0.5)
        for fault in ("no switch", "die"):
            (tmp_path / fault).touch()
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        wait_for(lambda: all(e.serves for e in pool.engines()))
        assert sum("is lost" in line for line in said) == 2
        assert len(noted(tmp_path / "starts")) == 4

    def test_an_engine_that_does_not_start_again_is_given_up_and_the_trial_goes_on(
        self, start: Started, tmp_path: Path
    ) -> None:
        said: list[str] = []
        pool, prompts = start(2, say=said.append), make_prompts(60)
        pool.materialize(0.5)
        (tmp_path / "no start").touch()
        (tmp_path / "die").touch()
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        wait_for(lambda: any(e.state == "given up" for e in pool.engines()))
        assert len([line for line in said if "given up after 3 starts" in line]) == 1
        assert len(noted(tmp_path / "starts")) == 2 + 2, "the first start of a lost engine counts"
        assert pool.materialize(0.25).alpha == 0.25
        assert len(answered(pool, prompts)) == 60

    def test_where_none_is_left_the_trial_fails_and_a_restart_brings_them_back(
        self, start: Started, tmp_path: Path
    ) -> None:
        pool, prompts = start(1), make_prompts(60)
        pool.materialize(0.5)
        (tmp_path / "no start").touch()
        (tmp_path / "die").touch()
        with pytest.raises(EngineDied, match="none of 1 is left"):
            answered(pool, prompts)
        with pytest.raises(EngineDied):
            pool.score([Completion(prompts[0], "", 1, "stop")], lambda _: None)
        (tmp_path / "no start").unlink()
        pool.restart()
        pool.materialize(0.5)
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)

    def test_a_prompt_that_ends_every_engine_fails_the_trial(self, start: Started) -> None:
        pool = start(2)
        pool.materialize(0.5)
        with pytest.raises(EngineDied, match=r"engines were lost while they answered it|is left"):
            answered(pool, [Prompt(POISON, ""), *make_prompts(5)])

    def test_a_first_start_that_fails_is_told_at_once(self, start: Started, tmp_path: Path) -> None:
        (tmp_path / "no start").touch()
        with pytest.raises(EngineError, match="no room"):
            start(2)

    def test_engines_of_other_weights_are_refused(self, start: Started, tmp_path: Path) -> None:
        (tmp_path / "other weights").touch()
        with pytest.raises(MaterializeError, match="the same weights in all"):
            start(2)

    def test_a_fault_of_any_kind_is_a_loss_once_the_pool_has_started_and_its_mistake_before(
        self, start: Started, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "stale").touch()
        with pytest.raises(OSError, match="Stale file handle"):
            start(1)
        said: list[str] = []
        pool, prompts = start(1, say=said.append), make_prompts(20)
        pool.materialize(0.5)
        for fault in ("time out", "stale"):
            (tmp_path / fault).touch()
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        first, second = said
        assert "TimeoutError: Connection timed out; its" in first
        assert "OSError: [Errno 116] Stale file handle; it is started anew" in second
        assert "in step" in caplog.text, "the log has the traceback of the engine's process"


class TestRating:
    def test_several_reward_models_beside_each_engine_rate_each_answer(self, start: Started) -> None:
        pool = start(2, several=True)
        completions = [Completion(p, json.dumps([0.5, p.id]), 1, "stop") for p in make_prompts(9)]
        each = [scorer.score(completions, lambda _: None)[0] for scorer in (FakeScorer(), FakeScorer(best=1.0))]
        rating, counted = PooledRewardModels(pool), list[int]()
        expected = (list(zip(*each, strict=True)), 0)
        assert rating.score_each(completions, counted.append) == expected
        assert rating.begin(completions).result(30) == expected
        assert sum(counted) == 9

    def test_a_pool_rates_in_the_background_as_its_scorers_do(self, whole: Started) -> None:
        pool = whole(2)
        assert isinstance(pool, BackgroundScorer)
        completions = [
            Completion(p, text, 1, "stop")
            for p, text in zip(make_prompts(9), texts(0.2, make_prompts(9)).values(), strict=True)
        ]
        alone = FakeScorer().score(completions, lambda _: None)
        counted: list[int] = []
        assert pool.score(completions, counted.append) == alone
        assert counted == [9]
        futures = [pool.begin(completions[i : i + 3]) for i in (0, 3, 6)]
        assert [reward for f in futures for reward in f.result(30)[0]] == alone[0]

    def test_answers_that_an_engine_is_lost_with_are_rated_by_another(self, start: Started, tmp_path: Path) -> None:
        pool, prompts = start(2), make_prompts(3)
        completions = [
            Completion(p, text, 1, "stop") for p, text in zip(prompts, texts(0.2, prompts).values(), strict=True)
        ]
        (tmp_path / "die rating").touch()
        assert pool.begin(completions).result(30) == FakeScorer().score(completions, lambda _: None)

    def test_a_reward_that_is_none_is_told(self, whole: Started, folder: Path) -> None:
        pool, prompts = whole(2), make_prompts(3)
        (folder / "no reward").touch()
        with pytest.raises(RewardError, match="nan"):
            pool.score([Completion(p, "", 1, "stop") for p in prompts], lambda _: None)

    def test_a_fault_of_any_kind_costs_an_engine_and_is_told_where_it_comes_again(
        self, start: Started, tmp_path: Path
    ) -> None:
        pool, prompts = start(1), make_prompts(3)
        completions = [Completion(p, json.dumps([0.2, p.id]), 1, "stop") for p in prompts]
        (tmp_path / "no memory").touch()
        assert pool.begin(completions).result(60) == FakeScorer().score(completions, lambda _: None)
        (tmp_path / "never memory").touch()
        with pytest.raises(EngineDied, match="RuntimeError: CUDA error: an illegal memory access was encountered;"):
            pool.begin(completions).result(60)

    def test_answers_that_end_engines_are_given_up_as_a_prompt_is(self, start: Started, tmp_path: Path) -> None:
        pool, prompts = start(3), make_prompts(3)
        (tmp_path / "never memory").touch()
        with pytest.raises(EngineDied, match="answers from prompt id-0 on: 3 engines were lost while they rated them"):
            pool.begin([Completion(p, "", 1, "stop") for p in prompts]).result(60)

    def test_answers_that_nobody_wants_rated_any_more_end_no_second_engine(
        self, start: Started, tmp_path: Path
    ) -> None:
        pool, prompts = start(2), make_prompts(3)
        (tmp_path / "slow rating").touch()
        waits = pool.begin([Completion(p, json.dumps([0.2, p.id]), 1, "stop") for p in prompts])
        wait_for(lambda: bool(noted(tmp_path / "rated")))
        assert waits.cancel(), "also while they are being rated"
        (pid,) = {int(pid) for _, pid in noted(tmp_path / "rated")}
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(noted(tmp_path / "started")) == 3)
        pool.materialize(0.5)
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        assert len(noted(tmp_path / "rated")) == 1


class KillingWatcher(FakeWatcher):
    """Kills after so many answers."""

    def __init__(self, n_answers: int) -> None:
        super().__init__()
        self._n_left = n_answers

    def generated(self, n_tokens: int, n_completions: int) -> None:
        self._n_left -= n_completions
        if self._n_left < 0:
            raise Killed
        super().generated(n_tokens, n_completions)


def searched(
    folder: Path, model: Any, scorer: Any, n_trials: int = 6, watcher: Watcher | None = None
) -> list[tuple[Any, ...]]:
    store = Store(f"sqlite:///{folder / 'study.db'}", "s")
    try:
        objective = Objective(model, scorer, store, make_prompts(128), watcher or FakeWatcher())
        found = search(store, objective, SearchSpec(), n_trials)
        return [(e.trial, e.alpha, e.reward, e.gain, e.outcome, e.fingerprint) for e in found]
    finally:
        store.close()


def test_a_search_that_looks_ahead_ends_as_one_that_does_not_also_where_it_is_killed(
    start: Started, tmp_path: Path
) -> None:
    for name in ("one", "two", "killed"):
        (tmp_path / name).mkdir()
    alone = searched(tmp_path / "one", FakeModel(), FakeScorer())
    pool = start(2, n_at_once=64)
    assert searched(tmp_path / "two", pool, pool) == alone
    order = [float(alpha) for alpha, _, _ in noted(tmp_path / "asked")]
    asked = list(dict.fromkeys(order))
    overlaps = [a for a, b in itertools.pairwise(asked) if order.index(b) < len(order) - order[::-1].index(a) - 1]
    assert overlaps, "no alpha was begun before the one before it ended"
    for n_answers in (140, 165, 200):
        with pytest.raises(Killed):
            searched(tmp_path / "killed", pool, pool, watcher=KillingWatcher(n_answers))
        assert searched(tmp_path / "killed", pool, pool) == alone
        (tmp_path / "killed" / "study.db").unlink()


def test_a_search_with_three_engines_is_that_of_one(start: Started, tmp_path: Path) -> None:
    for name in ("one", "three", "faults"):
        (tmp_path / name).mkdir()
    alone = searched(tmp_path / "one", FakeModel(), FakeScorer())
    pool = start(3, step_s=0.002, n_at_once=16)
    assert searched(tmp_path / "three", pool, pool) == alone
    (tmp_path / "die").touch()
    (tmp_path / "die rating").touch()
    assert searched(tmp_path / "faults", pool, pool) == alone


class TestClusters:
    def test_the_first_engine_of_a_node_starts_alone_and_each_has_its_part_of_the_cores(
        self, start: Started, cluster: Cluster, tmp_path: Path
    ) -> None:
        (node,) = cluster.nodes()
        n = min(2, node.cpus)
        each = node.cpus // n
        start(n, Place(cpus=each))
        shares = [(int(index), int(of)) for _, index, of, _ in noted(tmp_path / "starts")]
        assert sorted(shares) == [(i, node.cpus // each) for i in range(n)]
        first_started = min(float(at) for *_, at in noted(tmp_path / "started"))
        assert [float(at) < first_started for *_, at in noted(tmp_path / "starts")].count(True) == 1
        (busy,) = cluster.nodes()
        assert busy.free_cpus == node.cpus - n * each

    def test_a_survey_comes_from_each_node_and_a_fault_in_its_own_words(self, cluster: Cluster, tmp_path: Path) -> None:
        (node,) = cluster.nodes()
        recipe = FakeRecipe(tmp_path)
        answer = cluster.survey(recipe, Place(cpus=1), {node.id: 2})
        assert answer[node.id][0] == 2
        assert answer[node.id][1] != os.getpid()
        (tmp_path / "no checkpoint").touch()
        with pytest.raises(EngineError, match="aligned: no folder; expected one; copy it"):
            cluster.survey(recipe, Place(cpus=1), {node.id: 2})

    @pytest.mark.parametrize("lacks", ["a module", "a class", "a module that is imported late"])
    def test_a_node_that_lacks_what_this_machine_has_of_expo_search_is_named(
        self, cluster: Cluster, lacks: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Newer:  # by value, as long as no module has it
            def survey(self, _: int) -> None:
                importlib.import_module("expo_search.pool.newer")

            def start(self, share: Share) -> Any: ...

        if "late" not in lacks:  # pickled by its name, which another version of the package does not have
            name = "expo_search.pool.newer" if lacks == "a module" else "expo_search.version"
            Newer.__module__, Newer.__qualname__ = name, "Newer"
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
            monkeypatch.setattr(sys.modules[name], "Newer", Newer, raising=False)
        (node,) = cluster.nodes()
        missing = "Can't get attribute 'Newer'" if lacks == "a class" else "No module named 'expo_search.pool.newer'"
        said = rf"^node {node.name}: expo-search cannot be imported there \({missing}.*; install the same version"
        with pytest.raises(EngineError, match=said) as fault:
            cluster.survey(Newer(), Place(cpus=1), {node.id: 1})
        assert len(str(fault.value).splitlines()) == 1

    def test_room_is_what_is_free(self) -> None:
        nodes = [Node("a", "a", 8, 64, 8, 64), Node("b", "b", 8, 64, 3, 64), Node("head", "head", 0, 8, 0, 8)]
        assert room(nodes, Place(gpus=1)) == {"a": 8, "b": 3, "head": 0}
        assert room(nodes, Place(gpus=4)) == {"a": 2, "b": 0, "head": 0}
        assert room(nodes, Place(cpus=5)) == {"a": 12, "b": 12, "head": 1}

    def test_engines_on_processors_get_as_many_cores_as_there_are_for_each(self) -> None:
        nodes = [Node("a", "a", 0, 8, 0, 8), Node("b", "b", 0, 4, 0, 4)]
        assert [cores_each(nodes, n) for n in (1, 2, 3, 6, 12, 13)] == [8, 4, 4, 2, 1, 0]

    def test_a_share_is_a_part_of_the_cores(self) -> None:
        assert [Share(i, 2).cores([0, 1, 2, 3, 4]) for i in (0, 1)] == [[0, 1], [2, 3]]
        assert Share(3, 4).cores([0, 1]) == [0, 1]
        assert Share().cores([3, 5]) == [3, 5]

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("127.0.0.1:1", "it cannot be reached"),
            ("ray://somewhere:10001", "no HOST:PORT"),
            ("somewhere", "no HOST:PORT"),
        ],
    )
    def test_a_cluster_that_cannot_be_reached_is_one_line_soon(self, address: str, said: str) -> None:
        begun = time.monotonic()
        with pytest.raises(EngineError, match=said):
            Cluster(address)
        assert time.monotonic() - begun < 10

    def test_without_ray_the_line_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cluster_module, "find_spec", lambda _: None)
        with pytest.raises(EngineError, match=r'pip install "expo-search\[ray\]"'):
            sites_for(2, None)

    def test_one_engine_needs_no_ray(self) -> None:
        code = (
            "import sys\n"
            "from expo_search.session import preflight, running, sites\n"
            "assert sites.sites_for(None, None) is None\n"
            "assert sites.sites_for(1, None) is None\n"
            "print('ray' in sys.modules)"
        )
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_pool
test_pool.sent_by_value()
from expo_search.pool.cluster import Cluster, Place
from expo_search.pool.pool import Pool, PooledRewardModels
pool = Pool(Cluster(), test_pool.FakeRecipe(Path({folder!r})), Place(), 2)
pool.materialize(0.5)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_driver_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    code = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "ready"
        engines = {int(pid) for pid, *_ in noted(tmp_path / "starts")}
        below = {p.pid for p in psutil.Process(driver.pid).children(recursive=True) if runs(p.pid)}
        assert len(engines) == 2
        assert engines < below
        driver.kill()
        driver.wait(10)
        wait_for(lambda: not any(map(runs, engines)), 45)  # Ray itself takes 60 s below a process that uses it
        end = time.monotonic() + 90
        while left := [command(pid) for pid in below if runs(pid) and not is_helper(pid)]:
            assert time.monotonic() < end, left
            time.sleep(0.2)
    finally:
        driver.kill()
        driver.wait(10)


def is_helper(pid: int) -> bool:
    """Whether a process is one of the two of Ray's that look for their server for a minute before they end too.

    They are `agent.py` until they have given themselves a name, and then `ray::DashboardAgent` and its like.
    """
    return any("agent" in word.lower() for word in command(pid))


def command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
