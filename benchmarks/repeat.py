"""How far results repeat: prints one JSON line a run, as each ends.

Trains and evaluates with the shipped params and data (without the sweep), each time from nothing: twice as it is, then
with other instruction sets (oneDNN's own limit, and torch's), then with another number of workers. ``model`` is the
SHA-256 of the weights, ``validation`` and ``test`` are the scores in dB. ``SPREAD_DB`` of
``pipeline.provenance.same_bytes`` is at least the largest difference of a score to the first line. Each run takes about
two minutes on two cores.

    python benchmarks/repeat.py [--only NAME ...] >> benchmarks/results/repeat.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from pipeline.config.values import read_values, set_value
from pipeline.model_file import model_sha256

ROOT = Path(__file__).resolve().parents[1]
RUNS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "again": ({}, {}),
    "oneDNN AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {}),
    "oneDNN SSE41": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, {}),
    "oneDNN and torch AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, {}),
    "torch without vectors": ({"ATEN_CPU_CAPABILITY": "default"}, {}),
    "one worker": ({}, {"train.num_workers": 1}),
}
"""Name -> (environment, changes to params.yaml)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().only:
            environment, changes = RUNS[name]
            figures = run(Path(folder), environment, changes)
            instructions = torch.backends.cpu.get_cpu_capability()
            row = {"benchmark": "repeat", "run": name, "machine": instructions, "torch": torch.__version__, **figures}
            print(json.dumps(row), flush=True)


def run(folder: Path, environment: dict[str, str], changes: dict[str, Any]) -> dict[str, Any]:
    """The scores and the hash of a run from nothing; data are fetched and packed once."""
    values = read_values(ROOT / "params.yaml")
    for key, value in {"tune.trials": 0, **changes}.items():
        set_value(values, key, value)
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for made in (".eqreg", "results"):
        shutil.rmtree(folder / made, ignore_errors=True)
    variables = {
        **os.environ,
        **environment,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    first = [] if (folder / "data/packed").exists() else ["fetch", "preprocess"]
    for stage in [*first, "train", "evaluate"]:
        command = [sys.executable, "-m", "pipeline.cli", stage]
        subprocess.run(command, cwd=folder, env=variables, check=True, stdout=sys.stderr)
    test = json.loads((folder / "results/evaluate/metrics.json").read_text())["test"]["restored"]["psnr"]
    validation = json.loads((folder / "results/train/metrics.json").read_text())["val_score"]
    return {
        "model": model_sha256(folder / "results/train/model.safetensors")[:12],
        "validation": round(validation, 4),
        "test": round(test, 4),
    }


if __name__ == "__main__":
    main()
