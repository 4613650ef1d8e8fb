"""What a Ray cluster would give a search -> facts, a node each, before anything starts."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from expo_search.engine.machine import has_gpu, measure_machine
from expo_search.errors import EngineError, ExpoError
from expo_search.pool.actor import Share, Started
from expo_search.pool.cluster import UPDATE, Cluster, Node, Place
from expo_search.session.fact import Fact, gib
from expo_search.session.site import versions_here


class NodeProbe:
    """A recipe that only looks."""

    def survey(self, n_engines: int) -> dict[str, Any]:  # noqa: ARG002
        """Versions, and free memory in bytes, of this node; of the GPU that it was given, if it was given one."""
        import torch

        machine = measure_machine()
        gpu = torch.cuda.get_device_name(0) if has_gpu() else ""
        return {
            "versions": versions_here(),
            "host": machine.host_free,
            "gpu": gpu,
            "gpu_free": machine.gpu_free,
            "gpu_total": machine.gpu_total,
        }

    def start(self, share: Share) -> Started:
        """It starts nothing."""
        raise NotImplementedError


def inspect_cluster(address: str) -> list[Fact]:
    """The facts of a cluster: its nodes with what is free on them, and how many engines have room.

    `address`: "auto" or HOST:PORT.
    """
    try:
        cluster = Cluster(address)
    except EngineError as fault:
        return [Fact("cluster", fault.found, "missing", fault.do)]
    with closing(cluster):
        nodes = cluster.nodes()
        n_gpus, n_free = sum(n.gpus for n in nodes), sum(n.free_gpus for n in nodes)
        room = (
            f"{n_free} of {n_gpus} GPUs free: room for {n_free} engines of one GPU each"
            if n_gpus
            else f"no GPU: an engine on each node's cores, {sum(n.free_cpus > 0 for n in nodes)} in all"
        )
        facts = [Fact("cluster", f"{address}, {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}; {room}")]
        here = versions_here()
        return facts + [_node(cluster, node, here) for node in nodes]


def _node(cluster: Cluster, node: Node, here: dict[str, str]) -> Fact:
    name = f"node {node.name}"
    text = f"{node.free_gpus} of {node.gpus} GPUs and {node.free_cpus} of {node.cpus} cores free"
    try:
        probe = cluster.survey(NodeProbe(), Place(gpus=min(1, node.free_gpus)), {node.id: 1})[node.id]
    except ExpoError as fault:
        return Fact(name, f"{text}; {fault.found}", "missing", fault.do)
    text += f"; {gib(probe['host'])} of memory free"
    if probe["gpu"]:
        text += f"; {probe['gpu']}, {gib(probe['gpu_free'])} of {gib(probe['gpu_total'])} free"
    there = probe["versions"]
    others = [f"{package} {there[package] or 'not installed'}" for package in here if there[package] != here[package]]
    if others:
        return Fact(name, f"{text}; {', '.join(others)}, where this machine has others", "missing", UPDATE)
    return Fact(name, text)
