"""Stage 4: data/packed and params -> results/train/model.safetensors, by way of Ray Train.

The files in results/train are functions of the packs, the params, the code and the number of workers. What else there
is to know of a training (commit, times, speed) is in MLflow, in the run that has the model's SHA-256 as a tag.
"""

from __future__ import annotations

import csv
import fcntl
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.progress import Progress

from components.training.state import TrainingResult
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.job import TrainingJob, save_model
from pipeline.lineage import trace
from pipeline.model_hash import model_sha256
from pipeline.params import load_params, unreached
from pipeline.paths import MODEL, PACKED, SCRATCH, TRAIN, existing, replaced_folder
from pipeline.resolve import Resolved, resolve
from pipeline.storage.checkpoints import Checkpoints
from pipeline.storage.delivery import deliver
from pipeline.storage.places import Place, open_place
from pipeline.tracking.store import MODEL_TAG, TRAINING_TAG, Store
from pipeline.training_identity import TrainingIdentity

if TYPE_CHECKING:
    from pipeline.cluster.room import WorkerResources
    from pipeline.cluster.training import TrainingRun

_FINISHED = "finished.json"
"""Object of a run that came to its end: the tags of the lineage that trained it."""

_TIMINGS = ("images_per_second",)
"""Metrics that are no functions of the inputs; they are in MLflow alone."""


def train() -> None:
    """Trains with the resolved params; a run that was killed goes on from its last good checkpoint.

    A run of the same data, params, code and workers that came to its end is taken up: its files are written again.
    """
    resolved = resolve()
    params = resolved.params
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job = TrainingJob(params, PACKED.resolve())
    job.check(range(1, 2) if params.train.num_workers == "auto" else _numbers(params.train.num_workers))
    place = open_place(params.cluster.storage or str(SCRATCH.resolve()))
    place.check()
    lineage, store = trace(load_params()), Store(params.task)
    identity = TrainingIdentity.of(job, lineage.data)
    tags = lineage.tags() | {TRAINING_TAG: identity.id}
    for key, origin in resolved.origins.items():
        console.print(f"{key}: from {origin}")
    for line in unreached(params):
        console.print(line, markup=False)
    # Made first: a place that cannot be written is noticed before training.
    with replaced_folder(TRAIN) as folder, ExitStack() as stack:
        finished = _train_or_take_up(job, identity, tags, resolved, store, place, stack)
        result = job.result(finished.data)
        write_results(folder, job, finished.num_workers, identity, result)
        _record(store, finished, model_sha256(folder / MODEL.name), result, resolved)
    final = result.history[-1]
    score = f"validation {job.task.score.title} {final['val_score']:.2f}"
    console.print(f"{params.train.steps} steps with {_worded(finished.num_workers)} workers, {score}")


@dataclass(frozen=True)
class _Plan:
    """(least, most) workers, what each of them gets, and where the checkpoints of the run are."""

    num_workers: tuple[int, int]
    each: WorkerResources
    prefix: str


@dataclass(frozen=True)
class _Finished:
    """A training that came to its end.

    Attributes:
        num_workers: (least, most).
        data: the last checkpoint.
        tags: of the lineage that trained it.
        run_id: of MLflow; None if it was trained by an earlier command.
    """

    num_workers: tuple[int, int]
    data: bytes
    tags: Mapping[str, str]
    run_id: str | None


def _train_or_take_up(
    job: TrainingJob,
    identity: TrainingIdentity,
    tags: Mapping[str, str],
    resolved: Resolved,
    store: Store,
    place: Place,
    stack: ExitStack,
) -> _Finished:
    """Trains, unless a finished run of the same is there; on this machine that is found out without starting Ray.

    ``stack`` holds what is to last until the results are written.
    """
    from pipeline.cluster.session import ray_session

    params, is_local = job.params, job.params.cluster.address == "local"
    with ExitStack() as session:
        if not is_local:
            session.enter_context(ray_session(params.cluster, dashboard=False))
        plan = _plan(job, identity, is_local)
        stack.enter_context(_alone(plan.prefix))
        if finished := _take_up(place, plan, params.train.steps):
            console.print(
                f"this training came to its end before: its result is taken up (to train anew, remove {plan.prefix} in "
                f"{place.address})",
                markup=False,
            )
            return finished
        run_id = store.parent_run(tags)
        store.log_params(run_id, resolved.values, resolved.as_yaml())
        stack.enter_context(store.ended_if_broken_off([run_id]))
        run = _run(job, plan, place)
        bars = session.enter_context(progress())
        if is_local:
            session.enter_context(ray_session(params.cluster, dashboard=False))
        data = _follow(job, run, bars, _History(store, run_id))
    place.write(f"{plan.prefix}/{_FINISHED}", json.dumps(dict(tags)).encode())
    return _Finished(plan.num_workers, data, tags, run_id)


