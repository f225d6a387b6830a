"""Where the start of a training goes: prints one JSON line a figure, in seconds.

Each round, in turn: the import of the params and of the train stage in a new Python; a Ray of this machine, started
and ended; in a Ray that runs already, a training of one step with two workers as Ray Train has it, and with
``pipeline.cluster.quick_trainer``, from the call to the first report. Medians and ranges over the rounds; the ratio is
the median of the rounds' ratios. Nothing else should run on the machine.

    python benchmarks/start.py [--rounds 5] > benchmarks/results/start.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.cluster.session import ray_session
from pipeline.config.schema import Params, check_params
from pipeline.config.values import read_values, set_value
from pipeline.paths import PACKED
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.storage.open_store import open_store
from pipeline.storage.staged_packs import deliver
from pipeline.training_job import TrainingJob

ROOT = Path(__file__).resolve().parents[1]
CHANGES = {
    "fetch.source": "builtin",
    "preprocess.crop": 64,
    "network.width": 8,
    "train.steps": 1,
    "train.num_workers": 2,
    "cluster.address": "local",
    "cluster.storage": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    values = read_values(ROOT / "params.yaml")
    for key, value in CHANGES.items():
        set_value(values, key, value)
    params = check_params(values, "params.yaml")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.chdir(folder)
        fetch(params)
        preprocess(params)
        figures = measure(params, rounds)
    for name, seconds in figures.items():
        print(json.dumps({"benchmark": "start", "what": name, "rounds": rounds, **parallel_map(seconds)}))
    ratios = [quick / usual for quick, usual in zip(figures["quick training"], figures["training"], strict=True)]
    print(
        json.dumps(
            {"benchmark": "start", "what": "quick training / training", "rounds": rounds, **parallel_map(ratios)}
        )
    )


def measure(params: Params, rounds: int) -> dict[str, list[float]]:
    """Name -> seconds of each round."""
    figures: dict[str, list[float]] = {}

    def add(name: str, seconds: float) -> None:
        figures.setdefault(name, []).append(round(seconds, 2))

    for _ in range(rounds):
        for module in ("torch", "pipeline.config.schema", "pipeline.stages.train", "pipeline.cluster.training"):
            add(f"import {module}", timed(lambda module=module: imported(module)))
        add("ray session", timed(lambda: session(params)))
    with ray_session(params.cluster, dashboard=False):
        first_report(params, is_quick=True)  # the first one compiles bytecode and fills the page cache
        for _ in range(rounds):
            add("training", first_report(params, is_quick=False))
            add("quick training", first_report(params, is_quick=True))
    return figures


def imported(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def session(params: Params) -> None:
    with ray_session(params.cluster, dashboard=False):
        pass


def first_report(params: Params, *, is_quick: bool) -> float:
    """Seconds from the call to the first report of two workers."""
    from ray.train.torch import TorchTrainer

    from pipeline.cluster import training
    from pipeline.cluster.resources import WorkerResources

    def usual(*arguments: Any, is_local: bool, **options: Any) -> TorchTrainer:
        return TorchTrainer(*arguments, **options)

    name = uuid.uuid4().hex[:8]
    artifact_store = open_store(str(Path(".eqreg").resolve()))
    run = training.TrainingRun(
        name,
        (2, 2),
        WorkerResources(1),
        params.cluster,
        deliver(PACKED, None, "unused"),
        artifact_store,
        f"train/{name}",
        0,
    )
    reported: list[float] = []
    quick = training.QuickTrainer
    training.QuickTrainer = quick if is_quick else usual  # type: ignore[assignment, misc]
    start = time.monotonic()
    try:
        job = TrainingJob(params, PACKED.resolve())
        training.train_on_cluster(job, run, lambda step, metrics: reported.append(time.monotonic()))
    finally:
        training.QuickTrainer = quick  # type: ignore[misc]
    return reported[0] - start


def timed(function: Callable[[], object]) -> float:
    start = time.monotonic()
    function()
    return time.monotonic() - start


def parallel_map(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 2), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
