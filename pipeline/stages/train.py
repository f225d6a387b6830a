"""Stage 4: trains with Ray Train on data/packed and writes results/train/model.safetensors.

The files in results/train are determined by the packs, the params, the code and the number of workers. Everything else
about a training (commit, times, speed) is in MLflow, in the run that has the model's SHA-256 as a tag.
"""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from rich.progress import Progress

from components.brief import first_line
from components.networks import has_batch_statistics
from components.training.state import TrainingResult
from pipeline.config.resolve import Resolved, resolve
from pipeline.config.schema import load_params, unreached
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.model_file import model_sha256, save_model
from pipeline.paths import MODEL, PACKED, SCRATCH, TRAIN, existing, replaced_folder
from pipeline.provenance.lineage import trace
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.stages.live_history import LiveHistory, live_history
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import deliver
from pipeline.storage.store import ArtifactStore
from pipeline.tracking.runs.datasets import log_datasets
from pipeline.tracking.runs.training_log import TrainingLog, system_metrics
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store
from pipeline.training_job import TrainingJob

if TYPE_CHECKING:
    from pipeline.cluster.resources import WorkerResources
    from pipeline.cluster.training import TrainingRun

_FINISHED = "finished.json"
"""Object in the artifact store that marks a finished run; it holds the lineage tags of the training."""

_TIMINGS = ("images_per_second",)
"""Metrics that are not determined by the inputs; they are only logged to MLflow."""


def train() -> None:
    """Trains with the resolved params; a run that was killed resumes from its last good checkpoint.

    If a run with the same data, params, code and workers has already finished, its result is reused: its files are
    written again without training.
    """
    resolved = resolve()
    params = resolved.params
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job = TrainingJob(params, PACKED.resolve())
    job.check(range(1, 2) if params.train.num_workers == "auto" else _numbers(params.train.num_workers))
    artifact_store = open_store(params.cluster.storage or str(SCRATCH.resolve()))
    artifact_store.check()
    lineage, store = trace(load_params().hash), Store(params.task)
    identity = TrainingFingerprint.of(job.deciding_params(), params.modules, lineage.data)
    tags = lineage.tags() | {TRAINING_TAG: identity.id}
    for key, origin in resolved.origins.items():
        console.print(f"{key}: from {origin}")
    for line in unreached(params):
        console.print(line, markup=False)
    # The folder is created first, so that a location that is not writable is detected before training.
    with replaced_folder(TRAIN) as folder, ExitStack() as stack:
        finished = _train_or_take_up(job, identity, tags, resolved, store, artifact_store, stack)
        result = job.result(finished.data)
        write_results(folder, job, finished.num_workers, identity, result)
        _record(store, finished, model_sha256(folder / MODEL.name), result, resolved)
    final = result.history[-1]
    score = f"validation {job.task.score.title} {final['val_score']:.2f}"
    console.print(f"{params.train.steps} steps with {_worded(finished.num_workers)} workers, {score}")


@dataclass(frozen=True)
class _Plan:
    """How a training is run on the cluster.

    Attributes:
        num_workers: (least, most) number of workers.
        each: resources of each worker.
        prefix: prefix of the run's objects in the artifact store.
    """

    num_workers: tuple[int, int]
    each: WorkerResources
    prefix: str


@dataclass(frozen=True)
class _Finished:
    """A finished training.

    Attributes:
        num_workers: (least, most) number of workers.
        data: bytes of the last checkpoint.
        tags: lineage tags of the training.
        run_id: id of the MLflow run; None if an earlier command trained it.
    """

    num_workers: tuple[int, int]
    data: bytes
    tags: Mapping[str, str]
    run_id: str | None


