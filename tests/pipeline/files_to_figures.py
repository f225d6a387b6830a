"""From files on disk to a table of figures, in this process: each stage's own function, on tiny data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from components.data.packs import Pack
from components.tasks import task_class
from components.training.loop import Metrics
from components.training.state import TrainingState
from pipeline.commands.summary import summary
from pipeline.config.schema import load_params
from pipeline.model_file import load_model
from pipeline.paths import EVALUATE, MODEL, PACKED, TRAIN, replaced_folder
from pipeline.provenance.lineage import data_hash
from pipeline.provenance.training_fingerprint import TrainingFingerprint
from pipeline.stages.evaluate import evaluate
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.step_cost import recorded_step_cost
from pipeline.stages.train import write_results
from pipeline.training_job import TrainingJob
from tests.pipeline.conftest import Project

SMALL: dict[str, Any] = {
    "fetch.source": "source",
    "preprocess.crop": 48,
    "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
    "preprocess.splits": {"train": ["train*"], "val": ["val*"], "test": ["test*"]},
    "network.width": 8,
    "network.depth": 2,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.patch_size": 24,
    "train.warmup_steps": 1,
    "train.validate_every": 4,
    "train.report_every": 2,
    "train.checkpoint_every": 2,
    "equivariance.warmup_steps": 0,
    "tune.trials": 0,
    "evaluate.comparison_images": 1,
}


def _photographs(folder: Path) -> None:
    """Smooth coloured images of 100 x 90 pixels: three to train, one to validate, two to test."""
    rows, columns = np.mgrid[:100, :90]
    for number, name in enumerate(("train1", "train2", "train3", "val1", "test1", "test2")):
        waves = [np.sin(rows / (5 + number + c)) * np.cos(columns / (7 + 2 * c - number)) for c in range(3)]
        Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(folder / f"{name}.png")


def _slices(folder: Path) -> None:
    """Bodies of water with bone in them, in Hounsfield units, one patient each; 64 x 64 pixels of 6 mm."""
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    patients = ("train1", "train2", "val1", "test1")
    slices = []
    for number, _ in enumerate(patients):
        body = (rows / (0.6 + 0.02 * number)) ** 2 + (columns / 0.85) ** 2 < 1
        bone = (rows - 0.3) ** 2 + (columns - 0.1 * number) ** 2 < 0.02
        slices.append(np.where(bone, 900, np.where(body, 30, -1000)))
    np.savez(folder / "slices.npz", hu=np.array(slices, np.int16), patient=np.array(patients))


def _classes(folder: Path) -> None:
    """Two classes, bright and dark, in folders: 12 images of 32 x 32 of each."""
    random = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 60)):
        (folder / name).mkdir()
        for number in range(12):
            pixels = random.normal(level, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


DATA = {"images": _photographs, "ct": _slices, "labelled": _classes}
"""What a task reads -> what writes such files into a folder."""

OF_TASK: dict[str, dict[str, Any]] = {
    "ct_mar": {
        "tasks.ct_mar.degradation.size": 48,
        "tasks.ct_mar.out_of_distribution.copper.size": 48,
        "tasks.ct_mar.out_of_distribution.few_photons.size": 48,
    },
    "classify": {
        "preprocess.splits": {"train": [], "val": [], "test": []},
        "preprocess.remaining": {"val": 0.2, "test": 0.3},
    },
    "super_resolution": {
        "tasks.super_resolution.degradation.scale": 3,
        "tasks.super_resolution.out_of_distribution": {},
    },
}
"""Further changes of params.yaml for a task."""


class Trained(NamedTuple):
    """A run: the job, its checkpoints by their steps, and its last state."""

    job: TrainingJob
    checkpoints: dict[int, bytes]
    state: TrainingState


def run_from_files_to_figures(
    name: str, changes: dict[str, Any], project: Project, capsys: pytest.CaptureFixture[str]
) -> Trained:
    """Fetches, packs, trains, evaluates and summarises a task with these changes of params.yaml; checks each result."""
    source = Path("source")
    source.mkdir()
    DATA[task_class(name).input_kind](source)
    project.set(changes)
    params = load_params()
    fetch(params)
    preprocess(params)
    for part in (
        "train",
        "val",
        "test",
        *(f"out_of_distribution/{key}" for key in params.task_params.out_of_distribution),
    ):
        pack = Pack(PACKED / part)
        pack.verify()
        assert len(pack) >= 1

    job = TrainingJob(params, PACKED.resolve())
    job.check([1])
    history: dict[int, Metrics] = {}
    checkpoints: dict[int, bytes] = {}

    def report(step: int, metrics: Metrics) -> None:
        history[step] = metrics

    def checkpoint(state: TrainingState, metrics: Metrics) -> None:
        checkpoints[state.step] = state.to_bytes()

    state = job.run(report, checkpoint)
    assert list(history) == [2, 4]
    assert all(np.isfinite(value) for metrics in history.values() for value in metrics.values())
    assert {"val_score", "penalty", "task_loss"} <= history[4].keys()

    identity = TrainingFingerprint.of(job.deciding_params(), job.params.modules, data_hash(PACKED))
    with replaced_folder(TRAIN) as folder:
        write_results(folder, job, (1, 1), identity, state.result)
    loaded, metadata = load_model(MODEL)
    assert metadata.get("classes") == (["bright", "dark"] if name == "classify" else None)
    inputs, _, _ = next(batches(job))
    with torch.inference_mode():
        assert torch.equal(loaded(inputs), state.averaged.module.eval()(inputs))

    evaluate(params)
    metrics = json.loads((EVALUATE / "metrics.json").read_text())
    keys = [metric.key for metric in job.task.metrics]
    for group in ("test", "rotated"):
        for method in ("input", "classical", "restored"):
            assert all(np.isfinite(metrics[group][method][key]) for key in keys)
    others = set(params.task_params.out_of_distribution)
    if others:
        conditions = metrics["out_of_distribution"].get("conditions")
        assert set(conditions) == others if len(others) > 1 else conditions is None
    assert np.isfinite(metrics["equivariance_error"]["output"])
    assert len(list(EVALUATE.glob("comparison-*.png"))) == (0 if name == "classify" else 1)
    summary(params)
    cost = recorded_step_cost()
    assert cost is not None
    assert 0.2 < cost["step_cost_low"] <= cost["step_cost"] <= cost["step_cost_high"] < 20
    assert cost["rounds"] >= 3
    assert "times as long as one without" in capsys.readouterr().out
    return Trained(job, checkpoints, state)


def batches(job: TrainingJob) -> Iterator[tuple[Tensor, np.ndarray, Any]]:
    """(inputs, reference, entry) of each validation pair."""
    for entry, inputs, reference in job.task.pairs(Pack(PACKED / "val")):
        yield torch.from_numpy(inputs)[None], reference, entry
