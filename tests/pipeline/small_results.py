"""results/ and data/packed/val as the stages leave them, of a network that is off the truth by a known number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import nn

from components.data.packs import Entry, write_pack
from components.networks import build_network
from pipeline.config.values import read_values
from pipeline.model_file import model_sha256, save_model
from pipeline.provenance.training_fingerprint import TrainingFingerprint

NETWORK: dict[str, Any] = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
MULTIPLY_ADDS = 9 * (3 * 4 + 4 * 3)
"""Of `NETWORK`, for a pixel."""

SCORES = {"psnr": 20.0, "ssim": 0.5, "psnr_y": 21.0, "ssim_y": 0.6}
FIGURES: dict[str, Any] = {"test": {"input": SCORES, "classical": SCORES, "restored": SCORES | {"psnr": 30.0}}}


def write_validation(scenes: Sequence[int]) -> None:
    """data/packed/val with an image for each number, all of it (number + 1) / 10 bright, degraded by nothing."""
    folder = Path("data/packed/val")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    clean = [np.full((3, 8, 8), round(25.5 * (scene + 1)), dtype=np.uint8) for scene in scenes]
    entries = [Entry(f"i{n}", f"s{scene}", 8, 8) for n, scene in enumerate(scenes)]
    write_pack(folder, entries, clean, [image.astype(np.float32) / 255 for image in clean])


def write_results(levels: float, figures: dict[str, Any] = FIGURES) -> str:
    """results/ as train and evaluate leave them, the network so many grey levels off; gives the model's SHA-256."""
    network = build_network(**NETWORK)
    last = network.model[-1]  # type: ignore[index]
    nn.init.zeros_(last.weight)  # type: ignore[union-attr]
    nn.init.constant_(last.bias, levels / 255)  # type: ignore[union-attr]
    hashes = asdict(TrainingFingerprint("data", f"params{levels}", "code"))
    train, evaluate = Path("results/train"), Path("results/evaluate")
    for folder in (train, evaluate):
        folder.mkdir(parents=True, exist_ok=True)
    save_model(train / "model.safetensors", network, {"network": NETWORK, "hashes": hashes, "task": "denoise"})
    (train / "params.yaml").write_text(yaml.safe_dump(read_values(Path("params.yaml"))))
    (train / "history.csv").write_text("step,task_loss,val_score\n25,0.5,\n50,0.25,21.5\n")
    (evaluate / "metrics.json").write_text(json.dumps(figures))
    return model_sha256(train / "model.safetensors")
