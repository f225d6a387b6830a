"""What runs inside a trial's process: a training, gone on with from its own checkpoint, and measured at its end."""

from __future__ import annotations

import copy
import json
import os
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.training.loop import Metrics, TrainingDivergedError
from components.training.state import TrainingResult, TrainingState
from components.training.worker import Worker
from pipeline.cluster.room import WorkerResources
from pipeline.errors import NoRoomError
from pipeline.job import TrainingJob
from pipeline.measure import measure_rows, validation_errors
from pipeline.params import check_params, set_value
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.delivery import Delivery
from pipeline.storage.places import Place

Rows = list[tuple[int, Metrics]]
"""(step, metrics) of reports."""


class Teller:
    """Tells the driver what comes, by way of Ray Tune; each call returns when the driver has heard it.

    Attributes:
        began: when the training began, seconds of this machine's clock.
        aside: seconds since then that went to telling, and to keeping checkpoints.
    """

    def __init__(self) -> None:
        self.began, self.aside = time.time(), 0.0

    def __call__(self, rows: Rows, resumed_at: int = 0, **ending: Any) -> None:
        """Tells rows, and after which step the trial goes on if it was begun before."""
        import ray.tune

        clock = [self.began, time.time(), self.aside]
        told = {"rows": [list(row) for row in rows], "resumed_at": resumed_at, "clock": clock}
        with self.not_training():
            ray.tune.report(told | ending)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Counts the time of the block as ``aside``."""
        start = time.time()
        yield
        self.aside += time.time() - start


@dataclass(frozen=True)
class TrialTask:
    """What all trials of a sweep have in common; it travels to their processes.

    Attributes:
        values: plain params; each trial changes some.
        delivery: of the packs.
        place: where checkpoints and rows are kept.
        prefix: of the sweep's names there.
        each: what each of its processes gets.
        num_workers: of each trial; more than one are started by Ray Train, and this process waits for them.
        objectives: by name; what they take is measured after the last step.
        measures: whether the test images are measured, too.
        environment: credentials.
    """

    values: dict[str, Any]
    delivery: Delivery
    place: Place
    prefix: str
    each: WorkerResources
    num_workers: int
    objectives: tuple[str, ...]
    measures: bool
    environment: dict[str, str]

    def prefix_of(self, number: int) -> str:
        """Of one trial's names at the place."""
        return f"{self.prefix}/trials/{number}"

    def checkpoints(self, number: int) -> Checkpoints:
        """Of one trial."""
        return Checkpoints(self.place, self.prefix_of(number), keep_best=0)

    def read_rows(self, number: int) -> list[dict[str, Any]] | None:
        """What a trial has measured on the test images; None if it has not."""
        try:
            rows: list[dict[str, Any]] = json.loads(self.place.read(self._rows_name(number)))
        except FileNotFoundError:
            return None
        return rows

    def write_rows(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Keeps what a trial has measured."""
        self.place.write(self._rows_name(number), json.dumps(rows).encode())

    def _rows_name(self, number: int) -> str:
        return f"{self.prefix_of(number)}/rows.json"


def run_trial(config: dict[str, Any], task: TrialTask) -> None:
    """Trains one trial, and reports to Ray Tune: ``rows`` as they come, then ``end`` or ``failure``.

    Our own errors are a failure and no exception: Ray would run it again, and it would come to the same.

    Args:
        config: ``number`` of the trial in its study and ``params`` that it changes, as JSON.
        task: of the sweep.
    """
    os.environ.update(task.environment)
    if not torch.cuda.is_available():
        torch.set_num_threads(task.each.threads)
    tell = Teller()
    try:
        metrics = _train(config["number"], json.loads(config["params"]), task, tell)
    except Exception as error:
        if isinstance(error, NoRoomError):
            raise  # others had the room: Ray runs the trial again, cluster.max_failures times
        tell([], failure=reason(error))
    else:
        tell([], end=[metrics])


def reason(error: BaseException) -> str:
    """One line on what went wrong."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, TrainingDivergedError):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return f"out of memory: {text}" if text else "out of memory"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _train(number: int, changes: dict[str, Any], task: TrialTask, tell: Teller) -> Metrics:
    """Metrics of the last step, with what the objectives are."""
    values = copy.deepcopy(task.values)
    for key, value in changes.items():
        set_value(values, key, value)
    job = TrainingJob(check_params(values, f"trial {number}"), Path(task.delivery.obtain()))
    result = (_train_here if task.num_workers == 1 else _train_on_workers)(number, job, task, tell)
    return _measure(number, job, result, task)


def _train_here(number: int, job: TrainingJob, task: TrialTask, tell: Teller) -> TrainingResult:
    checkpoints = task.checkpoints(number)
    kept = checkpoints.newest()
    if kept:
        # Its driver may have died before it heard, or noted down, what came before this checkpoint.
        tell([_row(entry) for entry in job.result(kept[1]).history], kept[0])

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        with tell.not_training():
            checkpoints.save(state.step, state.to_bytes(), metrics.get("val_score"))

    tell.began, tell.aside = time.time(), 0.0
    return job.run(lambda step, metrics: tell([(step, metrics)]), checkpoint, kept[1] if kept else None).result


def _train_on_workers(number: int, job: TrainingJob, task: TrialTask, tell: Teller) -> TrainingResult:
    from pipeline.cluster.training import TrainingRun, train_on_cluster

    run = TrainingRun(
        name=f"trial-{number}-{secrets.token_hex(4)}",
        num_workers=(task.num_workers, task.num_workers),
        each=task.each,
        cluster=job.params.cluster,
        delivery=task.delivery,
        place=task.place,
        prefix=task.prefix_of(number),
        keep_best=0,
    )
    if kept := run.checkpoints().newest():
        tell([], kept[0])  # what came before, its first worker tells
    tell.began, tell.aside = time.time(), 0.0
    return job.result(train_on_cluster(job, run, lambda step, metrics: tell([(step, metrics)])))


def _measure(number: int, job: TrainingJob, result: TrainingResult, task: TrialTask) -> Metrics:
    metrics = dict(_row(result.history[-1])[1])
    if "step_time" in task.objectives:
        metrics["step_time"] = step_time(job.params.train.batch_size, result.history)
    network = result.network.to(memory_format=Worker.current().memory_format).eval()  # type: ignore[call-overload]
    metrics |= validation_errors(job, network)
    if task.measures:
        task.write_rows(number, measure_rows(job, network))
    return metrics


def step_time(batch_size: int, history: list[dict[str, float]]) -> float:
    """Seconds a step of ``batch_size`` images: the median over reports, the first, with its start-up, left out."""
    speeds = [entry["images_per_second"] for entry in history]
    return batch_size / statistics.median(speeds[1:] or speeds)


def _row(entry: dict[str, float]) -> tuple[int, Metrics]:
    return int(entry["step"]), {name: value for name, value in entry.items() if name != "step"}
