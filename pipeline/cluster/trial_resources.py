"""How many trials run on a cluster at a time, and the resources of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cluster.resources import Node, WorkerResources, can_grow, check_resources, living_nodes
from pipeline.config.sections import Cluster


@dataclass(frozen=True)
class TrialResources:
    """The resources of a trial, and the number of trials at a time.

    Attributes:
        each: resources of each process of a trial.
        num_workers: number of these processes.
        concurrent: number of trials at a time.
    """

    each: WorkerResources
    num_workers: int
    concurrent: int

    def as_ray(self) -> dict[str, float]:
        """The resources that Ray reserves for the trial's own process.

        With several workers this process only waits for them. It then runs on Ray's head node and reserves no core,
        because the workers may need all of them.
        """
        return self.each.as_ray() if self.num_workers == 1 else {"node:__internal_head__": 0.001}


def find_trial_resources(cluster: Cluster, num_workers: int, gpu_share: float, concurrent: int | str) -> TrialResources:
    """Divides the resources of the connected cluster among the trials.

    Args:
        cluster: section of the params.
        num_workers: processes of each trial.
        gpu_share: fraction of a GPU for each process, if there are GPUs.
        concurrent: number of trials at a time, or "auto".

    Raises:
        UserError: the resources do not suffice for one trial.
    """
    return share_out(living_nodes(), cluster, num_workers, gpu_share, concurrent, may_grow=can_grow())


def share_out(
    nodes: Sequence[Node],
    cluster: Cluster,
    num_workers: int,
    gpu_share: float,
    concurrent: int | str,
    may_grow: bool = False,
) -> TrialResources:
    """Divides the resources of these nodes among the trials.

    Each process gets ``cluster.cpus_per_worker`` cores and, if there are GPUs, ``gpu_share`` of a GPU. "auto" is one
    core, and more if cores are left over.

    Args:
        nodes: resources of the nodes.
        cluster: section of the params.
        num_workers: processes of each trial.
        gpu_share: fraction of a GPU for each process, if there are GPUs.
        concurrent: number of trials at a time, or "auto".
        may_grow: whether an autoscaler may add nodes; then too few resources are no error.

    Raises:
        UserError: the resources do not suffice for one trial, and ``may_grow`` is false.
    """
    gpus = gpu_share if any(node.get("GPU", 0.0) for node in nodes) else 0.0
    fixed = None if isinstance(cluster.cpus_per_worker, str) else float(cluster.cpus_per_worker)
    each = WorkerResources(fixed or 1.0, gpus)

    def trials(each: WorkerResources) -> int:
        return sum(each.fit(node) for node in nodes) // num_workers

    if not may_grow:
        check_resources(num_workers, each, cluster, nodes, "tune.num_workers")
    at_once = max(1, trials(each)) if isinstance(concurrent, str) else concurrent
    if not may_grow:
        at_once = min(at_once, max(1, trials(each)))
    while fixed is None and trials(more := WorkerResources(each.cpus + 1, gpus)) >= at_once:
        each = more
    return TrialResources(each, num_workers, at_once)
