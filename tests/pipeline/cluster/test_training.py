"""How long the driver waits for workers, whatever it has heard before. Real runs: test_two_hosts, test_train."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.util.queue import Empty

from pipeline.cluster.resources import WorkerResources
from pipeline.cluster.training import TrainingRun, _Listener, _start_timeout
from pipeline.config.schema import load_params
from pipeline.errors import FullDiskError, InsufficientResourcesError, UserError
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import StagedPacks
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.unit

ARRIVE: list[tuple[str, Any]] = [("starting", None), ("arrived", None), ("started", (2, 0, []))]


class Training:
    """Stands for Ray Train, which takes its time, and may fail."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.end, self.failure = threading.Event(), failure

    def fit(self) -> None:
        self.end.wait(30)
        if self.failure:
            raise self.failure


def training_run(folder: Path, num_workers: tuple[int, int], wait_s: int) -> TrainingRun:
    cluster = load_params(ROOT / "params.yaml").cluster.model_copy(update={"wait_s": wait_s})
    staged = StagedPacks("0" * 12, folder, None, str(folder))
    return TrainingRun("run", num_workers, WorkerResources(1), cluster, staged, open_store(str(folder)), "train/run", 1)


def follow(tmp_path: Path, told: list[tuple[str, Any]], seconds: float, failure: Exception | None = None) -> list[int]:
    """The steps that a driver with so much patience (1 s) has heard of when training ends after ``seconds``."""
    run = training_run(tmp_path, (2, 2), wait_s=1)
    mailbox: queue.Queue[tuple[str, Any]] = queue.Queue()
    for each in told:
        mailbox.put(each)
    training, steps = Training(failure), list[int]()
    timer = threading.Timer(seconds, training.end.set)
    timer.start()
    try:
        _Listener(run, lambda step, metrics: steps.append(step), lambda text: None).follow(training, mailbox)  # type: ignore[arg-type]
    finally:
        timer.cancel()
        training.end.set()
    return steps


@pytest.mark.parametrize(
    ("num_workers", "wait_s", "seconds"), [((2, 2), 600, 60), ((1, 2), 600, 20), ((2, 2), 30, 30), ((1, 2), 5, 5)]
)
def test_ray_looks_for_room_anew_sooner_where_fewer_workers_may_go_on(
    tmp_path: Path, num_workers: tuple[int, int], wait_s: int, seconds: int
) -> None:
    assert _start_timeout(training_run(tmp_path, num_workers, wait_s)) == seconds


@pytest.mark.parametrize(
    "told",
    [
        [("starting", None)],
        [*ARRIVE, ("report", (5, {})), ("lost", "worker 1: killed"), ("starting", None)],
        [*ARRIVE, ("report", (5, {})), ("starting", None)],  # in another number, for which there is no room
    ],
)
def test_workers_that_do_not_come_are_waited_for_as_long_as_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, Any]]
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    with pytest.raises(
        InsufficientResourcesError, match=r"2 workers with 1 CPU each did not start in 1 s; there is 1 CPU free"
    ):
        follow(tmp_path, told, 20)


@pytest.mark.parametrize("told", [ARRIVE, [*ARRIVE, *ARRIVE]])
def test_workers_that_have_come_may_take_their_time(tmp_path: Path, told: list[tuple[str, Any]]) -> None:
    assert follow(tmp_path, [*told, ("report", (5, {}))], 3) == [5]


def test_an_empty_mailbox_of_rays_is_one_of_pythons() -> None:
    assert issubclass(Empty, queue.Empty)


def test_a_full_disk_is_told_in_its_own_words_and_not_as_tries(tmp_path: Path) -> None:
    full = FullDiskError("cluster.storage: /here: 5: cannot be written on node (No space left on device); make room")
    wrapped = UserExceptionWithTraceback(full, "Traceback ...\npipeline.errors.FullDiskError: ...")
    with pytest.raises(FullDiskError) as caught:
        follow(tmp_path, ARRIVE, 0.1, WorkerGroupError("failed", {1: wrapped}))
    assert str(caught.value) == f"{full}\nrun the stage again to go on from the last checkpoint"
    with pytest.raises(UserError, match=r"^training failed and was tried again 1 times: ValueError: wrong\nrun the"):
        follow(
            tmp_path,
            [*ARRIVE, *ARRIVE],
            0.1,
            WorkerGroupError("failed", {0: UserExceptionWithTraceback(ValueError("wrong"), "x\nValueError: wrong")}),
        )
