"""How many engines, and which cluster -> the places where they run: checked against what the cluster has."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Literal

from expo_search.engine import ranks
from expo_search.errors import EngineError, StudyError
from expo_search.pool.cluster import Cluster, Node, Place, check_installed, cores_each, room
from expo_search.session.site import SiteRecipe, Survey

Engines = int | Literal["auto"]


def sites_for(engines: Engines | None, ray_address: str | None) -> Sites | None:
    """Where engines run that are asked for; None: one engine in this process, without Ray.

    `engines`: None is one, or as many as there is room for in a cluster that is named.

    Raises:
        StudyError: no number of engines.
        EngineError: Ray is not installed.
    """
    if engines is None:
        engines = 1 if ray_address is None else "auto"
    if engines != "auto" and engines < 1:
        raise StudyError(
            where="--engines", found=str(engines), expected="auto, or at least 1", do="give the number wanted"
        )
    if engines == 1 and ray_address is None:
        return None
    check_installed()
    return Sites(engines, ray_address)


class Sites:
    """The machines on which a study's engines run.

    Attributes (once it is open):
        cluster, place, n_engines: what a pool of them is made with.
    """

    cluster: Cluster
    place: Place
    n_engines: int

    def __init__(self, engines: Engines, ray_address: str | None) -> None:
        """Nothing is started or reached yet: see `open`."""
        self._engines, self._address = engines, ray_address
        self._nodes: Sequence[Node] = ()
        self._is_open = False

    def open(self, tensor_parallel: int) -> None:
        """Connect to the cluster, and see that it has room. `tensor_parallel`: GPUs of an engine.

        Raises:
            EngineError: it cannot be reached, or has no room for so many engines.
        """
        if self._is_open:
            return
        if self._address is None:
            self._check_here(tensor_parallel)
        self.cluster, self._is_open = Cluster(self._address), True
        nodes = self.cluster.nodes()
        self.place, n_room = self._room(nodes, tensor_parallel)
        self.n_engines = n_room if self._engines == "auto" else self._engines
        if not n_room or n_room < self.n_engines:
            raise self._no_room(nodes, n_room, tensor_parallel)
        self._nodes = [node for node in nodes if self.place.fits_on(node)]

    @property
    def n_parallel(self) -> int:
        """How many engines have devices of their own; on processors those of one node share its cores."""
        return self.n_engines if self.place.gpus else min(self.n_engines, len(self._nodes))

    @property
    def reads_whole(self) -> bool:
        """Whether there are files on other machines than this one, whose content may be another."""
        return {node.name for node in self._nodes} != {socket.gethostname()}

    def survey(self, recipe: SiteRecipe) -> Survey:
        """What the machines have; the memory plan is the first one's.

        Raises:
            ExpoError: what is missing on one of them, or differs from another.
        """
        n_each = {id: min(n, self.n_engines) for id, n in room(self._nodes, self.place).items()}
        surveys = self.cluster.survey(recipe, self.place, n_each)
        by_name: list[tuple[str, Survey]] = [
            (node.name, surveys[node.id]) for node in self._nodes if node.id in surveys
        ]
        same_everywhere(by_name)
        return by_name[0][1]

    def sentence(self) -> str:
        """Where the engines run, as it is printed."""
        each = f"{self.place.gpus} GPU{'s' * (self.place.gpus > 1)}" if self.place.gpus else f"{self.place.cpus} cores"
        return f"engines: {self.n_engines}, with {each} each, on {len(self._nodes)} node(s)"

    def close(self) -> None:
        """Let go of the cluster."""
        if self._is_open:
            self._is_open = False
            self.cluster.close()

    def _check_here(self, tensor_parallel: int) -> None:
        """See what this machine has, before Ray starts."""
        if self._engines == "auto":
            return
        n, kind = ranks.n_devices()
        n_gpus, n_cores = (n, 0) if kind == "GPU" else (0, n)
        n_room = n // tensor_parallel if n_gpus else n
        if n_room < self._engines:
            here = Node("", socket.gethostname(), n_gpus, n_cores, n_gpus, n_cores)
            raise self._no_room([here], n_room, tensor_parallel)

    def _room(self, nodes: Sequence[Node], tensor_parallel: int) -> tuple[Place, int]:
        """What an engine gets, and how many engines have room; GPUs, where any node has one."""
        if any(node.gpus for node in nodes):
            place = Place(gpus=tensor_parallel)
        elif self._engines == "auto":  # one on each node, with its cores
            place = Place(cpus=min((node.free_cpus for node in nodes if node.free_cpus), default=1))
        else:
            place = Place(cpus=max(1, cores_each(nodes, self._engines)))
        return place, sum(room(nodes, place).values())

    def _no_room(self, nodes: Sequence[Node], n_room: int, tensor_parallel: int) -> EngineError:
        on_gpus = any(node.gpus for node in nodes)
        there = sum(node.gpus if on_gpus else node.cpus for node in nodes)
        free = sum(node.free_gpus if on_gpus else node.free_cpus for node in nodes)
        kind = "GPU" if on_gpus else "core"
        taken = f", {there - free} of them taken by others" if there > free else ""
        each = f", {tensor_parallel} an engine" if on_gpus and tensor_parallel > 1 else ""
        where = f"--engines {self._engines}" + (f" --ray-address {self._address}" if self._address else "")
        return EngineError(
            where=where,
            found=f"{there} {kind}{'s' * (there != 1)} on {len(nodes)} node{'s' * (len(nodes) != 1)}{taken}{each}",
            expected=f"a {kind} for each engine at least",
            do=f"give --engines {n_room} or fewer" if n_room else f"free a {kind}, or add a node",
        )


def same_everywhere(surveys: Sequence[tuple[str, Survey]]) -> None:
    """Check that all machines, by name, would give the same answers.

    Raises:
        EngineError: two have other versions, files or arithmetic.
    """
    first, one = surveys[0]
    for name, other in surveys[1:]:
        for what, here, there in (
            *((package, version, other.versions.get(package)) for package, version in one.versions.items()),
            *((f"{role}'s files", hash, other.contents.get(role)) for role, hash in one.contents.items()),
            ("arithmetic", one.dtypes, other.dtypes),
        ):
            if here != there:
                is_file = what.endswith("files")
                differs = f"{what} {here} on the first, {there} on the second"
                raise EngineError(
                    where=f"nodes {first} and {name}",
                    found=f"other content of {what}" if is_file else differs,
                    expected="the same on all nodes",
                    do="copy the checkpoint anew, or share one folder" if is_file else "install the same on both",
                )
