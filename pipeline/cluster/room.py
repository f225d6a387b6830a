"""Whether a cluster can hold the workers that are asked for, and what each of them gets."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.params import Cluster

Node = dict[str, float]
"""Ray's name of a resource -> how much of it the node has."""


@dataclass(frozen=True)
class WorkerResources:
    """What each worker gets.

    Attributes:
        cpus: cores, of which parts may be given; also its threads, rounded down, at least 1.
        gpus: 0, or a GPU or a share of one.
    """

    cpus: float
    gpus: float = 0.0

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def as_ray(self) -> dict[str, float]:
        """As Ray wants it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def fit(self, node: Node) -> int:
        """How many such workers a node holds."""
        return min(int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in self.as_ray().items())

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def this_machine() -> Node:
    """What a Ray that is started here has, as `pipeline.cluster.session` starts it."""
    import torch

    gpus = torch.cuda.device_count()
    return {"CPU": float(os.cpu_count() or 1)} | ({"GPU": float(gpus)} if gpus else {})


def living_nodes() -> list[Node]:
    """The resources of every living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def resolve_workers(chosen: int | str | tuple[int, int], nodes: Sequence[Node]) -> tuple[int, int]:
    """``train.num_workers`` as (least, most) on these nodes; auto: one a GPU, or one a node, or 2 on a lone node."""
    if isinstance(chosen, tuple):
        return chosen
    if isinstance(chosen, str):
        gpus = int(sum(node.get("GPU", 0.0) for node in nodes))
        useful = [node for node in nodes if node.get("CPU", 0.0) >= 1]  # a head is often left without
        if not useful:
            raise UserError("train.num_workers: auto: no node of the cluster has a CPU yet: give a number")
        without = min(2, int(useful[0]["CPU"])) if len(useful) == 1 else len(useful)
        chosen = gpus or without
    return chosen, chosen


def worker_resources(cluster: Cluster, num_workers: int, nodes: Sequence[Node]) -> WorkerResources:
    """``cluster.cpus_per_worker`` on these nodes; auto: the cores of the smallest, shared out evenly."""
    kind = "GPU" if any(node.get("GPU", 0.0) for node in nodes) else "CPU"
    useful = [node for node in nodes if node.get(kind, 0.0)] or [{"CPU": 1.0}]
    gpus = 1.0 if kind == "GPU" else 0.0
    if not isinstance(cluster.cpus_per_worker, str):
        return WorkerResources(float(cluster.cpus_per_worker), gpus)
    per_node = 1 if cluster.placement == "strict_spread" else math.ceil(num_workers / len(useful))
    smallest = min(node.get("CPU", 1.0) for node in useful)
    return WorkerResources(float(max(1, int(smallest) // per_node)), gpus)


def check_room(num_workers: int, each: WorkerResources, cluster: Cluster, nodes: Sequence[Node], key: str) -> None:
    """Refuses what Ray would wait for without end.

    Args:
        num_workers: the least that will do.
        key: of params.yaml that asks for them.

    Raises:
        UserError: says what was asked and what there is.
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
        f"use {max(room, 1)} or less, a smaller cluster.cpus_per_worker, or more nodes"
    )


def can_grow() -> bool:
    """Whether an autoscaler says that it may add nodes to the connected cluster."""
    from ray._private.state import state

    return bool(state.get_max_resources_from_cluster_config())


def _amounts(node: Node) -> str:
    return " ".join(f"{node[kind]:g} {kind}" for kind in ("CPU", "GPU") if node.get(kind)) or "nothing"
