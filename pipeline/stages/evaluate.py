"""Stage 5: measures the trained network on the test pairs and writes results/evaluate.

The folder then holds metrics, tables, figures and comparison images.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from components.data.packs import Pack
from components.evaluation.baselines import Baseline
from components.evaluation.classical import CandidateScore
from components.evaluation.comparison_images import save_comparison
from components.evaluation.crops import compared_crop
from components.evaluation.figures import save_equivariance_bars
from components.evaluation.protocol import Method, Row, headline, means_by_convention, summarise
from components.registry import import_place
from components.tasks import Task
from pipeline.config.schema import Params
from pipeline.console import console, progress
from pipeline.measurement import Draw, equivariance_by_layer, evaluation_packs, first_draws, measured, restored_by
from pipeline.model_file import load_model
from pipeline.paths import CROPS, EVALUATE, MODEL, PACKED, existing, replaced_folder
from pipeline.stages.step_cost import record_step_cost
from pipeline.tracking.runs.results import log_results
from pipeline.tracking.store import Store

MOST_CHOSEN_BY = 24  # largest number of validation pairs that are used to choose the classical baseline


def evaluate(params: Params) -> None:
    """Measures the input, the classical baseline and the network's output.

    Each is measured on the test images, on their quarter turns and on the out-of-distribution images.
    """
    network, _ = load_model(existing(MODEL, "train"))
    task = params.build_task().for_network(network)
    test, others = evaluation_packs(PACKED)
    with one_thread():  # several images are processed in parallel, one thread each
        _evaluate(params, network, task, test, others)
    console.print("writing the results to MLflow, and measuring the time of a training step with the penalty")
    store = Store(params.task)
    run_id = log_results(store, params.fetch.source)
    record_step_cost(store, run_id)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sets the number of torch's threads to 1 in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _evaluate(params: Params, network: nn.Module, task: Task, test: Pack, others: dict[str, Pack]) -> None:
    """Measures the methods on the packs and writes ``results/evaluate``."""
    num_workers = os.cpu_count() or 1
    console.print("choosing the classical baseline on the validation pairs")
    num_classes: int | None = getattr(network, "classes", None)
    classical, candidates, description = _classical(task, num_workers, num_classes)
    methods: dict[str, Method] = {
        "input": lambda inputs: task.untouched(inputs, num_classes),
        "classical": lambda inputs: classical(task.without_optional(inputs)),
        "restored": lambda inputs: restored_by(network, task, inputs, params.evaluate),
    }
    rows = _measure_all(test, others, methods, task, num_workers)
    draws = first_draws(test, task)
    errors = equivariance_by_layer(network, draws)
    metrics = summarise(rows, params.seed)
    metrics["classical_method"] = description
    if conventions := means_by_convention(rows):
        metrics["conventions"] = conventions
    metrics["equivariance_error"] = errors
    with replaced_folder(EVALUATE) as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        few = headline(metrics, task.score.key) | {"equivariance_error": errors["output"]}
        (folder / "summary.json").write_text(json.dumps(few, indent=1) + "\n")
        _write_tables(folder, rows, errors, candidates, task.score.key)
        save_equivariance_bars(folder / "equivariance.png", {"restored": errors})
        if not task.is_classification:
            _save_images(folder, draws, task, methods["restored"], params.evaluate.comparison_images)
    console.print(f"{len(rows)} cases measured; tables and pictures in {EVALUATE}")


def _save_images(folder: Path, draws: Sequence[Draw], task: Task, method: Method, num_compared: int) -> None:
    """Writes a crop of the first image of each scene, and comparison images of the first ``num_compared`` scenes."""

    def restored(inputs: np.ndarray) -> np.ndarray:
        return task.postprocess(method(inputs), inputs)

    (folder / CROPS).mkdir()
    for entry, inputs, clean in draws:
        crop = compared_crop(restored, task.as_image, inputs, clean)
        Image.fromarray(crop).save(folder / CROPS / f"{entry.name}.png")
    for entry, inputs, clean in draws[:num_compared]:
        columns = {"input": task.as_image(inputs), "restored": restored(inputs), "truth": clean}
        save_comparison(folder / f"comparison-{entry.scene}.png", columns)


def _classical(task: Task, num_workers: int, num_classes: int | None) -> Baseline:
    """Chooses the classical baseline of the task on at most ``MOST_CHOSEN_BY`` validation pairs."""
    validation = Pack(PACKED / "val")
    chosen_by = np.unique(np.linspace(0, len(validation) - 1, min(len(validation), MOST_CHOSEN_BY)).astype(int))
    pairs = [(task.without_optional(inputs), clean) for _, inputs, clean in task.pairs(validation, chosen_by.tolist())]
    choose = import_place(task.baseline)
    baseline: Baseline = choose(task, Pack(PACKED / "train"), pairs, num_classes, num_workers)
    return baseline


def _measure_all(
    test: Pack, others: Mapping[str, Pack], methods: Mapping[str, Method], task: Task, num_workers: int
) -> list[Row]:
    rows = []
    total = 4 * len(test) + sum(len(pack) for pack in others.values())
    with progress() as bars:
        bar = bars.add_task("evaluating", total=total, note="")
        for row in measured(test, others, methods, task, num_workers):
            rows.append(row)
            bars.update(bar, advance=1, note=f"{row.group} {row.condition}")
        bars.update(bar, note="")
    return rows


def _write_tables(
    folder: Path, rows: Sequence[Row], errors: Mapping[str, float], candidates: Sequence[CandidateScore], score: str
) -> None:
    """Writes three tables.

    images.csv has one row for each image and condition, equivariance.csv one row for each layer, and classical.csv one
    row for each candidate of the classical baseline.
    """
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [(method, metric) for method, scores in rows[0].scores.items() for metric in scores]
        scored = [(method, score) for method in rows[0].scores]
        titles = [f"{of}_score" for of, _ in scored] + [f"{of}_{metric}" for of, metric in columns]
        writer.writerow(["group", "condition", "image", "scene", *titles])
        for row in rows:
            figures = [f"{row.scores[method][metric]:.4f}" for method, metric in scored + columns]
            writer.writerow([row.group, row.condition, row.image, row.scene, *figures])
    with (folder / "equivariance.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "relative_residual"])
        writer.writerows([name, f"{error:.6f}"] for name, error in errors.items())
    with (folder / "classical.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "settings", "validation_score"])
        writer.writerows([c.baseline.name, dict(c.baseline.settings), f"{c.score:.4f}"] for c in candidates)
