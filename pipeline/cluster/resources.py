"""The resources of each worker, and whether the cluster has enough of them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.sections import Cluster
from pipeline.errors import UserError

Node = dict[str, float]
"""Ray's name of a resource -> the amount that the node has."""


@dataclass(frozen=True)
class WorkerResources:
    """The resources of each worker.

    Attributes:
        cpus: number of cores, which may be a fraction.
        gpus: number of GPUs: 0, 1 or a fraction.
    """

    cpus: float
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        """Number of threads: the cores rounded down, at least 1."""
        return max(1, int(self.cpus))

    def as_ray(self) -> dict[str, float]:
        """The resources in Ray's format."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def fit(self, node: Node) -> int:
        """How many such workers fit on a node."""
        return min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in self.as_ray().items())

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def this_machine() -> Node:
    """The resources of a Ray that `pipeline.cluster.session` starts on this machine."""
    import torch

    gpus = torch.cuda.device_count()
    return {"CPU": float(os.cpu_count() or 1)} | ({"GPU": float(gpus)} if gpus else {})


def living_nodes() -> list[Node]:
    """The resources of every living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def resolve_workers(chosen: int | str | tuple[int, int], nodes: Sequence[Node]) -> tuple[int, int]:
    """``train.num_workers`` as (least, most) on these nodes.

    "auto" is one worker for each GPU; without GPUs one for each node, or 2 on a single node with at least 2 cores.

    Raises:
        UserError: "auto" is chosen, and no node has a CPU.
    """
    if isinstance(chosen, tuple):
        return chosen
    if isinstance(chosen, str):
        gpus = int(sum(node.get("GPU", 0.0) for node in nodes))
        useful = [node for node in nodes if node.get("CPU", 0.0) >= 1]  # the head node often has no CPU for workers
        if not useful:
            raise UserError("train.num_workers: auto: no node of the cluster has a CPU yet: give a number")
        without = min(2, int(useful[0]["CPU"])) if len(useful) == 1 else len(useful)
        chosen = gpus or without
    return chosen, chosen


def worker_resources(cluster: Cluster, num_workers: int, nodes: Sequence[Node]) -> WorkerResources:
    """The resources of each worker on these nodes, from ``cluster.cpus_per_worker``.

    "auto" divides the cores of the smallest node evenly among the workers of a node.

    Args:
        cluster: section of the params.
        num_workers: that train together.
        nodes: resources of the nodes.
    """
    kind = "GPU" if any(node.get("GPU", 0.0) for node in nodes) else "CPU"
    useful = [node for node in nodes if node.get(kind, 0.0)] or [{"CPU": 1.0}]
    gpus = 1.0 if kind == "GPU" else 0.0
    if not isinstance(cluster.cpus_per_worker, str):
        return WorkerResources(float(cluster.cpus_per_worker), gpus)
    per_node = 1 if cluster.placement == "strict_spread" else math.ceil(num_workers / len(useful))
    smallest = min(node.get("CPU", 1.0) for node in useful)
    return WorkerResources(float(max(1, int(smallest) // per_node)), gpus)


def check_resources(num_workers: int, each: WorkerResources, cluster: Cluster, nodes: Sequence[Node], key: str) -> None:
    """Checks that the nodes have enough resources for the workers; otherwise Ray would wait without end.

    Args:
        num_workers: smallest acceptable number of workers.
        each: resources of one worker.
        cluster: section of the params; its placement counts.
        nodes: resources of the nodes.
        key: key of params.yaml that requests the workers, for the error message.

    Raises:
        UserError: the resources do not suffice; the message names those requested and those available.
    """
    places = [each.fit(node) for node in nodes]
    is_spread = cluster.placement == "strict_spread"
    room = sum(1 for place in places if place) if is_spread else sum(places)
    if num_workers <= room:
        return
    there = ", ".join(_amounts(node) for node in nodes[:4]) + (" ..." if len(nodes) > 4 else "")
    how = "each on a node of its own (cluster.placement: strict_spread)" if is_spread else "each"
    raise UserError(
        f"{key}: {num_workers} workers with {each} {how} were asked for; the cluster has room for {room} "
        f"({len(nodes)} node{'s' if len(nodes) != 1 else ''}: {there})\n"
        f"use {f'{room} or less, ' if room else ''}a smaller cluster.cpus_per_worker, or more nodes"
    )


def can_grow() -> bool:
    """Whether the connected cluster has an autoscaler that may add nodes."""
    from pipeline.compat import state

    return bool(state.get_max_resources_from_cluster_config())


def _amounts(node: Node) -> str:
    return " ".join(f"{node[kind]:g} {kind}" for kind in ("CPU", "GPU") if node.get(kind)) or "nothing"
