"""Runs a training job with Ray Train on several workers and nodes, and continues after the loss of some of them.

eqreg writes its own checkpoints (``pipeline.storage.checkpoints``). They are complete and verified, and they hold the
history of the run. Ray starts, monitors and replaces the workers. Workers that start resume from the newest good
checkpoint.
"""

from __future__ import annotations

import math
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import Empty
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.training.loop import Metrics, TrainingDivergedError
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.cluster.controller import LossWatcher, StartWatcher, is_full_disk, last_line
from pipeline.cluster.process_group import ProcessGroupConfig
from pipeline.cluster.quick_trainer import QuickTrainer
from pipeline.cluster.resources import WorkerResources
from pipeline.cluster.session import secret_environment
from pipeline.compat import ENV_VARS_TO_PROPAGATE, cause_of
from pipeline.config.sections import Cluster
from pipeline.errors import FullDiskError, InsufficientResourcesError, UserError, described
from pipeline.process_state import changed_environment
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.staged_packs import StagedPacks
from pipeline.storage.store import ArtifactStore
from pipeline.training_job import Show, TrainingJob

Report = Callable[[int, Metrics], None]
_GO_ON = "run the stage again to go on from the last checkpoint"
_START_TIMEOUT, _ELASTIC_START_TIMEOUT = 60, 20
"""Seconds that Ray waits for resources before it looks at the cluster again.

The time is shorter if the run can continue with fewer workers. After the loss of a node, Ray still counts the node's
resources and requests as many workers as before, until it notices that the node is silent (15 s by default).
"""


@dataclass(frozen=True)
class TrainingRun:
    """How and where a job is run.

    Attributes:
        name: name of Ray's own records, new for each start.
        num_workers: (least, most) processes that train together. If they differ, the run continues with fewer workers
            when some are lost.
        each: resources of each worker.
        cluster: section of the params: placement, network interface, waiting time and restarts.
        staged: the staged packs, from which each node obtains its copy.
        artifact_store: holds the checkpoints.
        prefix: prefix of the checkpoints; a run with the same prefix resumes from the newest.
        keep_best: number of checkpoints kept beside the last.
    """

    name: str
    num_workers: tuple[int, int]
    each: WorkerResources
    cluster: Cluster
    staged: StagedPacks
    artifact_store: ArtifactStore
    prefix: str
    keep_best: int

    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this run."""
        return Checkpoints(self.artifact_store, self.prefix, self.keep_best)


def train_on_cluster(
    job: TrainingJob,
    run: TrainingRun,
    report: Report,
    notice: Callable[[str], None] = lambda text: None,
    show: Show | None = None,
) -> bytes:
    """Trains until the last step.

    Args:
        job: what is trained.
        run: how and where it is trained.
        report: called in this process with (step, metrics) of every step at which rank 0 reports, in order from the
            first step on. Reports can repeat after a loss of workers.
        notice: called with a one-line message about lost workers, restarts and damaged checkpoints.
        show: called with the images of rank 0's validations (``TrainingJob.run``).

    Returns:
        The bytes of the last checkpoint.

    Raises:
        UserError: workers cannot read the packs or write the checkpoints, or their versions differ; training diverged;
            workers were lost more often than allowed, or did not start within ``cluster.wait_s``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    with tempfile.TemporaryDirectory(prefix="eqreg-", ignore_cleanup_errors=True) as records, _environment(run):
        _Listener(run, report, notice, show).follow(_trainer(job, run, mailbox, records, show is not None), mailbox)
    found = run.checkpoints().newest()
    if found is None or found[0] != job.params.train.steps:
        raise UserError(
            f"{run.artifact_store.address}: training ended, but its last checkpoint is not there; run the stage again"
        )
    return found[1]


