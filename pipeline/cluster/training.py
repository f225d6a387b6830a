"""Ray Train: runs a training job on several workers, over several nodes, and survives the loss of some of them.

Checkpoints are our own (``pipeline.storage.checkpoints``): whole, verified, and with the history of the run in them.
Ray starts the workers, watches them and replaces them; whoever starts, goes on from the newest good checkpoint.
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

import ray
import ray.train
import torch
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.training.loop import Metrics, TrainingDivergedError
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.cluster.controller import LossWatcher, StartWatcher, is_full_disk, last_line
from pipeline.cluster.meeting import MeetingConfig
from pipeline.cluster.quick_trainer import QuickTrainer
from pipeline.cluster.room import WorkerResources
from pipeline.cluster.session import secret_environment
from pipeline.errors import FullDiskError, NoRoomError, UserError, described
from pipeline.job import TrainingJob
from pipeline.params import Cluster, check_params
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.delivery import Delivery
from pipeline.storage.places import Place

Report = Callable[[int, Metrics], None]
_GO_ON = "run the stage again to go on from the last checkpoint"
_START_TIMEOUT, _ELASTIC_START_TIMEOUT = 60, 20
"""Seconds that Ray waits for room before it looks at the cluster anew.

Less where fewer workers may go on: after the loss of a node, Ray counts on its room until the node's silence is noticed
(15 s by default), and asks for as many workers as before.
"""


@dataclass(frozen=True)
class TrainingRun:
    """How and where a job is run.

    Attributes:
        name: of Ray's own records, new for each start.
        num_workers: (least, most) processes that train together; where they differ, fewer go on when some are lost.
        each: what each of them gets.
        cluster: of the params: placement, interface, patience.
        delivery: how nodes come by the packs.
        place: of the checkpoints.
        prefix: of the checkpoints; a run with the same one goes on from the newest.
        keep_best: checkpoints kept beside the last.
    """

    name: str
    num_workers: tuple[int, int]
    each: WorkerResources
    cluster: Cluster
    delivery: Delivery
    place: Place
    prefix: str
    keep_best: int

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.place, self.prefix, self.keep_best)


def train_on_cluster(
    job: TrainingJob, run: TrainingRun, report: Report, notice: Callable[[str], None] = lambda text: None
) -> bytes:
    """Trains to the end; gives the last checkpoint.

    Args:
        report: hears rank 0, here: every step that reports, from the first on, in order; some again after a loss.
        notice: hears in one line what happens to workers.

    Raises:
        UserError: workers cannot read the packs, write the checkpoints, or differ in their versions; training diverged;
            workers were lost more often than allowed, or did not come for ``cluster.wait_s``.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_start_timeout(run))
    with tempfile.TemporaryDirectory(prefix="eqreg-", ignore_cleanup_errors=True) as records, _known_address():
        _Listener(run, report, notice).follow(_trainer(job, run, mailbox, records), mailbox)
    found = run.checkpoints().newest()
    if found is None or found[0] != job.params.train.steps:
        raise UserError(
            f"{run.place.address}: training ended, but its last checkpoint is not there; run the stage again"
        )
    return found[1]