def _plan(job: TrainingJob, identity: TrainingIdentity, is_local: bool) -> _Plan:
    """How the job is run on the cluster that is connected, or will be started on this machine."""
    from pipeline.cluster import room

    params = job.params
    nodes = [room.this_machine()] if is_local else room.living_nodes()
    least, most = room.resolve_workers(params.train.num_workers, nodes)
    each = room.worker_resources(params.cluster, most, nodes)
    if is_local or not room.can_grow():  # else the run itself waits for cluster.wait_s
        room.check_room(least, each, params.cluster, nodes, "train.num_workers")
    job.check_shares(range(least, most + 1))
    if params.network.norm == "batch" and least < most:
        console.print(
            "train.num_workers: with network.norm: batch the result depends on the number of workers at each step; "
            "to make it repeat, give one number, or set network.norm: none"
        )
    return _Plan((least, most), each, f"train/{identity.run((least, most), each.threads, each.gpus > 0)}")


def _take_up(place: Place, plan: _Plan, steps: int) -> _Finished | None:
    """The finished run of this plan; None if there is none, or its last checkpoint is gone or damaged."""
    try:
        tags = json.loads(place.read(f"{plan.prefix}/{_FINISHED}"))
    except FileNotFoundError:
        return None
    newest = Checkpoints(place, plan.prefix, keep_best=0).newest()
    if newest is None or newest[0] != steps:
        return None
    return _Finished(plan.num_workers, newest[1], tags, None)


def _run(job: TrainingJob, plan: _Plan, place: Place) -> TrainingRun:
    from pipeline.cluster.training import TrainingRun

    params = job.params
    return TrainingRun(
        name=f"{plan.prefix.rpartition('/')[2]}-{uuid.uuid4().hex[:8]}",
        num_workers=plan.num_workers,
        each=plan.each,
        cluster=params.cluster,
        delivery=deliver(job.packed, params.cluster.storage, params.cluster.cache),
        place=place,
        prefix=plan.prefix,
        keep_best=params.train.keep_best,
    )


@contextmanager
def _alone(prefix: str) -> Iterator[None]:
    """Refuses a second command that trains the same from this folder, where the two would undo each other's work."""
    path = SCRATCH / f"{prefix}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another command trains with the same params; wait for it to end") from None
        yield


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


def _record(store: Store, finished: _Finished, sha256: str, result: TrainingResult, resolved: Resolved) -> None:
    """Gives the training's run in MLflow the hash of its model, by which later stages find it.

    A run that was taken up keeps its own; where a new or emptied store has none, it is made again. Where the store is
    out of reach, the result is kept, and evaluate does this.
    """
    try:
        run_id = finished.run_id or store.run_of_model(sha256, finished.tags[TRAINING_TAG])
        if run_id is None:
            run_id = store.parent_run(finished.tags)
            store.log_params(run_id, resolved.values, resolved.as_yaml())
            history = _History(store, run_id)
            for row in result.history:
                history.add(int(row["step"]), {key: row[key] for key in row.keys() - {"step"}})
        store.set_tag(run_id, MODEL_TAG, sha256)
    except UserError as error:
        console.print(
            f"{str(error).splitlines()[0]}\nthe model is kept; evaluate will log what is missing", markup=False
        )


def write_results(
    folder: Path, job: TrainingJob, num_workers: tuple[int, int], identity: TrainingIdentity, result: TrainingResult
) -> None:
    """model.safetensors (the averaged weights), metrics.json, history.csv and history.png, and the deciding params."""
    from components.evaluation.figures import save_history  # slow, and of no use before

    metadata = {
        "network": job.network_settings(),
        "task": job.params.task,
        "hashes": asdict(identity),
        "steps": result.step,
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
