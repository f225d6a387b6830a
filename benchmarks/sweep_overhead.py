"""What a sweep trial costs beside its training: prints one JSON line, in seconds.

Runs a real sweep of short trials, one at a time, in a temporary folder with the built-in photographs: Ray Tune, a study
in SQLite, MLflow and checkpoints, as ``eqreg tune`` does it. ``between`` is the time from the end of one trial's
training to the beginning of the next one's; ``around`` is what a trial takes from its proposal to its record in the
study, less its training: reports and checkpoints are counted, validations are not. Medians over the trials after the
first, which pays for the start of a process.

    python benchmarks/sweep_overhead.py [--trials 8] > benchmarks/results/sweep_overhead.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import optuna

from pipeline.config.schema import Params, check_params
from pipeline.config.values import read_values, set_value
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.tune import tune

BOUND_S = 3.0
ROOT = Path(__file__).resolve().parents[1]
CHANGES = {
    "fetch.source": "builtin",
    "network.width": 8,
    "tune.steps": 60,
    "tune.grace_steps": 30,
    "tune.concurrent": 1,
    "tune.study": "overhead",
    "tune.study_storage": None,
    "cluster.address": "local",
    "cluster.storage": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    arguments = parser.parse_args()
    values = read_values(ROOT / "params.yaml")
    for key, value in {**CHANGES, "tune.trials": arguments.trials}.items():
        set_value(values, key, value)
    params = check_params(values, "params.yaml")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["GIT_CEILING_DIRECTORIES"] = str(Path(folder).parent)
        os.chdir(folder)
        figures = measure(params, values)
    print(json.dumps({"benchmark": "sweep_overhead", **figures, "bound": BOUND_S}))


def measure(params: Params, values: dict[str, object]) -> dict[str, object]:
    """Runs the sweep in the working directory."""
    Path("params.yaml").write_text(json.dumps(values))  # JSON is YAML
    Path("tune_spaces").symlink_to(ROOT / "tune_spaces")
    fetch(params)
    preprocess(params)
    tune(params)
    trials = optuna.load_study(study_name="overhead", storage="sqlite:///.eqreg/tune/studies.db").get_trials()
    spans = [trial.user_attrs["progress"]["clock"] for trial in trials]
    between = [later[0] - earlier[1] for earlier, later in pairwise(spans)]
    around = [
        (trial.datetime_complete - trial.datetime_start).total_seconds() - (end - begin - aside)
        for trial, (begin, end, aside) in zip(trials, spans, strict=True)
    ]
    return {
        "trials": len(spans),
        "training": round(statistics.median(end - start - aside for start, end, aside in spans[1:]), 3),
        "between": round(statistics.median(between[1:]), 3),
        "around": round(statistics.median(around[1:]), 3),
        "slowest_between": round(max(between[1:]), 3),
        "first_around": round(around[0], 3),
    }


if __name__ == "__main__":
    main()
