"""Stage 5: the trained network and the test pairs -> results/evaluate: figures, tables and pictures."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from components.data.packs import Entry, Pack
from components.equivariance import equivariance_error
from components.evaluation.classical import CandidateScore, choose_classical
from components.evaluation.figures import save_equivariance_bars, save_strip
from components.evaluation.protocol import METRICS, Method, Row, cases, measure, summarise
from components.evaluation.restoration import restore
from pipeline.console import console, progress
from pipeline.job import load_model
from pipeline.params import Evaluate, Params
from pipeline.paths import EVALUATE, MODEL, PACKED, existing, replaced_folder
from pipeline.preprocess import OUT_OF_DISTRIBUTION
from pipeline.tracking.results import log_results
from pipeline.tracking.store import Store

Draw = tuple[Entry, np.ndarray, np.ndarray]


def evaluate(params: Params) -> None:
    """Measures input, classical baseline and restored images on test, its rotations and out of distribution."""
    network, _ = load_model(existing(MODEL, "train"))
    test = Pack(PACKED / "test")
    others = {folder.name: Pack(folder) for folder in sorted((PACKED / OUT_OF_DISTRIBUTION).glob("*"))}
    torch.set_num_threads(1)  # images are worked on side by side
    num_workers = os.cpu_count() or 1
    console.print("choosing the classical baseline on the validation pairs")
    validation = [(degraded, clean) for _, degraded, clean in Pack(PACKED / "val").pairs()]
    classical, candidates = choose_classical(validation, num_workers=num_workers)
    methods: dict[str, Method] = {
        "input": lambda degraded: degraded,
        "classical": classical,
        "restored": lambda degraded: _restored(network, degraded, params.evaluate),
    }
    rows = _measure_all(test, others, methods, num_workers)
    draws = first_draws(test)
    errors = _equivariance(network, draws)
    metrics = summarise(rows, params.seed)
    metrics["classical_method"] = {"name": classical.name, **classical.settings}
    metrics["equivariance_error"] = errors
    with replaced_folder(EVALUATE) as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
        _write_tables(folder, rows, errors, candidates)
        save_equivariance_bars(folder / "equivariance.png", {"restored": errors})
        for entry, degraded, clean in draws[: params.evaluate.pictures]:
            columns = {"input": degraded, "restored": methods["restored"](degraded), "truth": clean}
            save_strip(folder / f"strip-{entry.scene}.png", columns)
    log_results(Store(params.task))
    console.print(f"{len(rows)} cases measured; tables and pictures in {EVALUATE}")


def first_draws(pack: Pack) -> list[Draw]:
    """The first pair of every scene."""
    found: dict[str, Draw] = {}
    for entry, degraded, clean in pack.pairs():
        found.setdefault(entry.scene, (entry, degraded, clean))
    return list(found.values())


def _restored(network: nn.Module, degraded: np.ndarray, settings: Evaluate) -> np.ndarray:
    image = restore(network, torch.from_numpy(degraded), tile=settings.tile, overlap=settings.overlap)
    return image.numpy()


def _measure_all(test: Pack, others: Mapping[str, Pack], methods: Mapping[str, Method], num_workers: int) -> list[Row]:
    rows = []
    total = 4 * len(test) + sum(len(pack) for pack in others.values())
    with ThreadPoolExecutor(num_workers) as pool, progress() as bars:
        bar = bars.add_task("evaluating", total=total, note="")
        for row in pool.map(lambda case: measure(case, methods), cases(test, others)):
            rows.append(row)
            bars.update(bar, advance=1, note=f"{row.group} {row.condition}")
        bars.update(bar, note="")
    return rows


def _equivariance(network: nn.Module, draws: Sequence[Draw]) -> dict[str, float]:
    """Relative residual of every layer and of the output, over the first draw of each scene and all turns."""
    squares: dict[str, list[float]] = {}
    for _, degraded, _ in draws:
        for name, error in equivariance_error(network, torch.from_numpy(degraded)[None]).items():
            squares.setdefault(name, []).append(error**2)
    return {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}


def _write_tables(
    folder: Path, rows: Sequence[Row], errors: Mapping[str, float], candidates: Sequence[CandidateScore]
) -> None:
    """A row for each image and condition in images.csv, layer in equivariance.csv, candidate in classical.csv."""
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        methods = list(rows[0].scores)
        columns = [f"{method}_{metric}" for method in methods for metric in METRICS]
        writer.writerow(["group", "condition", "image", "scene", *columns])
        for row in rows:
            figures = [f"{row.scores[method][metric]:.4f}" for method in methods for metric in METRICS]
            writer.writerow([row.group, row.condition, row.image, row.scene, *figures])
    with (folder / "equivariance.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", "relative_residual"])
        writer.writerows([name, f"{error:.6f}"] for name, error in errors.items())
    with (folder / "classical.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "settings", "validation_psnr"])
        writer.writerows([c.baseline.name, dict(c.baseline.settings), f"{c.psnr:.4f}"] for c in candidates)
