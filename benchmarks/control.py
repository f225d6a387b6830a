"""What the penalty changes: the run of params.yaml beside its control (weight 0, same pairs, steps and seed).

Needs data/packed (`dvc repro preprocess`). Trains both in this process, one after the other, on the validation and test
pairs of the pack; prints one JSON line a run and seed, then one line with the differences, clustered by scene.

    python benchmarks/control.py --seeds 1 [--set train.steps=300 ...]
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from components.data.packs import Pack
from components.equivariance import equivariance_error
from components.evaluation.metrics import quality
from components.evaluation.statistics import clustered_interval
from pipeline.config.schema import check_params
from pipeline.config.values import read_values, set_value
from pipeline.training_job import TrainingJob


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    values = read_values(Path("params.yaml"))
    for change in arguments.set:
        key, _, text = change.partition("=")
        set_value(values, key, yaml.safe_load(text))
    differences, scenes = [], []
    for seed in range(arguments.seeds):
        scores = {}
        for arm in ("penalty", "control"):
            changed = copy.deepcopy(values)
            set_value(changed, "seed", seed)
            if arm == "control":
                set_value(changed, "equivariance.weight", 0.0)
            scores[arm], figures = run(changed)
            print(json.dumps({"benchmark": "control", "arm": arm, "seed": seed, **figures}), flush=True)
        differences += [a - b for a, b in zip(scores["penalty"], scores["control"], strict=True)]
        scenes += [entry.scene for entry in Pack(Path("data/packed/test")).entries]
    interval = clustered_interval(differences, scenes)
    print(json.dumps({"benchmark": "control", "test_psnr_penalty_minus_control": vars(interval)}))


def run(values: dict[str, Any]) -> tuple[list[float], dict[str, float]]:
    """(PSNR of every test image, figures of the run)."""
    job = TrainingJob(check_params(values, "params.yaml"), Path("data/packed").resolve())
    network = job.run(lambda step, metrics: None, lambda state, metrics: None).averaged.module.eval()
    psnr, errors = [], []
    with torch.inference_mode():
        for _, degraded, clean in Pack(Path("data/packed/test")).pairs():
            images = torch.from_numpy(degraded)[None]
            psnr.append(quality(network(images), torch.from_numpy(clean)[None])["psnr"].item())
            errors.append(equivariance_error(network, images))
    means = {name: float(np.sqrt(np.mean([e[name] ** 2 for e in errors]))) for name in errors[0]}
    hidden = list(means)[:-2]  # the last layer and the output are trivial fields
    return psnr, {
        "weight": values["equivariance"]["weight"],
        "steps": values["train"]["steps"],
        "test_psnr": float(np.mean(psnr)),
        "hidden_residual": float(np.mean([means[name] for name in hidden])),
        "output_residual": means["output"],
    }


if __name__ == "__main__":
    main()