def _train_or_take_up(
    job: TrainingJob,
    identity: TrainingFingerprint,
    tags: Mapping[str, str],
    resolved: Resolved,
    store: Store,
    artifact_store: ArtifactStore,
    stack: ExitStack,
) -> _Finished:
    """Trains, or reuses a finished run of the same training.

    With a local cluster, a finished run is found without starting Ray. The context managers in ``stack`` stay open
    until the results are written.
    """
    from pipeline.cluster.session import ray_session

    params, is_local = job.params, job.params.cluster.address == "local"
    with ExitStack() as session:
        if not is_local:
            session.enter_context(ray_session(params.cluster, dashboard=False))
        plan = _plan(job, identity, is_local)
        stack.enter_context(_alone(plan.prefix))
        if finished := _take_up(artifact_store, plan, params.train.steps):
            console.print(
                f"this training came to its end before: its result is taken up (to train anew, remove {plan.prefix} in "
                f"{artifact_store.address})",
                markup=False,
            )
            return finished
        run_id = stack.enter_context(store.running(tags))
        store.log_params(run_id, resolved.params.resolved, resolved.as_yaml())
        log_datasets(store, run_id, tags["eqreg.data_hash"], params.fetch.source, ("train", "val"))
        run = _run(job, plan, artifact_store)
        bars = session.enter_context(progress())
        if is_local:
            session.enter_context(ray_session(params.cluster, dashboard=False))
            session.enter_context(system_metrics(store, run_id))  # rank 0 is on this machine
        history = session.enter_context(live_history())
        data = _follow(job, run, bars, TrainingLog(store, run_id), history)
    artifact_store.write(f"{plan.prefix}/{_FINISHED}", json.dumps(dict(tags)).encode())
    return _Finished(plan.num_workers, data, tags, run_id)


def _plan(job: TrainingJob, identity: TrainingFingerprint, is_local: bool) -> _Plan:
    """Plans the job for the connected cluster, or for the one that will be started on this machine."""
    from pipeline.cluster import resources as room

    params = job.params
    nodes = [room.this_machine()] if is_local else room.living_nodes()
    least, most = room.resolve_workers(params.train.num_workers, nodes)
    each = room.worker_resources(params.cluster, most, nodes)
    if is_local or not room.can_grow():  # otherwise the run itself waits up to cluster.wait_s for resources
        room.check_resources(least, each, params.cluster, nodes, "train.num_workers")
    job.check_worker_batches(range(least, most + 1))
    if least < most and has_batch_statistics(job.network()):
        console.print(
            "train.num_workers: with batch normalisation the result depends on the number of workers at each step; to "
            "make it repeat, give one number, or choose a network without it (network.norm: none)"
        )
    return _Plan((least, most), each, f"train/{identity.run((least, most), each.threads, each.gpus > 0)}")


def _take_up(artifact_store: ArtifactStore, plan: _Plan, steps: int) -> _Finished | None:
    """Returns the finished run of this plan; None if there is none or if its last checkpoint is missing or damaged."""
    try:
        tags = json.loads(artifact_store.read(f"{plan.prefix}/{_FINISHED}"))
    except FileNotFoundError:
        return None
    newest = Checkpoints(artifact_store, plan.prefix, keep_best=0).newest()
    if newest is None or newest[0] != steps:
        return None
    return _Finished(plan.num_workers, newest[1], tags, None)


def _run(job: TrainingJob, plan: _Plan, artifact_store: ArtifactStore) -> TrainingRun:
    from pipeline.cluster.training import TrainingRun

    params = job.params
    return TrainingRun(
        name=f"{plan.prefix.rpartition('/')[2]}-{uuid.uuid4().hex[:8]}",
        num_workers=plan.num_workers,
        each=plan.each,
        cluster=params.cluster,
        staged=deliver(job.packed, params.cluster.storage, params.cluster.cache),
        artifact_store=artifact_store,
        prefix=plan.prefix,
        keep_best=params.train.keep_best,
    )


def _alone(prefix: str) -> AbstractContextManager[object]:
    """Refuses a second command that runs the same training in this folder at the same time.

    Two such commands would overwrite each other's work.
    """
    path = SCRATCH / f"{prefix}.lock"
    try:
        return FileLock(path).acquire(blocking=False)
    except Timeout:
        raise UserError(f"{path}: another command trains with the same params; wait for it to end") from None