def _trainer(job: TrainingJob, run: TrainingRun, mailbox: Queue, records: str, shows: bool) -> QuickTrainer:
    """Ray's trainer. It writes its own records into ``records``, a local folder; nothing is read from there."""
    config = {
        "params": job.params,
        "run": run,
        "mailbox": mailbox,
        "shows": shows,
        "secrets": secret_environment(),
        "versions": _versions(),
    }
    return QuickTrainer(
        partial(_train_worker, config),  # not train_loop_config, which the controller would also read
        is_local=run.cluster.address == "local",
        torch_config=ProcessGroupConfig(backend="nccl" if run.each.gpus else "gloo", interface=run.cluster.interface),
        scaling_config=_scaling(run),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=records,
            failure_config=ray.train.FailureConfig(max_failures=run.cluster.max_failures),
            callbacks=[LossWatcher(mailbox), StartWatcher(mailbox)],
        ),
    )


def _start_timeout(run: TrainingRun) -> int:
    least, most = run.num_workers
    return min(_START_TIMEOUT if least == most else _ELASTIC_START_TIMEOUT, run.cluster.wait_s)


@contextmanager
def _environment(run: TrainingRun) -> Iterator[None]:
    """Sets the time that workers have to start, and RAY_ADDRESS for Ray's own actors of a run.

    One of these actors frees the workers' resources when a trial is stopped. Without the variable it asks the dashboard
    for the cluster. If several Rays run on a machine, it finds none, and the resources are never freed (Ray 2.60).
    """
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    with changed_environment(
        {
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_start_timeout(run)),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        }
    ):
        yield


def _scaling(run: TrainingRun) -> ray.train.ScalingConfig:
    least, most = run.num_workers
    return ray.train.ScalingConfig(
        num_workers=most if least == most else (least, most),
        use_gpu=run.each.gpus > 0,
        resources_per_worker=run.each.as_ray(),
        placement_strategy=run.cluster.placement.upper(),
        elastic_resize_monitor_interval_s=run.cluster.resize_s,
    )


def _train_worker(config: dict[str, Any]) -> None:
    """Trains in one worker process; Ray calls it in every worker."""
    os.environ.update(config["secrets"])
    run: TrainingRun = config["run"]
    mailbox: Queue = config["mailbox"]
    worker = Worker.current()
    is_first = worker.rank == 0
    if is_first:
        mailbox.put(("arrived", None))
    if worker.device.type == "cpu":
        torch.set_num_threads(run.each.threads)
    problems = worker.from_all(_setup_problem(run, config["versions"]))
    if found := list(dict.fromkeys(filter(None, problems))):
        if is_first:  # no exception: Ray would start the workers again, and they would fail in the same way
            more = f" (and {len(found) - 1} more workers)" if len(found) > 1 else ""
            mailbox.put(("refused", found[0] + more))
        return
    job = TrainingJob(config["params"], run.staged.obtain())
    checkpoints = run.checkpoints()
    newest = checkpoints.newest() if is_first else None
    resume = worker.from_first(newest[1] if newest else None)
    if is_first:
        mailbox.put(("started", (worker.num_workers, newest[0] if newest else 0, checkpoints.damaged)))
        if resume is not None:
            for row in job.result(resume).history:  # reports that the driver may have missed
                mailbox.put(("report", (int(row["step"]), {key: row[key] for key in row.keys() - {"step"}})))

    def report(step: int, metrics: Metrics) -> None:
        if is_first:
            mailbox.put(("report", (step, metrics)))

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        """Saves on rank 0 only: the state is the same on all workers."""
        if is_first:
            checkpoints.save(state.step, state.to_bytes(), metrics.get("val_score"))

    def show(step: int, images: list[np.ndarray]) -> None:
        mailbox.put(("images", (step, images)))

    try:
        job.run(report, checkpoint, resume, show if config["shows"] else None)
    except TrainingDivergedError as error:
        if is_first:  # no exception: Ray would start the workers again, and they would diverge at the same step
            mailbox.put(("diverged", str(error)))