def _trainer(job: TrainingJob, run: TrainingRun, mailbox: Queue, records: str) -> QuickTrainer:
    """``records`` is a folder of this machine for what Ray writes down, which nothing is read from."""
    config = {
        "params": job.params.model_dump(by_alias=True, mode="json"),
        "run": run,
        "mailbox": mailbox,
        "secrets": secret_environment(),
        "versions": _versions(),
    }
    return QuickTrainer(
        partial(_train_worker, config),  # not by Ray's train_loop_config, which the controller would read, too
        is_local=run.cluster.address == "local",
        torch_config=MeetingConfig(backend="nccl" if run.each.gpus else "gloo", interface=run.cluster.interface),
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
def _known_address() -> Iterator[None]:
    """Tells Ray's own actors of a run which cluster is theirs.

    The one that frees the workers' room when a trial is stopped asks the dashboard, finds none where several Rays are
    on a machine, and then the room is never free again (Ray 2.60).
    """
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    try:
        yield
    finally:
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


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
    """Runs in every worker process."""
    os.environ.update(config["secrets"])
    run: TrainingRun = config["run"]
    mailbox: Queue = config["mailbox"]
    worker = Worker.current()
    is_first = worker.rank == 0
    if is_first:
        mailbox.put(("arrived", None))
    if worker.device.type == "cpu":
        torch.set_num_threads(run.each.threads)
    problems = worker.from_all(_obstacle(run, config["versions"]))
    if found := list(dict.fromkeys(filter(None, problems))):
        if is_first:  # not raised: another try would come to the same
            more = f" (and {len(found) - 1} more workers)" if len(found) > 1 else ""
            mailbox.put(("refused", found[0] + more))
        return
    job = TrainingJob(check_params(config["params"], "params"), run.delivery.obtain())
    checkpoints = run.checkpoints()
    newest = checkpoints.newest() if is_first else None
    resume = worker.from_first(newest[1] if newest else None)
    if is_first:
        mailbox.put(("started", (worker.num_workers, newest[0] if newest else 0, checkpoints.damaged)))
        if resume is not None:
            for row in job.result(resume).history:  # what the driver may not have heard
                mailbox.put(("report", (int(row["step"]), {key: row[key] for key in row.keys() - {"step"}})))

    def report(step: int, metrics: Metrics) -> None:
        if is_first:
            mailbox.put(("report", (step, metrics)))

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        """Rank 0 alone: the state is the same on all."""
        if is_first:
            checkpoints.save(state.step, state.to_bytes(), metrics.get("val_score"))

    try:
        job.run(report, checkpoint, resume)
    except TrainingDivergedError as error:
        if is_first:  # not raised: another try would come to the same step
            mailbox.put(("diverged", str(error)))


def _obstacle(run: TrainingRun, versions: dict[str, str]) -> str | None:
    """What prevents this worker from training, in two lines at most."""
    host = socket.gethostname()
    own = _versions()
    for name, version in versions.items():
        if own[name] != version:
            return f"node {host}: {name} {own[name]}, where the driver has {version}: install the same on every node"
    try:
        run.delivery.obtain()
        if ray.train.get_context().get_local_rank() == 0:
            run.place.check()
    except (ValueError, OSError) as error:
        return f"node {host}: {error}"
    return None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]}


class _Listener:
    """The driver's side: hands on what workers tell, and gives up when none comes for too long."""

    def __init__(self, run: TrainingRun, report: Report, notice: Callable[[str], None]) -> None:
        self._run, self._report, self._notice = run, report, notice
        self._waiting_since: float | None = time.monotonic()
        self._num_starts = 0
        self._refusal: str | None = None

    def follow(self, trainer: QuickTrainer, mailbox: Queue) -> None:
        """Runs the trainer to its end, in a thread: this one listens, and Ctrl-C reaches it."""
        failures: list[BaseException] = []

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=fit, daemon=True)
        thread.start()
        while True:
            was_alive = thread.is_alive()  # asked first: what was told before the end is still heard
            self._listen(mailbox)
            if not was_alive:
                break
            self._mind_the_wait()
        if self._refusal:
            raise UserError(self._refusal)
        if failures:
            raise self._failure(failures[0]) from failures[0]

    def _listen(self, mailbox: Queue) -> None:
        """Everything in the mailbox; waits a moment for the first."""
        try:
            kind, content = mailbox.get(timeout=0.2)
            while True:
                self._hear(kind, content)
                kind, content = mailbox.get(block=False)
        except Empty:
            return

    def _hear(self, kind: str, content: Any) -> None:
        if kind == "report":
            self._report(*content)
        elif kind == "starting":
            self._waiting_since = self._waiting_since or time.monotonic()
        elif kind == "arrived":  # what they fetch first may take its time
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
            self._refusal = content
            self._waiting_since = None

    def _mind_the_wait(self) -> None:
        waited = 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since
        if waited > self._run.cluster.wait_s:
            seconds, least, each = self._run.cluster.wait_s, self._run.num_workers[0], self._run.each
            raise NoRoomError(
                f"cluster.wait_s: {least} workers with {each} each did not start in {seconds} s; "
                f"there is {_free()} free\n"
                "wait for others to end, use fewer workers or more nodes; a run goes on from its last checkpoint"
            )

    def _failure(self, error: BaseException) -> BaseException:
        if not isinstance(error, ray.train.TrainingFailedError):
            return error
        failures = getattr(error, "worker_failures", {})
        if full := next(filter(is_full_disk, failures.values()), None):
            full = getattr(full, "_base_exc", full)
            return FullDiskError(f"{described(full) if isinstance(full, OSError) else last_line(full)}\n{_GO_ON}")
        return UserError(
            f"training failed and was tried again {max(0, self._num_starts - 1)} times: {_cause(error)}\n{_GO_ON}"
        )


def _free() -> str:
    free = ray.available_resources()
    return " and ".join(f"{math.floor(free.get(kind, 0.0)):g} {kind}" for kind in ("CPU", "GPU") if kind in free)


def _cause(error: BaseException) -> str:
    """The last line of the first worker's own error."""
    failures = getattr(error, "worker_failures", None)
    return last_line(next(iter(failures.values())) if failures else error)
