"""A trained model on the 60 pairs of Rain100L, which it never saw: PSNR and SSIM of Y, degraded and restored.

    python benchmarks/rain100l.py FOLDER [--model results/train/model.safetensors]

FOLDER holds rain/rain-NNN.png and norain/norain-NNN.png. Prints one JSON line; pairs of the same scene are one cluster.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from components.data.readers.images import read_image, to_float
from components.evaluation.metrics import quality
from components.evaluation.statistics import clustered_interval
from components.inference.tiles import restore
from pipeline.model_file import load_model

# Numbers of pairs that show the same scene, found by comparing the clean images.
SAME_SCENE = {25: 6, 36: 7, 58: 9, 69: 10, 80: 11, 91: 12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=Path("results/train/model.safetensors"))
    arguments = parser.parse_args()
    network, metadata = load_model(arguments.model)
    before, after, scenes = [], [], []
    for path in sorted((arguments.folder / "rain").glob("rain-*.png")):
        number = int(path.stem.split("-")[1])
        rain, truth = (
            torch.from_numpy(to_float(read_image(file)))
            for file in (path, arguments.folder / "norain" / f"no{path.name}")
        )
        before.append(quality(rain[None], truth[None]))
        after.append(quality(restore(network, rain)[None], truth[None]))
        scenes.append(SAME_SCENE.get(number, number))
    gain = [a["psnr_y"].item() - b["psnr_y"].item() for a, b in zip(after, before, strict=True)]
    figures = {
        f"{name}_{metric}": float(np.mean([row[metric].item() for row in rows]))
        for name, rows in (("input", before), ("restored", after))
        for metric in ("psnr_y", "ssim_y")
    }
    interval = clustered_interval(gain, scenes)
    print(
        json.dumps(
            {
                "benchmark": "rain100l", "task": metadata["task"], "pairs": len(gain), **figures,
                "gain_psnr_y": vars(interval), "pairs_worse": sum(value < 0 for value in gain),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
