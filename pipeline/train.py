"""Stage 4: data/packed and params -> results/train/model.safetensors, by way of Ray Train."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from components.evaluation.figures import save_history
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.job import TrainingJob, resolve_num_workers, save_model
from pipeline.lineage import Lineage, trace
from pipeline.params import load_params
from pipeline.paths import MODEL, PACKED, SCRATCH, TRAIN, existing, replaced_folder
from pipeline.resolve import Resolved, resolve
from pipeline.tracking.store import Store


def train() -> None:
    """Trains with the resolved params; a run that was killed goes on from its last checkpoint."""
    resolved = resolve()
    params = resolved.params
    for part in ("train", "val"):
        existing(PACKED / part, "preprocess")
    job = TrainingJob(params, PACKED.resolve())
    num_workers = resolve_num_workers(params.train.num_workers)
    job.check(num_workers)
    lineage, store = trace(load_params()), Store(params.task)
    run_id = store.parent_run(lineage.tags())
    store.log_params(run_id, resolved.values, resolved.as_yaml())
    for key, origin in resolved.origins.items():
        console.print(f"{key}: from {origin}")
    name = hashlib.sha256(f"{lineage.id}/{params.hash}/{num_workers}".encode()).hexdigest()[:12]
    # Made first: a place that cannot be written is noticed before training. What a run left to go on from goes last.
    with replaced_folder(TRAIN) as folder:
        with store.ended_if_broken_off([run_id]):
            history = _train(job, name, num_workers, lineage, store, run_id)
        _write(folder, job, num_workers, lineage, history, resolved)
    shutil.rmtree(SCRATCH / "train", ignore_errors=True)
    final = history[max(history)]
    score = f"validation {job.task.score.title} {final['val_score']:.2f}"
    console.print(f"{params.train.steps} steps with {num_workers} workers, {score}")


History = dict[int, dict[str, float]]


def _train(job: TrainingJob, name: str, num_workers: int, lineage: Lineage, store: Store, run_id: str) -> History:
    """Runs the job on the cluster and leaves the averaged weights in the scratch folder's ``model.safetensors``."""
    from pipeline.cluster.session import ray_session

    params = job.params
    # What a killed run has told survives in this file, for the history of the run that goes on.
    journal = SCRATCH / "train" / f"{name}.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    history: History = _read(journal)
    if history:
        console.print(f"a run that was broken off goes on after step {max(history)} or its last checkpoint before")
    logged = store.last_step(run_id, "task_loss")
    with progress() as bars, ray_session(params.cluster.address, dashboard=False):
        from pipeline.cluster.training import TrainingRun, train_on_cluster

        bar = bars.add_task("training", total=params.train.steps, note=f"starting {num_workers} workers")

        def report(step: int, metrics: dict[str, float]) -> None:
            nonlocal logged
            history[step] = metrics
            with journal.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
            if step > logged:  # a worker that took a lost one's place tells some steps again
                try:
                    store.log(run_id, step, metrics)
                    logged = step
                except UserError as error:
                    logged = params.train.steps  # each further try would wait as long
                    reason = str(error).splitlines()[0]
                    console.print(f"{reason}\ntraining goes on; evaluate will log the steps that are missing")
            validation = f", validation {metrics['val_score']:.2f}" if "val_score" in metrics else ""
            bars.update(bar, completed=step, note=f"loss {metrics['task_loss']:.4f}{validation}")

        run = TrainingRun(name, (SCRATCH / "train").resolve(), num_workers, params.cluster.max_failures)
        checkpoint, final = train_on_cluster(job, run, report)
        _export(job, checkpoint, lineage, SCRATCH / MODEL.name)
    history.setdefault(params.train.steps, final)  # where the kill came between the last report and its journal
    return history


def _export(job: TrainingJob, checkpoint: Path, lineage: Lineage, path: Path) -> None:
    """The averaged weights of a checkpoint, as a model file."""
    from components.training.state import TrainingState
    from components.training.worker import Worker

    state = TrainingState(job.network(), job.penalty_weight(), job.settings(), Worker.current())
    state.load(checkpoint)
    metadata = {
        "network": job.network_settings(),
        "task": job.params.task,
        "lineage": lineage.tags(),
        "steps": state.step,
    }
    save_model(path, state.averaged.module, metadata)


def _write(
    folder: Path, job: TrainingJob, num_workers: int, lineage: Lineage, history: History, resolved: Resolved
) -> None:
    """model.safetensors, metrics.json, history.csv and the resolved params."""
    (SCRATCH / MODEL.name).replace(folder / MODEL.name)
    final = history[max(history)]
    metrics: dict[str, Any] = {
        "steps": job.params.train.steps,
        "images_per_step": job.params.train.batch_size,
        "num_workers": num_workers,
        **{key: final[key] for key in ("val_score", "task_loss", "penalty") if key in final},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / "lineage.json").write_text(json.dumps(lineage.tags(), indent=1) + "\n")
    (folder / "params.yaml").write_text(resolved.as_yaml())
    save_history(folder / "history.png", history, job.task.score.title)
    columns = list(dict.fromkeys(key for row in history.values() for key in row))
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        for step, row in sorted(history.items()):
            writer.writerow([step, *(row.get(column, "") for column in columns)])


def _read(journal: Path) -> History:
    """The reports of an earlier, killed run of the same name; a half-written last line is left out."""
    history: History = {}
    if journal.exists():
        for line in journal.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            history[int(row.pop("step"))] = row
    return history