def _setup_problem(run: TrainingRun, versions: dict[str, str]) -> str | None:
    """Why this worker cannot train, in at most two lines; None if it can."""
    host = socket.gethostname()
    own = _versions()
    for name, version in versions.items():
        if own[name] != version:
            return f"node {host}: {name} {own[name]}, where the driver has {version}: install the same on every node"
    try:
        run.staged.obtain()
        if ray.train.get_context().get_local_rank() == 0:
            run.artifact_store.check()
    except (ValueError, OSError) as error:
        return f"node {host}: {error}"
    return None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}


class _Listener:
    """The driver's side: passes the workers' messages to callbacks, and ends the run if no worker starts in time."""

    def __init__(
        self, run: TrainingRun, report: Report, notice: Callable[[str], None], show: Show | None = None
    ) -> None:
        self._run, self._report, self._notice, self._show = run, report, notice, show
        self._waiting_since: float | None = time.monotonic()
        self._num_starts = 0
        self._fatal_message: str | None = None

    def follow(self, trainer: QuickTrainer, mailbox: Queue) -> None:
        """Runs the trainer in a thread until it ends. This thread reads the mailbox, so that Ctrl-C reaches it."""
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while True:
            was_alive = thread.is_alive()  # before the mailbox, so that the last messages are read
            self._listen(mailbox)
            if not was_alive:
                break
            self._check_wait()
        if self._fatal_message:
            raise UserError(self._fatal_message)
        if failures:
            raise self._failure(failures[0]) from failures[0]

    def _listen(self, mailbox: Queue) -> None:
        """Handles every message in the mailbox; waits at most 0.2 s for the first."""
        try:
            kind, content = mailbox.get(timeout=0.2)
            while True:
                self._on_event(kind, content)
                kind, content = mailbox.get(block=False)
        except Empty:
            return

    def _on_event(self, kind: str, content: Any) -> None:
        if kind == "report":
            self._report(*content)
        elif kind == "images":
            if self._show:
                self._show(*content)
        elif kind == "starting":
            self._waiting_since = self._waiting_since or time.monotonic()
        elif kind == "arrived":  # the workers run; fetching the packs may take long
            self._waiting_since = None
        elif kind == "started":
            number, step, damaged = content
            for name in damaged:
                self._notice(f"{name}: damaged; an older checkpoint is used")
            if step or self._num_starts:
                self._notice(f"{number} workers go on after step {step}")
            self._num_starts += 1
        elif kind == "lost":
            self._notice(f"lost: {content}")
            self._waiting_since = time.monotonic()
        else:
            self._fatal_message = content
            self._waiting_since = None

    def _check_wait(self) -> None:
        waited = 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since
        if waited > self._run.cluster.wait_s:
            seconds, least, each = self._run.cluster.wait_s, self._run.num_workers[0], self._run.each
            raise InsufficientResourcesError(
                f"cluster.wait_s: {least} workers with {each} each did not start in {seconds} s; "
                f"there is {_free()} free\n"
                "wait for others to end, use fewer workers or more nodes; a run goes on from its last checkpoint"
            )

    def _failure(self, error: BaseException) -> BaseException:
        if not isinstance(error, ray.train.TrainingFailedError):
            return error
        failures = getattr(error, "worker_failures", {})
        if full := next(filter(is_full_disk, failures.values()), None):
            full = cause_of(full)
            return FullDiskError(f"{described(full) if isinstance(full, OSError) else last_line(full)}\n{_GO_ON}")
        return UserError(
            f"training failed and was tried again {max(0, self._num_starts - 1)} times: {_cause(error)}\n{_GO_ON}"
        )


def _free() -> str:
    free = ray.available_resources()
    return " and ".join(f"{math.floor(free.get(kind, 0.0)):g} {kind}" for kind in ("CPU", "GPU") if kind in free)


def _cause(error: BaseException) -> str:
    """The last line of the first worker's error."""
    failures = getattr(error, "worker_failures", None)
    return last_line(next(iter(failures.values())) if failures else error)
