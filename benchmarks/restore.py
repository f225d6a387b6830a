"""CPU time of ``eqreg restore`` of one small image: prints one JSON line a command, in seconds.

User and system time of the command and the processes that it started, medians over the rounds; each round runs every
command once, in turn. The import of torch alone is measured beside them, because other work on the machine raises all
figures alike. The network has the architecture of params.yaml and random weights, which change no time. The registry is
an SQLite store.

    python benchmarks/restore.py [--rounds 5] > benchmarks/results/restore.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from components.networks import build_network
from pipeline.config.schema import load_params
from pipeline.model_file import save_model
from pipeline.tracking.models.registry import CHAMPION, Registry
from pipeline.tracking.store import Store

ROOT = Path(__file__).resolve().parents[1]
EQREG = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SIZE = (96, 128)
RESTORE = ("restore", "photo.png", "clean.png", "--model")
COMMANDS: dict[str, tuple[tuple[str, ...], int, float | None]] = {
    "import torch": ((), 0, None),
    "restore, local file": ((*RESTORE, "model.safetensors"), 0, 4.0),
    "restore, registry": ((*RESTORE, "models:/eqreg-denoise@champion"), 0, 7.0),
    "--help": (("--help",), 0, 1.0),
    "restore, refused: no such image": (("restore", "nowhere.png", "clean.png"), 2, 1.0),
    "restore, refused: no such model": ((*RESTORE, "nowhere.safetensors"), 2, 1.0),
}
"""What is run -> arguments of eqreg, exit code, and the bound in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    params = load_params(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        settings = {**params.network.model_dump(), "name": params.network_name, "in_channels": 3, "out_channels": 3}
        network = build_network(**settings)
        save_model(Path("model.safetensors"), network, {"network": settings, "task": "denoise"})
        registry = Registry(Store("denoise"))
        version = registry.add(registry.store.begin("run", {}, {}), network, "none", {}, Path("model.safetensors"))
        registry.point(CHAMPION, version.number)
        pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("photo.png")
        seconds: dict[str, list[float]] = {what: [] for what in COMMANDS}
        for _ in range(rounds + 1):
            for what, (arguments, code, _) in COMMANDS.items():
                seconds[what].append(cpu_seconds(arguments, code))
    for what, values in seconds.items():
        measured = values[1:]  # the first round compiles bytecode and fills the page cache
        print(
            json.dumps(
                {
                    "benchmark": "restore",
                    "what": what,
                    "cpu_seconds": round(statistics.median(measured), 2),
                    "range": [round(min(measured), 2), round(max(measured), 2)],
                    "rounds": rounds,
                    "bound": COMMANDS[what][2],
                }
            )
        )


def cpu_seconds(arguments: tuple[str, ...], code: int) -> float:
    """User and system time of ``eqreg`` with these arguments and its descendants; of the import of torch for none."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*EQREG, *arguments] if arguments else [sys.executable, "-c", "import torch"]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if finished.returncode != code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {finished.returncode}\n{finished.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
