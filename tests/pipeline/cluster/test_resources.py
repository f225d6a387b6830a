"""Who fits where, and what Ray Train would wait for without end is refused with what there is."""

from __future__ import annotations

import pytest

from pipeline.cluster.resources import Node, WorkerResources, check_resources, resolve_workers, worker_resources
from pipeline.config.schema import load_params
from pipeline.errors import UserError
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.unit

CLUSTER = load_params(ROOT / "params.yaml").cluster
SPREAD = CLUSTER.model_copy(update={"placement": "strict_spread"})
HEAD: Node = {"memory": 1e9}  # without a core, as both manifests have it


@pytest.mark.parametrize(
    ("num_workers", "each", "nodes", "room"),
    [
        (3, WorkerResources(1), [{"CPU": 2.0}], 2),
        (1, WorkerResources(1), [{}], 0),
        (2, WorkerResources(1, 1), [{"CPU": 8.0, "GPU": 1.0}], 1),
        (2, WorkerResources(3), [{"CPU": 4.0}, {"CPU": 2.0}], 1),  # cores of two nodes do not add up
    ],
)
def test_more_workers_than_the_cluster_can_hold_are_refused(
    num_workers: int, each: WorkerResources, nodes: list[Node], room: int
) -> None:
    with pytest.raises(
        UserError, match=rf"^train.num_workers: {num_workers} workers with {each} each .* room for {room} "
    ) as error:
        check_resources(num_workers, each, CLUSTER, nodes, "train.num_workers")
    assert len(str(error.value).splitlines()) == 2


def test_a_node_of_its_own_for_each_is_another_matter_than_room() -> None:
    nodes: list[Node] = [{"CPU": 8.0}, {"CPU": 8.0}]
    check_resources(3, WorkerResources(1), CLUSTER, nodes, "train.num_workers")
    check_resources(2, WorkerResources(1), SPREAD, nodes, "train.num_workers")
    with pytest.raises(UserError, match="each on a node of its own"):
        check_resources(3, WorkerResources(1), SPREAD, nodes, "train.num_workers")


def test_as_many_as_it_can_hold_are_not_refused() -> None:
    check_resources(2, WorkerResources(1), CLUSTER, [{"CPU": 2.0}], "train.num_workers")
    check_resources(4, WorkerResources(0.5), CLUSTER, [{"CPU": 2.0}], "train.num_workers")
    check_resources(2, WorkerResources(1, 1), CLUSTER, [{"CPU": 2.0, "GPU": 2.0}], "train.num_workers")


@pytest.mark.parametrize(
    ("chosen", "nodes", "expected"),
    [
        (5, [HEAD], (5, 5)),
        ((2, 4), [HEAD], (2, 4)),
        ("auto", [{"CPU": 1.0}], (1, 1)),
        ("auto", [{"CPU": 16.0}], (2, 2)),
        ("auto", [HEAD, {"CPU": 16.0}, {"CPU": 16.0}], (2, 2)),
        ("auto", [HEAD, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}], (8, 8)),
    ],
)
def test_auto_is_one_a_gpu_or_one_a_node_or_two_on_a_lone_node(
    chosen: int | str | tuple[int, int], nodes: list[Node], expected: tuple[int, int]
) -> None:
    assert resolve_workers(chosen, nodes) == expected


def test_auto_before_any_node_with_a_core_is_there_is_refused() -> None:
    with pytest.raises(UserError, match="auto: no node of the cluster has a CPU yet"):
        resolve_workers("auto", [HEAD])


@pytest.mark.parametrize(
    ("num_workers", "nodes", "expected"),
    [
        (1, [{"CPU": 2.0}], WorkerResources(2)),
        (2, [{"CPU": 2.0}], WorkerResources(1)),
        (3, [{"CPU": 2.0}], WorkerResources(1)),
        (2, [HEAD, {"CPU": 16.0}, {"CPU": 12.0}], WorkerResources(12)),
        (4, [{"CPU": 8.0, "GPU": 4.0}], WorkerResources(2, 1)),
    ],
)
def test_auto_shares_the_cores_of_the_smallest_node_out_evenly(
    num_workers: int, nodes: list[Node], expected: WorkerResources
) -> None:
    assert worker_resources(CLUSTER, num_workers, nodes) == expected
    assert expected.threads == int(expected.cpus)
