"""The only module that knows Ray: a cluster's nodes, places for engines on them, actors, and what their calls return.

Ray is imported when a cluster is opened, not before. An engine's place is a placement group of one bundle, which is on
one node: all its GPUs, or its part of a node's cores. Actors are not detached: they end with this process.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from expo_search.errors import EngineError, ExpoError
from expo_search.pool.actor import EngineActor, Recipe

INSTALL = 'pip install "expo-search[ray]"'
UPDATE = "install the same version of expo-search and vLLM on every node"
_REACH_S = 5.0  # until an address that does not answer is given up
_SURVEY_S = 3600.0  # for reading checkpoints whole, once a node
_OBJECTS_BYTES = 256 << 20  # of Ray's shared memory on a node of our own: prompts, answers and rewards are small


class EngineLost(Exception):
    """An actor is no more, or its node is not."""


class NotYet(Exception):
    """A call has not returned; not a `TimeoutError`, which the call itself may raise."""


@dataclass(frozen=True)
class Place:
    """What one engine is given. Neither: it may run anywhere, which is for engines that compute nothing."""

    gpus: int = 0
    cpus: int = 0

    def fits_on(self, node: Node) -> int:
        """How many engines there is room for on what is free of a node."""
        return self._n(node.free_gpus, node.free_cpus)

    def n_on(self, node: Node) -> int:
        """How many engines a node that nobody uses has room for."""
        return self._n(node.gpus, node.cpus)

    def _n(self, gpus: int, cpus: int) -> int:
        return min(have // need for have, need in ((gpus, self.gpus), (cpus, self.cpus)) if need)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, with the GPUs and cores that Ray has of it, and those that nobody has taken."""

    id: str
    name: str
    gpus: int
    cpus: int
    free_gpus: int
    free_cpus: int


@dataclass(frozen=True)
class Spot:
    """Where an engine runs: a node, by its id and name, and how many engines it has room for; the placement group."""

    node: str
    name: str
    n_engines: int
    group: Any