def _follow(job: TrainingJob, run: TrainingRun, bars: Progress, log: TrainingLog, history: LiveHistory) -> bytes:
    """Runs the job, shows its progress on the console, and passes its reports on to MLflow and to a file."""
    from pipeline.cluster.training import train_on_cluster

    note = f"starting {_worded(run.num_workers)} workers"
    bar = bars.add_task("training", total=job.params.train.steps, note=note)
    furthest = 0

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal furthest
        log.add(step, metrics)
        if step < furthest:  # reported again after a recovery
            return
        if step > furthest:
            history.add(step, metrics)
        furthest = step
        validation = f", validation {metrics['val_score']:.2f}" if "val_score" in metrics else ""
        bars.update(bar, completed=step, note=f"loss {metrics['task_loss']:.4f}{validation}")

    return train_on_cluster(job, run, report, lambda text: console.print(text, markup=False), log.show)


def _numbers(chosen: int | tuple[int, int]) -> range:
    least, most = (chosen, chosen) if isinstance(chosen, int) else chosen
    return range(least, most + 1)


def _worded(num_workers: tuple[int, int]) -> str:
    least, most = num_workers
    return str(most) if least == most else f"{least} to {most}"


def _record(store: Store, finished: _Finished, sha256: str, result: TrainingResult, resolved: Resolved) -> None:
    """Tags the MLflow run of the training with the SHA-256 of its model, by which later stages find the run.

    A reused training keeps its existing MLflow run. If the store has no such run, for example because it is new or was
    emptied, the run is created again. If the store cannot be reached, the result is kept, and the evaluate stage logs
    what is missing.
    """
    try:
        run_id = finished.run_id or store.run_of_model(sha256, finished.tags[TRAINING_TAG])
        if run_id is None:
            run_id = store.parent_run(finished.tags)
            store.log_params(run_id, resolved.params.resolved, resolved.as_yaml())
            history = TrainingLog(store, run_id)
            for row in result.history:
                history.add(int(row["step"]), {key: row[key] for key in row.keys() - {"step"}})
        store.set_tag(run_id, MODEL_TAG, sha256)
    except UserError as error:
        console.print(f"{first_line(error)}\nthe model is kept; evaluate will log what is missing", markup=False)


def write_results(
    folder: Path, job: TrainingJob, num_workers: tuple[int, int], identity: TrainingFingerprint, result: TrainingResult
) -> None:
    """Writes the results of a training.

    The files are model.safetensors (the averaged weights), metrics.json, history.csv, history.png and params.yaml (the
    params that decide the result).

    Args:
        folder: folder for the files.
        job: training job.
        num_workers: (least, most) number of workers.
        identity: fingerprint of the training.
        result: result of the training.
    """
    from components.evaluation.figures import save_history  # slow to import and not needed earlier

    metadata = {
        "network": job.network_settings(),
        "task": job.params.task,
        "hashes": asdict(identity),
        "steps": result.step,
        **job.model_metadata(),
    }
    save_model(folder / MODEL.name, result.network, metadata)
    final = result.history[-1]
    metrics: dict[str, Any] = {
        "steps": job.params.train.steps,
        "images_per_step": job.params.train.batch_size,
        "num_workers": num_workers[0] if num_workers[0] == num_workers[1] else list(num_workers),
        **{key: final[key] for key in ("val_score", "task_loss", "penalty") if key in final},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(job.deciding_params(), sort_keys=False))
    left_out = {"step", *_TIMINGS}
    history = {int(row["step"]): {key: row[key] for key in row if key not in left_out} for row in result.history}
    save_history(folder / "history.png", history, job.task.score.title)
    columns = list(dict.fromkeys(key for row in history.values() for key in row))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        for step, row in sorted(history.items()):
            writer.writerow([step, *(row.get(column, "") for column in columns)])
