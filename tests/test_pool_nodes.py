"""A pool on several nodes, which Ray's own test cluster gives on one machine: nodes that go and come, and are full."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, FakeScorer, FakeWatcher, make_prompts
from pool_fakes import FakeRecipe, noted
from test_pool import answered, by_prompt, searched, sent_by_value, texts, wait_for

from expo_search.contracts import Completion
from expo_search.dtypes import Dtypes
from expo_search.engine.memory_plan import MemoryPlan
from expo_search.errors import EngineDied, EngineError
from expo_search.pool.cluster import Cluster, Place
from expo_search.pool.pool import Pool
from expo_search.session.cluster_facts import inspect_cluster
from expo_search.session.site import Survey
from expo_search.session.sites import Sites, same_everywhere

cluster_utils = pytest.importorskip("ray.cluster_utils")
A_CORE = Place(cpus=1)


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    there = cluster_utils.Cluster()
    for is_last in (False, True):  # Ray waits half a minute for its processes, which a busy machine may take longer for
        try:
            there.add_node(num_cpus=0, include_dashboard=False)
            break
        except Exception:
            if is_last:
                raise
            there = cluster_utils.Cluster()
    sent_by_value(sys.modules[__name__])
    yield there
    there.shutdown()


@pytest.fixture
def nodes(head: Any) -> Iterator[Any]:
    """A cluster of a head without cores; a test adds nodes, which go with it."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)


def serving(pool: Pool) -> int:
    return sum(e.serves for e in pool.engines())


def test_a_node_that_goes_costs_its_prompts_and_one_that_comes_is_used(nodes: Any, tmp_path: Path) -> None:
    kept = nodes.add_node(num_cpus=1)
    lost = nodes.add_node(num_cpus=1)
    said: list[str] = []
    recipe, prompts = FakeRecipe(tmp_path, step_s=0.03), make_prompts(120)
    with closing(Cluster(nodes.address)) as cluster:
        assert sorted(n.free_cpus for n in cluster.nodes()) == [0, 1, 1]
        with closing(Pool(cluster, recipe, A_CORE, 2, say=said.append)) as pool:
            pool.materialize(0.5)
            items = pool.generate(prompts, 0)
            first = next(item for item in items if isinstance(item, Completion))
            nodes.remove_node(lost)
            rest = [item for item in items if isinstance(item, Completion)]
            assert by_prompt([first, *rest]) == texts(0.5, prompts)
            wait_for(lambda: any("is lost" in line for line in said))
            assert serving(pool) == 1
            nodes.add_node(num_cpus=1)
            wait_for(lambda: serving(pool) == 2)
            before = {pid for _, _, pid in noted(tmp_path / "asked")}
            pool.materialize(0.25)
            assert by_prompt(answered(pool, prompts)) == texts(0.25, prompts)
            assert {pid for _, _, pid in noted(tmp_path / "asked")} - before
    assert kept is not lost


class LosingNode(FakeWatcher):
    """A node goes after so many answers."""

    def __init__(self, n_answers: int, lose: Callable[[], object]) -> None:
        super().__init__()
        self._n_answers, self._lose = n_answers, lose

    def generated(self, n_tokens: int, n_completions: int) -> None:
        super().generated(n_tokens, n_completions)
        if self.n_completions >= self._n_answers > self.n_completions - n_completions:
            self._lose()


def answers_of(folder: Path) -> list[tuple[Any, ...]]:
    """The rated answers that `searched` left; how many others a trial has that was broken off depends on the moment."""
    with closing(sqlite3.connect(folder / "study.db")) as database:
        return database.execute(
            "SELECT trial, part, position, text, n_tokens, finish_reason, reward FROM expo_completions"
            " WHERE reward IS NOT NULL ORDER BY trial, part, position"
        ).fetchall()


@pytest.mark.slow  # engines and nodes are started, and waited for
def test_a_search_that_loses_a_node_in_a_trial_ends_as_an_undisturbed_one_and_asks_nothing_twice(
    nodes: Any, tmp_path: Path
) -> None:
    for name in ("alone", "lost"):
        (tmp_path / name).mkdir()
    alone = searched(tmp_path / "alone", FakeModel(), FakeScorer())
    nodes.add_node(num_cpus=1)
    lost = nodes.add_node(num_cpus=1)
    said: list[str] = []
    with (
        closing(Cluster(nodes.address)) as cluster,
        closing(Pool(cluster, FakeRecipe(tmp_path, step_s=0.01), A_CORE, 2, say=said.append)) as pool,
    ):
        watcher = LosingNode(200, lambda: nodes.remove_node(lost))
        assert searched(tmp_path / "lost", pool, pool, watcher=watcher) == alone
        wait_for(lambda: any("is lost" in line for line in said))
    assert answers_of(tmp_path / "lost") == answers_of(tmp_path / "alone")
    [n_back] = [int(n) for line in said for n in re.findall(r"is lost: .*; its (\d+) prompts go back", line)]
    asked = noted(tmp_path / "asked")
    by_engine, requests = Counter(map(tuple, asked)), Counter((alpha, id) for alpha, id, _ in asked)
    assert set(by_engine.values()) == {1}
    assert set(requests.values()) <= {1, 2}
    again = [request for request, n in requests.items() if n == 2]  # answered as the node went, and not handed over
    assert len(again) <= n_back


