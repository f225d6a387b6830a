"""Runs one trial of a sweep in its own process.

The trial trains, resumes from its own checkpoint if there is one, and is measured at the end.
"""

from __future__ import annotations

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
from components.training.worker import Worker, arranged
from pipeline.cluster.resources import WorkerResources
from pipeline.config.schema import Params
from pipeline.errors import InsufficientResourcesError
from pipeline.measurement import measure_rows, validation_errors
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.staged_packs import StagedPacks
from pipeline.storage.store import ArtifactStore
from pipeline.training_job import TrainingJob

Reports = list[tuple[int, Metrics]]
"""(step, metrics) of each report."""


class TrialReporter:
    """Reports to the driver through Ray Tune; each call returns when the driver has received the report.

    Attributes:
        began: start of the training, in seconds of this machine's clock.
        not_training_s: seconds since then that were spent on reports and checkpoints.
    """

    def __init__(self) -> None:
        self.began, self.not_training_s = time.time(), 0.0

    def __call__(self, reports: Reports, resumed_at: int = 0, **ending: Any) -> None:
        """Sends reports, and the step after which the trial resumed from a checkpoint (0 if it did not).

        Args:
            reports: (step, metrics) of each report.
            resumed_at: step of the checkpoint.
            **ending: "end" or "failure" of the trial.
        """
        import ray.tune

        clock = [self.began, time.time(), self.not_training_s]
        told = {"reports": [list(one) for one in reports], "resumed_at": resumed_at, "clock": clock}
        with self.not_training():
            ray.tune.report(told | ending)

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Adds the time of the block to ``not_training_s``."""
        start = time.time()
        yield
        self.not_training_s += time.time() - start


@dataclass(frozen=True)
class TrialTask:
    """The settings that all trials of a sweep share; Ray sends them to the trials' processes.

    Attributes:
        params: of the trials; each trial changes some.
        staged: the staged packs.
        artifact_store: holds the checkpoints and the measurements.
        prefix: prefix of the sweep's names in the artifact store.
        each: resources of each process of a trial.
        num_workers: workers of each trial. If there are several, Ray Train starts them, and the trial's process waits.
        objectives: names of the objectives; their metrics are measured after the last step.
        measures: whether the test images are also measured.
        environment: environment variables with credentials.
    """

    params: Params
    staged: StagedPacks
    artifact_store: ArtifactStore
    prefix: str
    each: WorkerResources
    num_workers: int
    objectives: tuple[str, ...]
    measures: bool
    environment: dict[str, str]

    def prefix_of(self, number: int) -> str:
        """Prefix of one trial's names in the artifact store."""
        return f"{self.prefix}/trials/{number}"

    def checkpoints(self, number: int) -> Checkpoints:
        """The checkpoints of one trial."""
        return Checkpoints(self.artifact_store, self.prefix_of(number), keep_best=0)

    def read_measurements(self, number: int) -> list[dict[str, Any]] | None:
        """What a trial has measured on the test images; None if there are none."""
        try:
            measurements: list[dict[str, Any]] = json.loads(self.artifact_store.read(self._measurements_name(number)))
        except FileNotFoundError:
            return None
        return measurements

    def write_measurements(self, number: int, measurements: list[dict[str, Any]]) -> None:
        """Writes what a trial has measured to the artifact store."""
        self.artifact_store.write(self._measurements_name(number), json.dumps(measurements).encode())

    def _measurements_name(self, number: int) -> str:
        return f"{self.prefix_of(number)}/rows.json"


def run_trial(config: dict[str, Any], task: TrialTask) -> None:
    """Trains one trial, and reports to Ray Tune: ``reports`` during the training, then ``end`` or ``failure``.

    An error of the training is reported as ``failure`` and not raised: Ray would run the trial again, and it would fail
    in the same way. Only an ``InsufficientResourcesError`` is raised.

    Args:
        config: ``number`` of the trial in its study, and ``params`` that it changes, as JSON.
        task: settings of the sweep.
    """
    os.environ.update(task.environment)
    if not torch.cuda.is_available():
        torch.set_num_threads(task.each.threads)
    report = TrialReporter()
    try:
        metrics = _train(config["number"], json.loads(config["params"]), task, report)
    except Exception as error:
        if isinstance(error, InsufficientResourcesError):
            raise  # other processes used the resources: Ray repeats the trial, cluster.max_failures times
        report([], failure=reason(error))
    else:
        report([], end=[metrics])


def reason(error: BaseException) -> str:
    """One line that says why a trial failed."""
    text = " ".join(str(error).split())[:300]
    if isinstance(error, TrainingDivergedError):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return f"out of memory: {text}" if text else "out of memory"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _train(number: int, changes: dict[str, Any], task: TrialTask, report: TrialReporter) -> Metrics:
    """Trains and measures one trial; gives the metrics of the last step with those of the objectives."""
    job = TrainingJob(task.params.patched(changes, f"trial {number}"), Path(task.staged.obtain()))
    result = (_train_here if task.num_workers == 1 else _train_on_workers)(number, job, task, report)
    return _measure(number, job, result, task)


def _train_here(number: int, job: TrainingJob, task: TrialTask, report: TrialReporter) -> TrainingResult:
    checkpoints = task.checkpoints(number)
    kept = checkpoints.newest()
    if kept:
        # The driver may have died before it recorded the reports up to this checkpoint, so they are sent again.
        report([_report(entry) for entry in job.result(kept[1]).history], kept[0])

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        with report.not_training():
            checkpoints.save(state.step, state.to_bytes(), metrics.get("val_score"))

    report.began, report.not_training_s = time.time(), 0.0
    return job.run(lambda step, metrics: report([(step, metrics)]), checkpoint, kept[1] if kept else None).result


def _train_on_workers(number: int, job: TrainingJob, task: TrialTask, report: TrialReporter) -> TrainingResult:
    from pipeline.cluster.training import TrainingRun, train_on_cluster

    run = TrainingRun(
        name=f"trial-{number}-{secrets.token_hex(4)}",
        num_workers=(task.num_workers, task.num_workers),
        each=task.each,
        cluster=job.params.cluster,
        staged=task.staged,
        artifact_store=task.artifact_store,
        prefix=task.prefix_of(number),
        keep_best=0,
    )
    if kept := run.checkpoints().newest():
        report([], kept[0])  # rank 0 sends the earlier reports
    report.began, report.not_training_s = time.time(), 0.0
    return job.result(train_on_cluster(job, run, lambda step, metrics: report([(step, metrics)])))


def _measure(number: int, job: TrainingJob, result: TrainingResult, task: TrialTask) -> Metrics:
    metrics = dict(_report(result.history[-1])[1])
    if "step_time" in task.objectives:
        metrics["step_time"] = step_time(job.params.train.batch_size, result.history)
    network = arranged(result.network, Worker.current().memory_format).eval()
    metrics |= validation_errors(job, network)
    if task.measures:
        task.write_measurements(number, measure_rows(job, network))
    return metrics


def step_time(batch_size: int, history: list[dict[str, float]]) -> float:
    """Seconds a step of ``batch_size`` images: the median over the reports.

    The first report is left out, because it includes the start-up time.
    """
    speeds = [entry["images_per_second"] for entry in history]
    return batch_size / statistics.median(speeds[1:] or speeds)


def _report(entry: dict[str, float]) -> tuple[int, Metrics]:
    return int(entry["step"]), {name: value for name, value in entry.items() if name != "step"}
