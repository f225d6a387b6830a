"""How far exported files are from their models: prints one JSON line a network and format.

Each network has its published settings, or those that a task chooses by itself, and random weights: He's
initialisation, and normalisations with random statistics, so that every layer takes part. The figures are those that
``eqreg export`` measures and writes into the file. A format that cannot hold a network is a line with the reason. Each
line is added to benchmarks/results/export.jsonl as it comes; what is there is not measured again.

    python benchmarks/export.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.networks import build_network
from pipeline.commands.export import export
from pipeline.commands.exporting import FORMATS
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.model_file import save_model

SUFFIXES = {"onnx": "onnx", "pt2": "pt2", "aoti": "pt2", "chainner": "safetensors"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dncnn": ("denoise", {"name": "dncnn"}),
    "dncnn without normalisation": ("denoise", {"name": "dncnn", "depth": 17, "norm": "none"}),
    "unet": ("denoise", {"name": "unet"}),
    "unet of the tasks": ("denoise", {"name": "unet", "width": 24, "depth": 3}),
    "unet of the tasks, x2": ("super_resolution", {"name": "unet", "width": 24, "depth": 3, "scale": 2}),
    "unet of the tasks, image and mask": ("inpaint", {"name": "unet", "width": 24, "depth": 3, "in_channels": 4}),
    "unet of the tasks, CT": ("ct_mar", {"name": "unet", "width": 24, "depth": 3, "out_channels": 1}),
    "resnet": ("classify", {"name": "resnet", "classes": 100}),
    "prenet": ("derain", {"name": "prenet"}),
    "redcnn": ("denoise", {"name": "redcnn"}),
    "ffdnet": ("denoise", {"name": "ffdnet"}),
    "acdnet": ("ct_mar", {"name": "acdnet", "inputs": ["li", "image", "metal_mask"]}),
    "nafnet": ("denoise", {"name": "nafnet"}),
    "drunet": ("denoise", {"name": "drunet"}),
    "restormer": ("derain", {"name": "restormer"}),
}
"""Model -> its task and the settings of its network."""


RESULTS = Path(__file__).resolve().parent / "results/export.jsonl"


def main() -> None:
    console.quiet = True
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {(row["network"], row["format"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, (task, settings) in MODELS.items():
            missing = [kind for kind in FORMATS if (name, kind) not in done]
            if missing:
                save_model(Path("model.safetensors"), network(settings), {"network": settings, "task": task})
            for kind in missing:
                line = json.dumps({"benchmark": "export", "network": name, "format": kind, **row(kind)})
                with RESULTS.open("a") as file:
                    file.write(line + "\n")
                print(line, flush=True)


def network(settings: dict[str, Any]) -> nn.Module:
    """The network with random weights and statistics, in evaluation mode."""
    built, generator = build_network(**settings), torch.Generator().manual_seed(0)
    for module in built.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)  # type: ignore[arg-type]
    return built.eval()


def row(kind: str) -> dict[str, Any]:
    """What the command found, or why it refused."""
    out = Path(f"out.{SUFFIXES[kind]}")
    try:
        found = export("model.safetensors", kind, out).comparison
    except UserError as error:
        return {"refused": str(error).split(": ", 1)[1]}
    return {
        "largest_difference": float(f"{found.largest_difference:.2g}"),
        "largest_output": float(f"{found.largest_output:.3g}"),
        "equivariance_error": round(found.equivariance_error, 6),
        "equivariance_error_of_model": round(found.model_equivariance_error, 6),
        "least_side": found.least_side,
        "bytes": out.stat().st_size,
    }


if __name__ == "__main__":
    main()
