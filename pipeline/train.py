"""Stage 4: data/packed and params -> results/train/model.safetensors, by way of Ray Train."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress

from components.evaluation.figures import save_history
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.code_hash import code_hash
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.job import TrainingJob, save_model
from pipeline.lineage import Lineage, trace
from pipeline.params import load_params
from pipeline.paths import MODEL, PACKED, SCRATCH, TRAIN, existing, replaced_folder
from pipeline.resolve import Resolved, resolve
from pipeline.storage.delivery import Delivery, deliver
from pipeline.storage.places import Place, open_place
from pipeline.tracking.store import TRAINING_TAG, Store

if TYPE_CHECKING:
    from pipeline.cluster.training import TrainingRun

_FINISHED = "finished"


def train() -> None:
    """Trains with the resolved params; a run that was killed goes on from its last good checkpoint."""
    from pipeline.cluster.session import ray_session

    resolved = resolve()
    params = resolved.params
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job = TrainingJob(params, PACKED.resolve())
    job.check(range(1, 2) if params.train.num_workers == "auto" else _numbers(params.train.num_workers))
    place = open_place(params.cluster.storage or str(SCRATCH.resolve()))
    place.check()
    delivery = deliver(job.packed, params.cluster.storage, params.cluster.cache)
    lineage, store = trace(load_params()), Store(params.task)
    run_id = store.parent_run(_tags(job, lineage))
    store.log_params(run_id, resolved.values, resolved.as_yaml())
    for key, origin in resolved.origins.items():
        console.print(f"{key}: from {origin}")
    # Made first: a place that cannot be written is noticed before training.
    with replaced_folder(TRAIN) as folder, store.ended_if_broken_off([run_id]), ExitStack() as alone:
        with progress() as bars, ray_session(params.cluster, dashboard=False):
            run = _prepare(job, lineage, delivery, place)
            alone.enter_context(_alone(run))
            _forget_finished(run)
            data = _follow(job, run, bars, _History(store, run_id))
        state = job.state(Worker(0, 1, torch.device("cpu")))
        state.from_bytes(data)
        _write(folder, job, run.num_workers, lineage, state, resolved)
        place.write(f"{run.prefix}/{_FINISHED}", b"")
    final = state.history[-1]
    score = f"validation {job.task.score.title} {final['val_score']:.2f}"
    console.print(f"{params.train.steps} steps with {_worded(run.num_workers)} workers, {score}")


def _prepare(job: TrainingJob, lineage: Lineage, delivery: Delivery, place: Place) -> TrainingRun:
    """How the job is run on the cluster that is connected."""
    from pipeline.cluster.room import can_grow, check_room, living_nodes, resolve_workers, worker_resources
    from pipeline.cluster.training import TrainingRun

    params, nodes = job.params, living_nodes()
    least, most = resolve_workers(params.train.num_workers, nodes)
    each = worker_resources(params.cluster, most, nodes)
    if not can_grow():  # else the run itself waits for cluster.wait_s
        check_room(least, each, params.cluster, nodes, "train.num_workers")
    job.check(range(least, most + 1))
    if params.network.norm == "batch" and most > 1:
        console.print(f"network.norm: batch: other numbers of workers than {_worded((least, most))} give other results")
    name = _name(job, lineage, (least, most))
    return TrainingRun(
        f"{name}-{uuid.uuid4().hex[:8]}",
        (least, most),
        each,
        params.cluster,
        delivery,
        place,
        f"train/{name}",
        params.train.keep_best,
    )


@contextmanager
def _alone(run: TrainingRun) -> Iterator[None]:
    """Refuses a second command that trains the same from this folder, where the two would undo each other's work."""
    path = SCRATCH / f"{run.prefix}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another command trains with the same params; wait for it to end") from None
        yield


def _forget_finished(run: TrainingRun) -> None:
    """A run that had come to its end begins anew."""
    if f"{run.prefix}/{_FINISHED}" in run.place.names(run.prefix):
        run.checkpoints().discard()
        run.place.delete(f"{run.prefix}/{_FINISHED}")


