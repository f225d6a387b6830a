"""How many trials a cluster holds, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.trial_resources import share_out
from pipeline.config.schema import load_params
from pipeline.config.sections import Cluster
from pipeline.errors import UserError

pytestmark = pytest.mark.unit

CLUSTER = load_params(Path(__file__).parents[3] / "params.yaml").cluster


def cluster(**changes: Any) -> Cluster:
    return CLUSTER.model_copy(update=changes)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "gpu_share", "concurrent", "expected"),
    [
        ([{"CPU": 2.0}], 1, 1.0, "auto", (2, 1.0, 0.0)),
        ([{"CPU": 8.0}], 1, 1.0, 2, (2, 4.0, 0.0)),
        ([{"CPU": 2.0}, {"CPU": 2.0}], 1, 1.0, 1, (1, 2.0, 0.0)),  # no process on two nodes
        ([{"CPU": 4.0}, {"CPU": 2.0}], 1, 1.0, "auto", (6, 1.0, 0.0)),
        ([{"CPU": 4.0}], 1, 1.0, 100, (4, 1.0, 0.0)),
        ([{"CPU": 16.0, "GPU": 2.0}], 1, 1.0, "auto", (2, 8.0, 1.0)),
        ([{"CPU": 16.0, "GPU": 2.0}], 1, 0.5, "auto", (4, 4.0, 0.5)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], 1, 0.25, "auto", (8, 2.0, 0.25)),  # the other node has no GPU
        ([{"CPU": 4.0}, {"CPU": 4.0}], 2, 1.0, "auto", (4, 1.0, 0.0)),
        ([{"CPU": 4.0}, {"CPU": 4.0}], 4, 1.0, 1, (1, 2.0, 0.0)),
    ],
)
def test_a_cluster_is_shared_out(
    nodes: list[dict[str, float]],
    num_workers: int,
    gpu_share: float,
    concurrent: int | str,
    expected: tuple[int, float, float],
) -> None:
    room = share_out(nodes, cluster(), num_workers, gpu_share, concurrent)
    assert (room.concurrent, room.each.cpus, room.each.gpus) == expected


def test_cores_that_were_chosen_stay() -> None:
    room = share_out([{"CPU": 8.0}], cluster(cpus_per_worker=3), 1, 1.0, "auto")
    assert (room.concurrent, room.each.cpus) == (2, 3.0)


@pytest.mark.parametrize(
    ("nodes", "num_workers", "changes"),
    [([{"CPU": 2.0}], 3, {}), ([{"CPU": 2.0}, {"CPU": 2.0}], 1, {"cpus_per_worker": 3}), ([], 1, {})],
)
def test_no_room_for_a_single_trial_is_refused(
    nodes: list[dict[str, float]], num_workers: int, changes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=rf"^tune.num_workers: {num_workers} workers") as error:
        share_out(nodes, cluster(**changes), num_workers, 1.0, "auto")
    assert len(str(error.value).splitlines()) == 2


def test_a_cluster_that_may_grow_is_not() -> None:
    room = share_out([{"CPU": 1.0}], cluster(), 2, 1.0, 5, may_grow=True)
    assert (room.concurrent, room.each.cpus) == (5, 1.0)