def check_installed() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        EngineError: it is not.
    """
    if find_spec("ray") is None:
        raise EngineError(
            where="--engines", found="no Ray", expected="Ray, which runs more than one engine", do=f"{INSTALL}"
        )


class Cluster:
    """A connection to Ray: a cluster of this machine alone, or one that runs."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: "auto" is the cluster that this machine is part of, HOST:PORT another one's; None starts one here,
                which ends with this process.

        Raises:
            EngineError: Ray is not installed, or the cluster cannot be reached.
        """
        check_installed()
        if address is not None and address != "auto":
            _check_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # would send the working folder to the workers
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # what an engine's process had started, such as vLLM's own processes, ends with it whatever ends it
        os.environ.setdefault("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "true")
        import ray

        self._ray = ray
        self._is_own = not ray.is_initialized()  # a notebook may be connected already
        if not self._is_own:
            return
        try:
            self._connect(address)
        except Exception as fault:  # Ray's, where its processes do not come up, is of no other class
            raise _unreachable(address, " ".join(str(fault).split())[:200]) from fault

    def _connect(self, address: str | None) -> None:
        own: dict[str, Any] = {"num_cpus": len(os.sched_getaffinity(0)), "object_store_memory": _OBJECTS_BYTES}
        for is_last in (address is not None, True):  # a busy machine may take longer than Ray waits for its processes
            try:
                with _signal_handlers_kept():
                    self._ray.init(
                        address=address or "local",
                        include_dashboard=False if address is None else None,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        **(own if address is None else {}),
                    )
                return
            except Exception:
                self._ray.shutdown()
                if is_last:
                    raise

    def close(self) -> None:
        """Let go of the cluster; one of our own ends."""
        if self._is_own:
            self._ray.shutdown()

    def nodes(self) -> list[Node]:
        """The nodes that are alive, in a fixed order."""
        from ray._private.state import available_resources_per_node  # the public calls add up all nodes

        free = available_resources_per_node()

        def node(of: Mapping[str, Any]) -> Node:
            has, has_free = of["Resources"], free.get(of["NodeID"], {})
            counts = (int(resources.get(kind, 0)) for resources in (has, has_free) for kind in ("GPU", "CPU"))
            return Node(of["NodeID"], of["NodeManagerHostname"], *counts)

        return sorted((node(n) for n in self._ray.nodes() if n["Alive"]), key=lambda node: (node.name, node.id))

    def survey(self, recipe: Recipe, place: Place, n_engines: Mapping[str, int]) -> dict[str, Any]:
        """What `recipe.survey` says on each node (by id), for so many engines there.

        Raises:
            ExpoError: what it raises on the first node that has a fault.
            EngineError: a node does not answer, or lacks the modules of this machine.
        """
        from ray.exceptions import RaySystemError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        def survey(recipe: Recipe, n: int) -> Any:
            return recipe.survey(n)

        task = self._ray.remote(survey)
        asked = {
            node: task.options(
                num_cpus=0,
                num_gpus=place.gpus,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(recipe, n)
            for node, n in n_engines.items()
            if n
        }
        names = {node.id: node.name for node in self.nodes()}
        answers = {}
        for node, ref in asked.items():
            where = f"node {names.get(node, node)}"
            try:
                answers[node] = self.result(ref, _SURVEY_S)
            except (ImportError, RaySystemError) as fault:  # the latter: the recipe could not be unpickled there
                raise EngineError(
                    where=where,
                    found=f"expo-search cannot be imported there ({first_line(fault).removeprefix('System error: ')})",
                    expected="what this machine has",
                    do=UPDATE,
                ) from fault
            except (EngineLost, NotYet) as fault:
                raise EngineError(
                    where=where,
                    found=f"it does not answer ({fault})",
                    expected="a node that says what it has",
                    do="see `ray status`, and run the same command again",
                ) from fault
            except ExpoError as fault:
                if len(asked) == 1:
                    raise
                raise type(fault)(
                    where=f"{where}: {fault.where}",
                    found=fault.found,
                    expected=fault.expected,
                    do=fault.do,
                ) from fault
        return answers

    def take(self, place: Place) -> Any:
        """Ask for a place for one engine: a placement group, which `spot` waits for."""
        from ray.util.placement_group import placement_group

        wants = {kind: n for kind, n in (("GPU", place.gpus), ("CPU", place.cpus)) if n}
        return placement_group([wants], strategy="STRICT_PACK") if wants else None

    def spot(self, group: Any, place: Place, timeout_s: float) -> Spot | None:
        """Where a place is; None where there is none yet."""
        if group is None:
            return Spot("", "", 1, None)
        from ray.util.placement_group import placement_group_table

        if not group.wait(timeout_s):
            return None
        id = placement_group_table(group)["bundles_to_node_id"][0]
        node = next((n for n in self.nodes() if n.id == id), None)
        return None if node is None else Spot(id, node.name, place.n_on(node), group)

    def give_up(self, group: Any) -> None:
        """Let others have a place."""
        if group is not None:
            from ray.util.placement_group import remove_placement_group

            with suppress(self._ray.exceptions.RayError, ValueError):
                remove_placement_group(group)

    def actor(self, recipe: Recipe, place: Place, spot: Spot) -> Any:
        """A process for an engine, on its place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = spot.group and PlacementGroupSchedulingStrategy(
            placement_group=spot.group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        remote = self._ray.remote(EngineActor)
        options = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_restarts": 0, "max_task_retries": 0}
        return remote.options(**options, scheduling_strategy=strategy).remote(recipe)

    def call(self, actor: Any, method: str, *args: object) -> Any:
        """Begin a call of an engine's process; `result` has what it returns.

        Raises:
            EngineLost: its process is no more.
        """
        try:
            return getattr(actor, method).remote(*args)
        except self._ray.exceptions.RayError as fault:
            raise EngineLost(first_line(fault)) from None

    def result(self, ref: Any, timeout_s: float | None = None) -> Any:
        """What a call returned.

        Raises:
            EngineLost: its process or its node is no more.
            NotYet: it has not come yet.
            Exception: whatever the call raised.
        """
        from ray import exceptions

        try:
            return self._ray.get(ref, timeout=timeout_s)
        except exceptions.GetTimeoutError:
            raise NotYet(f"no answer within {timeout_s:g} s") from None
        except exceptions.RayTaskError as fault:
            cause = fault.cause if isinstance(fault.cause, BaseException) else EngineLost(first_line(fault))
            raise cause from None if isinstance(cause, ExpoError) else fault  # whose text has the traceback there
        except exceptions.RayError as fault:
            raise EngineLost(first_line(fault)) from None

    def kill(self, actor: Any) -> None:
        """End an engine's process at once."""
        with suppress(self._ray.exceptions.RayError, ValueError):
            self._ray.kill(actor, no_restart=True)


def room(nodes: Sequence[Node], place: Place) -> dict[str, int]:
    """How many engines there is room for on what is free, by a node's id."""
    return {node.id: place.fits_on(node) for node in nodes}


def cores_each(nodes: Sequence[Node], n_engines: int) -> int:
    """The most cores that each of n engines can have, on nodes without GPUs; 0 where there are fewer cores."""
    most = max((node.free_cpus for node in nodes), default=0)
    return next((c for c in range(most, 0, -1) if sum(n.free_cpus // c for n in nodes) >= n_engines), 0)


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise EngineError(
            where=f"--ray-address {address}",
            found="no HOST:PORT",
            expected="auto, on a machine of the cluster, or HOST:PORT of its head",
            do="see `ray status` there; port 6379 is usual",
        )
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as fault:
        raise _unreachable(address, str(fault)) from None


def _unreachable(address: str | None, found: str) -> EngineError:
    if address is None:
        return EngineError(
            where="Ray on this machine", found=found, expected="one that starts", do="see /tmp/ray/session_latest/logs"
        )
    return EngineError(
        where=f"--ray-address {address}",
        found=f"it cannot be reached ({found})",
        expected="a cluster that runs, of this version of Ray and Python",
        do="see `ray status` on its head; without the option the engines run on this machine",
    )


def first_line(fault: BaseException) -> str:
    """What an exception says, cut to a line; its class where it says nothing."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(fault).__name__


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM over, for which the command line has a use, and ignores SIGCHLD, which loses exit codes.

    `subprocess` tells 0 of each child where that signal is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCHLD)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
