"""Ray Train: runs a training job on several workers and survives the loss of some of them."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from components.training.loop import Metrics, TrainingDivergedError
from components.training.state import TrainingState
from pipeline.errors import UserError
from pipeline.job import TrainingJob
from pipeline.params import check_params

Report = Callable[[int, Metrics], None]


@dataclass(frozen=True)
class TrainingRun:
    """How a job is run.

    Attributes:
        name: of the run; the same name in the same storage goes on from its last checkpoint.
        storage: absolute folder of checkpoints, reachable from every node.
        num_workers: processes that train together.
        max_failures: how often lost workers are replaced.
    """

    name: str
    storage: Path
    num_workers: int
    max_failures: int

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    def discard(self) -> None:
        """Forgets the run's checkpoints, so that the next run of this name begins anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def train_on_cluster(job: TrainingJob, run: TrainingRun, report: Report) -> tuple[Path, Metrics]:
    """Trains to the end; gives the folder of the last checkpoint and its metrics. ``report`` hears rank 0, here.

    Raises:
        UserError: more workers than the cluster can hold; training diverged; workers were lost more often than allowed.
    """
    use_gpu = torch.cuda.is_available()
    _check_room(run.num_workers, "GPU" if use_gpu else "CPU", ray.cluster_resources())
    mailbox = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "params": job.params.model_dump(by_alias=True, mode="json"),
            "packed": str(job.packed),
            "mailbox": mailbox,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=run.num_workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(run.storage),
            failure_config=ray.train.FailureConfig(max_failures=run.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    diverged: list[str] = []
    try:
        with _listening(mailbox, report, diverged):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise UserError(
            f"training failed and was tried again {run.max_failures} times: {_cause(error)}\n"
            "run the stage again to go on from the last checkpoint"
        ) from error
    if diverged:
        run.discard()
        raise UserError(diverged[0])
    if result.checkpoint is None:
        raise UserError(f"{run.folder}: training ended without a checkpoint; remove this folder and run again")
    metrics = {name: value for name, value in (result.metrics or {}).items() if isinstance(value, float)}
    return Path(result.checkpoint.path), metrics


def _check_room(num_workers: int, kind: str, resources: Mapping[str, float]) -> None:
    """Refuses what Ray Train would wait for without end: each worker takes one core, or one GPU."""
    available = int(resources.get(kind, 0))
    if num_workers > available:
        raise UserError(
            f"train.num_workers: {num_workers} workers need a {kind} each, and the cluster has {available}: "
            f"use {available} or less, or auto"
        )


def _train_worker(config: dict[str, Any]) -> None:
    """Runs in every worker process."""
    context = ray.train.get_context()
    is_first = context.get_world_rank() == 0
    mailbox: Queue = config["mailbox"]
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    job = TrainingJob(check_params(config["params"], "params"), Path(config["packed"]))

    def report(step: int, metrics: Metrics) -> None:
        if is_first:
            mailbox.put(("report", step, metrics))

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        """Every worker reports, rank 0 alone brings the state: it is the same on all."""
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if is_first:
                state.save(Path(folder))
                saved = ray.train.Checkpoint.from_directory(folder)
            name = f"step-{state.step:08d}"
            ray.train.report({"step": state.step, **metrics}, checkpoint=saved, checkpoint_dir_name=name)

    try:
        if latest := ray.train.get_checkpoint():
            with latest.as_directory() as folder:
                job.run(report, checkpoint, Path(folder))
        else:
            job.run(report, checkpoint)
    except TrainingDivergedError as error:
        # Not raised: another try would come to the same step.
        if is_first:
            mailbox.put(("diverged", 0, str(error)))


@contextmanager
def _listening(mailbox: Queue, report: Report, diverged: list[str]) -> Iterator[None]:
    """Hands on the messages of rank 0 while the block runs; an error of ``report`` is raised at the end of it."""
    is_over = threading.Event()
    errors: list[Exception] = []

    def listen() -> None:
        while True:
            was_over = is_over.is_set()
            try:
                while True:
                    kind, step, content = mailbox.get(block=not was_over, timeout=0.2)
                    if kind == "diverged":
                        diverged.append(content)
                    else:
                        report(step, content)
            except Empty:
                if was_over:
                    return
            except Exception as error:
                errors.append(error)
                return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(timeout=30)
    if errors:
        raise errors[0]


def _cause(error: BaseException) -> str:
    """The last line of the first worker's own error."""
    failures = getattr(error, "worker_failures", None)
    text = str(next(iter(failures.values()))) if failures else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
