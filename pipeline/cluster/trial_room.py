"""How many trials a cluster holds at a time, and what each takes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.room import Node, WorkerResources, can_grow, check_room, living_nodes
from pipeline.params import Cluster


@dataclass(frozen=True)
class TrialRoom:
    """Attributes: what each process of a trial gets, how many there are, and trials at a time."""

    each: WorkerResources
    num_workers: int
    concurrent: int

    def as_ray(self) -> dict[str, float]:
        """What Ray sets aside for the trial itself.

        Of several workers it only waits for them, beside Ray's head and without a core: part of one would be missing
        where workers take all.
        """
        return self.each.as_ray() if self.num_workers == 1 else {"node:__internal_head__": 0.001}


def find_room(cluster: Cluster, num_workers: int, gpu_share: float, concurrent: int | str) -> TrialRoom:
    """Shares the connected cluster out among the trials.

    Raises:
        UserError: there is no room for a single one.
    """
    return share_out(living_nodes(), cluster, num_workers, gpu_share, concurrent, may_grow=can_grow())


def share_out(
    nodes: Sequence[Node],
    cluster: Cluster,
    num_workers: int,
    gpu_share: float,
    concurrent: int | str,
    may_grow: bool = False,
) -> TrialRoom:
    """The same of given nodes: a core or ``gpu_share`` of a GPU for each process, and more cores if there are any."""
    gpus = gpu_share if any(node.get("GPU", 0.0) for node in nodes) else 0.0
    fixed = None if isinstance(cluster.cpus_per_worker, str) else float(cluster.cpus_per_worker)
    each = WorkerResources(fixed or 1.0, gpus)

    def trials(each: WorkerResources) -> int:
        return sum(each.fit(node) for node in nodes) // num_workers

    if not may_grow:
        check_room(num_workers, each, cluster, nodes, "tune.num_workers")
    at_once = max(1, trials(each)) if isinstance(concurrent, str) else concurrent
    if not may_grow:
        at_once = min(at_once, max(1, trials(each)))
    while fixed is None and trials(more := WorkerResources(each.cpus + 1, gpus)) >= at_once:
        each = more
    return TrialRoom(each, num_workers, at_once)
