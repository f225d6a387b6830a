"""Which weights a sweep of `make run` may try: short trainings over a wide range, one JSON line each.

Every run is a trial of the shipped sweep (its steps, its network, its data) with another weight or penalty, in one
thread, one seed. `layers` and `output` are relative errors under quarter turns on the validation images.

    python benchmarks/first_sweep.py >> benchmarks/results/first_sweep.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from pipeline.config.schema import Params, load_params
from pipeline.measurement import validation_errors
from pipeline.paths import PACKED
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.tune import trial_params
from pipeline.training_job import TrainingJob

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3)
CASES = [("regular", 0.0), *[(penalty, weight) for penalty in ("regular", "rotation") for weight in WEIGHTS]]
DECAY = 0.8  # of the layer weights: the middle of what the sweep tries


def main() -> None:
    torch.set_num_threads(1)
    params = load_params(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(sys.stderr):
            fetch(params)
            preprocess(params)
        for penalty, weight in CASES:
            print(json.dumps({"penalty": penalty, "weight": weight, **run(trial_params(params), penalty, weight)}))
            sys.stdout.flush()


def run(params: Params, penalty: str, weight: float) -> dict[str, float]:
    """Score and errors of one training."""
    changes = {"weight": weight, "penalty": penalty, "layer_weights.decay": DECAY}
    job = TrainingJob(
        params.patched({f"equivariance.{key}": value for key, value in changes.items()}), PACKED.resolve()
    )
    state = job.run(lambda step, metrics: None, lambda state, metrics: None)
    errors = validation_errors(job, state.averaged.module.eval())
    found = {"score": state.history[-1]["val_score"], "layers": errors["layer_error"]}
    return {name: round(value, 4) for name, value in {**found, "output": errors["equivariance_error"]}.items()}


if __name__ == "__main__":
    main()
