"""Every task, trained for some minutes on real data, beside its classical baseline: one JSON line a task.

    python benchmarks/tasks.py --data FOLDER [--minutes 2] [--only TASK ...]

FOLDER holds public data sets under their own names: BSDS500/{train,val,test}, Rain100L/{rain,norain}, PolyU_cropped,
CT_TCGA, CIFAR100, kernels. Each task runs the project's own stages (fetch, preprocess, train, evaluate) with the
shipped params.yaml but for what SETTINGS names. The number of steps is what fits into the minutes at the speed of a
short run before it. Figures are of test images, the interval a bootstrap over scenes; one seed, so no evidence about
the method.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.values import read_values, set_value

ROOT = Path(__file__).resolve().parents[1]
PILOT_STEPS = 60

PHOTOGRAPHS: dict[str, Any] = {
    "fetch.source": "photographs",
    "preprocess.splits": {"train": ["train__*"], "val": ["val__*"], "test": ["test__*"]},
    "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "denoise": PHOTOGRAPHS,
    "denoise, grey": PHOTOGRAPHS | {"preprocess.colour": "grey"},
    "denoise, real pairs": {
        "fetch.source": "{data}/PolyU_cropped",
        "preprocess.pairs": "polyu",
        "tasks.denoise.out_of_distribution": {},
    },
    "derain, real pairs": {
        "fetch.source": "{data}/Rain100L",
        "preprocess.pairs": "auto",
        "preprocess.unusable": "skip",
    },
    "derain, given streaks": PHOTOGRAPHS
    | {
        "fetch.auxiliary": "{data}/Rain100L",
        "tasks.derain.degradation": {"streaks": "auxiliary"},
        "tasks.derain.out_of_distribution": {},
    },
    "deblur": PHOTOGRAPHS,
    "deblur, given kernels": PHOTOGRAPHS
    | {"fetch.auxiliary": "{data}/kernels/kernels_12.mat", "tasks.deblur.degradation.kernels": "auxiliary"},
    "super_resolution": PHOTOGRAPHS,
    "inpaint": PHOTOGRAPHS,
    "jpeg": PHOTOGRAPHS,
    "ct_mar": {
        "fetch.source": "{data}/CT_TCGA",
        "preprocess.unusable": "skip",
        "preprocess.realizations": {"train": 4, "val": 1, "test": 2},
        "preprocess.remaining": {"val": 0.15, "test": 0.25},
    },
    "classify": {
        "fetch.source": "{data}/CIFAR100/train_100per.npz",
        "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
        "preprocess.remaining": {"val": 0.05, "test": 0.1},
        "train.batch_size": 32,
        "network.width": 32,
        "train.learning_rate": 0.002,
        "equivariance.weight": 0.02,
    },
}
NUM_PHOTOGRAPHS = {"train": 200, "val": 12, "test": 24}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), metavar="TASK", help="rows of SETTINGS")
    parser.add_argument("--keep", type=Path, help="keep the pictures of each task in this folder")
    arguments = parser.parse_args()
    for title in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            figures = run(title, Path(folder), arguments.data.resolve(), arguments.minutes)
            print(json.dumps(figures), flush=True)
            if arguments.keep:
                for picture in (Path(folder) / "results/evaluate").glob("*.png"):
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(picture, arguments.keep / f"{title.replace(', ', '-')}-{picture.name}")


def run(title: str, folder: Path, data: Path, minutes: float) -> dict[str, Any]:
    """The figures of one row."""
    if SETTINGS[title] is PHOTOGRAPHS or SETTINGS[title].get("fetch.source") == "photographs":
        _select(data / "BSDS500", folder / "photographs")
    values = read_values(ROOT / "params.yaml")
    task = title.split(",")[0]
    for key, value in {"task": task, "tune.trials": 0, "train.validate_every": PILOT_STEPS, **SETTINGS[title]}.items():
        set_value(values, key, value.format(data=data) if isinstance(value, str) else value)
    set_value(values, "train.steps", PILOT_STEPS)
    _write(folder, values)
    for stage in ("fetch", "preprocess", "train"):
        _stage(stage, folder)
    steps = int(60 * minutes * _images_per_second(folder) / values["train"]["batch_size"])
    set_value(values, "train.steps", steps)
    set_value(values, "train.validate_every", max(1, steps // 4))
    set_value(values, "train.checkpoint_every", max(1, steps // 2))
    _write(folder, values)
    start = time.monotonic()
    _stage("train", folder)
    seconds = time.monotonic() - start
    _stage("evaluate", folder)
    metrics = json.loads((folder / "results/evaluate/metrics.json").read_text())
    return {"task": title, "steps": steps, "train_seconds": round(seconds), **_figures(metrics, task)}


def _figures(metrics: dict[str, Any], task: str) -> dict[str, Any]:
    from components.tasks import task_class

    shown: dict[str, Any] = {"scenes": metrics["test"]["scenes"], "classical": metrics["classical_method"]}
    for metric in task_class(task).metrics:
        row = {method: round(metrics["test"][method][metric.key], 4) for method in ("input", "classical", "restored")}
        gain = metrics["test"]["gain"][metric.key]["over_classical"]
        row["over_classical"] = [None if gain[end] is None else round(gain[end], 4) for end in ("mean", "low", "high")]
        shown[metric.key] = row
    score = task_class(task).metrics[0].key
    for group in ("rotated", "out_of_distribution"):
        if group in metrics:
            shown[group] = {method: round(metrics[group][method][score], 3) for method in ("classical", "restored")}
    return shown


def _images_per_second(folder: Path) -> float:
    """The median over the reports of the short run but the first, which waits for everything to start; from MLflow."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        query = "select value from metrics where key = 'train/images_per_second' order by step"
        speeds = [float(value) for (value,) in database.execute(query)]
    speeds = sorted(speeds[1:] or speeds)
    return speeds[len(speeds) // 2]


def _select(source: Path, target: Path) -> None:
    for part, number in NUM_PHOTOGRAPHS.items():
        (target / part).mkdir(parents=True)
        for file in sorted((source / part).glob("*.jpg"))[:number]:
            shutil.copyfile(file, target / part / file.name)


def _write(folder: Path, values: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def _stage(name: str, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "pipeline.cli", name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