@pytest.mark.slow  # engines and a node are started, and waited for
def test_a_start_goes_on_without_an_engine_that_has_no_place_and_it_joins_later(nodes: Any, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=1)
    said: list[str] = []
    recipe, prompts = FakeRecipe(tmp_path, step_s=0.03), make_prompts(60)
    with (
        closing(Cluster(nodes.address)) as cluster,
        closing(Pool(cluster, recipe, A_CORE, 2, no_place_s=0.2, say=said.append)) as pool,
    ):  # which is over before the other one has started
        assert said == ["no place in the cluster for 1 of 2 engines in 0.2 s: an engine joins as soon as it has one"]
        pool.materialize(0.5)
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        nodes.add_node(num_cpus=1)
        wait_for(lambda: serving(pool) == 2)
        assert by_prompt(answered(pool, prompts)) == texts(0.5, prompts)
        assert len({pid for _, _, pid in noted(tmp_path / "asked")}) == 2


def test_without_a_node_the_trial_fails_after_a_while(nodes: Any, tmp_path: Path) -> None:
    only = nodes.add_node(num_cpus=1)
    with (
        closing(Cluster(nodes.address)) as cluster,
        closing(Pool(cluster, FakeRecipe(tmp_path, step_s=0.03), A_CORE, 1, no_place_s=3.0)) as pool,
    ):
        pool.materialize(0.5)
        items = pool.generate(make_prompts(60), 0)
        next(item for item in items if isinstance(item, Completion))
        nodes.remove_node(only)
        begun = time.monotonic()
        with pytest.raises(EngineDied, match="no place for it in the cluster for 3 s"):
            list(items)
        assert time.monotonic() - begun < 60


def test_room_is_what_others_have_left(nodes: Any) -> None:
    import ray

    nodes.add_node(num_cpus=2)
    with closing(Cluster(nodes.address)) as cluster:
        taker = ray.remote(Taker).options(num_cpus=1).remote()
        ray.get(taker.ping.remote())
        wait_for(lambda: sum(n.free_cpus for n in cluster.nodes()) == 1)
        with pytest.raises(EngineError, match=r"2 cores on 2 nodes, 1 of them taken by others; .*--engines 1 or fewer"):
            Sites(2, nodes.address).open(1)
        sites = Sites("auto", nodes.address)
        sites.open(1)
        assert (sites.n_engines, sites.place) == (1, A_CORE)
        [cluster_fact, *of_nodes] = inspect_cluster(nodes.address)
        assert "2 nodes; no GPU: an engine on each node's cores, 1 in all" in cluster_fact.text
        assert [fact.status for fact in of_nodes] == ["ok", "ok"]
        assert any("1 of 2 cores free" in fact.text and "of memory free" in fact.text for fact in of_nodes)


class Taker:
    """Another user's actor."""

    def ping(self) -> None: ...


ONE = Survey(
    {"expo-search": "0.1.0", "vllm": "vllm 0.32.0"},
    {"aligned": "h1 c1", "sft": "h2 c2"},
    Dtypes("bfloat16", "bfloat16", "bfloat16"),
    MemoryPlan({}, {}, "host", None),
)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"versions": {"expo-search": "0.1.0", "vllm": "vllm 0.31.0"}}, "vllm vllm 0.32.0 on the first, vllm 0.31.0"),
        ({"versions": {"expo-search": "0.2.0", "vllm": "vllm 0.32.0"}}, "expo-search 0.1.0 on the first, 0.2.0"),
        ({"contents": {"aligned": "h1 c1", "sft": "h2 other"}}, "other content of sft's files"),
        ({"dtypes": Dtypes("bfloat16", "float32", "float32")}, "arithmetic"),
    ],
)
def test_nodes_that_would_answer_otherwise_are_refused(other: dict[str, Any], said: str) -> None:
    same_everywhere([("a", ONE), ("b", ONE)])
    with pytest.raises(EngineError, match="nodes a and b: ") as fault:
        same_everywhere([("a", ONE), ("b", replace(ONE, **other))])
    assert said in str(fault.value)