def _name(job: TrainingJob, lineage: Lineage, num_workers: tuple[int, int] | None = None) -> str:
    """12 hexadecimal digits that change with all that decides the weights: what a run goes on from is its own.

    ``num_workers`` is what the params came to on the cluster, once that is known.
    """
    aside = {"fetch", "tune", "ablate", "evaluate", "register", "cluster"}
    values = job.params.model_dump(by_alias=True, mode="json", exclude=aside)
    text = json.dumps([values, num_workers, lineage.data, code_hash()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tags(job: TrainingJob, lineage: Lineage) -> dict[str, str]:
    """What tells this training from all others in MLflow."""
    return lineage.tags() | {TRAINING_TAG: _name(job, lineage)}


def _follow(job: TrainingJob, run: TrainingRun, bars: Progress, history: _History) -> bytes:
    """Runs the job, with its progress on the console and its reports in MLflow."""
    from pipeline.cluster.training import train_on_cluster

    note = f"starting {_worded(run.num_workers)} workers"
    bar = bars.add_task("training", total=job.params.train.steps, note=note)
    furthest = 0

    def report(step: int, metrics: dict[str, float]) -> None:
        nonlocal furthest
        history.add(step, metrics)
        if step < furthest:  # told again
            return
        furthest = step
        validation = f", validation {metrics['val_score']:.2f}" if "val_score" in metrics else ""
        bars.update(bar, completed=step, note=f"loss {metrics['task_loss']:.4f}{validation}")

    return train_on_cluster(job, run, report, lambda text: console.print(text, markup=False))


class _History:
    """The reports in MLflow: each step once, in order, whatever is told again after a loss."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._logged = store.last_step(run_id, "task_loss")
        self._answers = True

    def add(self, step: int, metrics: dict[str, float]) -> None:
        if step <= self._logged or not self._answers:
            return
        try:
            self._store.log(self._run_id, step, metrics)
            self._logged = step
        except UserError as error:
            self._answers = False  # each further try would wait as long
            reason = str(error).splitlines()[0]
            console.print(f"{reason}\ntraining goes on; evaluate will log the steps that are missing")


def _numbers(chosen: int | tuple[int, int]) -> range:
    least, most = (chosen, chosen) if isinstance(chosen, int) else chosen
    return range(least, most + 1)


def _worded(num_workers: tuple[int, int]) -> str:
    least, most = num_workers
    return str(most) if least == most else f"{least} to {most}"


def _write(
    folder: Path,
    job: TrainingJob,
    num_workers: tuple[int, int],
    lineage: Lineage,
    state: TrainingState,
    resolved: Resolved,
) -> None:
    """model.safetensors (the averaged weights), metrics.json, history.csv and the resolved params."""
    metadata = {
        "network": job.network_settings(),
        "task": job.params.task,
        "lineage": _tags(job, lineage),
        "steps": state.step,
    }
    save_model(folder / MODEL.name, state.averaged.module, metadata)
    final = state.history[-1]
    metrics: dict[str, Any] = {
        "steps": job.params.train.steps,
        "images_per_step": job.params.train.batch_size,
        "num_workers": num_workers[0] if num_workers[0] == num_workers[1] else list(num_workers),
        **{key: final[key] for key in ("val_score", "task_loss", "penalty") if key in final},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / "lineage.json").write_text(json.dumps(_tags(job, lineage), indent=1) + "\n")
    (folder / "params.yaml").write_text(resolved.as_yaml())
    history = {int(row["step"]): {key: value for key, value in row.items() if key != "step"} for row in state.history}
    save_history(folder / "history.png", history, job.task.score.title)
    columns = list(dict.fromkeys(key for row in history.values() for key in row))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        for step, row in sorted(history.items()):
            writer.writerow([step, *(row.get(column, "") for column in columns)])
