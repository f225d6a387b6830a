"""Stage 5: the trained network and the test pairs -> results/evaluate: figures, tables and pictures."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.transform import resize
from torch import nn

from components.data.packs import Pack
from components.evaluation.classical import (
    CANDIDATES_BY_TASK,
    CandidateScore,
    choose_classical,
    super_resolution_candidates,
)
from components.evaluation.figures import save_equivariance_bars
from components.evaluation.protocol import Method, Row, summarise
from components.evaluation.strips import save_strip
from components.tasks import Task
from pipeline.console import console, progress
from pipeline.job import load_model
from pipeline.measure import equivariance_by_layer, evaluation_packs, first_draws, measured, restored_by
from pipeline.params import Params
from pipeline.paths import EVALUATE, MODEL, PACKED, existing, replaced_folder
from pipeline.step_cost import record_step_cost
from pipeline.tracking.results import log_results
from pipeline.tracking.store import Store

MOST_CHOSEN_BY = 24  # validation pairs by which the classical baseline is chosen


def evaluate(params: Params) -> None:
    """Measures input, classical baseline and restored images on test, its rotations and out of distribution."""
    network, _ = load_model(existing(MODEL, "train"))
    task = params.build_task()
    test, others = evaluation_packs(PACKED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images are worked on side by side
    num_workers = os.cpu_count() or 1
    console.print("choosing the classical baseline on the validation pairs")
    classical, candidates, description = _classical(task, num_workers, getattr(network, "classes", None))
    methods: dict[str, Method] = {
        "input": _untouched(task, network),
        "classical": classical,
        "restored": lambda inputs: restored_by(network, task, inputs, params.evaluate),
    }
    rows = _measure_all(test, others, methods, task, num_workers)
    draws = first_draws(test, task)
    errors = equivariance_by_layer(network, draws)
    metrics = summarise(rows, params.seed)
    metrics["classical_method"] = description
    metrics["equivariance_error"] = errors
    with replaced_folder(EVALUATE) as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        _write_tables(folder, rows, errors, candidates, task.score.key)
        save_equivariance_bars(folder / "equivariance.png", {"restored": errors})
        for entry, inputs, clean in draws[: params.evaluate.pictures] if task.reads != "labelled" else []:
            restored = task.finished(methods["restored"](inputs), inputs)
            columns = {"input": task.as_image(inputs), "restored": restored, "truth": clean}
            save_strip(folder / f"strip-{entry.scene}.png", columns)
    store = Store(params.task)
    run_id = log_results(store)
    console.print(f"{len(rows)} cases measured; tables and pictures in {EVALUATE}")
    torch.set_num_threads(threads)
    record_step_cost(store, run_id)


def _classical(
    task: Task, num_workers: int, num_classes: int | None
) -> tuple[Method, list[CandidateScore], dict[str, object]]:
    """The classical method that is best on validation pairs, all candidates, and what it is in words."""
    if task.reads == "labelled":
        from components.evaluation.recognition import MOST_IMAGES, fit

        train = Pack(PACKED / "train")
        chosen = np.random.default_rng(0).permutation(len(train))[:MOST_IMAGES]
        images = np.stack([_thumbnail(train.clean(index)) for index in chosen])
        labels = np.array([train.entries[index].label for index in chosen])
        recogniser = fit(images, labels, num_classes=num_classes)
        return (
            (lambda inputs: recogniser(_thumbnail(inputs)[None])[0]),
            [],
            {"name": "gradients and colours, logistic regression"},
        )
    validation = Pack(PACKED / "val")
    chosen_by = np.unique(np.linspace(0, len(validation) - 1, min(len(validation), MOST_CHOSEN_BY)).astype(int))
    pairs = [(inputs, clean) for _, inputs, clean in task.pairs(validation, chosen_by.tolist())]

    def score(restored: np.ndarray, inputs: np.ndarray, clean: np.ndarray) -> float:
        tensors = (torch.from_numpy(np.array(image, order="C"))[None] for image in (restored, inputs, clean))
        return task.scores(*tensors).item()

    known = super_resolution_candidates(task.scale) if task.scale > 1 else CANDIDATES_BY_TASK[task.name]
    best, candidates = choose_classical(pairs, candidates=known, score=score, num_workers=num_workers)
    return best, candidates, {"name": best.name, **best.settings}


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """``(3, H, W)`` -> ``(3, 32, 32)``, for which the classical recognition is made."""
    return image if image.shape[-2:] == (32, 32) else resize(image, (3, 32, 32), anti_aliasing=True)


def _untouched(task: Task, network: nn.Module) -> Method:
    """The input itself, as an image; where classes are asked for, always the first one."""
    if task.reads == "labelled":
        scores = np.zeros(int(network.classes), dtype=np.float32)  # type: ignore[arg-type]
        return lambda inputs: scores
    return task.as_image


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
    """A row for each image and condition in images.csv, layer in equivariance.csv, candidate in classical.csv."""
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
