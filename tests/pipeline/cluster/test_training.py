"""What Ray Train would wait for without end is refused."""

from __future__ import annotations

import pytest

from pipeline.cluster.training import _check_room
from pipeline.errors import UserError


@pytest.mark.parametrize(("num_workers", "resources"), [(3, {"CPU": 2.0}), (1, {}), (2, {"CPU": 8.0, "GPU": 1.0})])
def test_more_workers_than_the_cluster_can_hold_are_refused(num_workers: int, resources: dict[str, float]) -> None:
    kind = "GPU" if "GPU" in resources else "CPU"
    with pytest.raises(UserError, match=rf"^train.num_workers: {num_workers} workers need a {kind} each"):
        _check_room(num_workers, kind, resources)


def test_as_many_as_it_can_hold_are_not() -> None:
    _check_room(2, "CPU", {"CPU": 2.0})
    _check_room(2, "GPU", {"CPU": 1.0, "GPU": 2.0})
