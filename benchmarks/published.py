"""Public weights in our networks, on public test images, under the conventions of the projects that published them.

The weights and the images are not ours to give: name the folders that hold them. A line is written for each image as it
comes, and what is there is not computed again; the last line is the mean.

    python -m benchmarks.published prenet WEIGHTS.pth --pairs FOLDER
    python -m benchmarks.published dncnn dncnn_25.pth --clean FOLDER --sigma 25 --grey \\
        --set depth=17 --set norm=none --set in_channels=1 --set out_channels=1

``--pairs`` holds ``norain-NNN.png`` beside ``rainy/rain-NNN.png``. ``--clean`` holds images to which noise is added:
``numpy.random.seed(0)`` for each image, standard deviation ``sigma / 255``, no clipping.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from components.evaluation.conventions import quality_by_convention
from components.inference.tiles import restore
from components.networks import build_network
from components.networks.weights import load_weights

RESULTS = Path(__file__).parent / "results/published.jsonl"


def pairs(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, degraded, clean), float32 ``(C, H, W)`` in [0, 1]."""
    for path in sorted(folder.glob("norain-*.png")):
        number = path.stem.removeprefix("norain-")
        yield number, image(folder / f"rainy/rain-{number}.png"), image(path)


def noisy(folder: Path, sigma: float, is_grey: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, degraded, clean), float32 ``(C, H, W)``; the clean image in [0, 1]."""
    for path in sorted(folder.glob("*.png")):
        clean = image(path, is_grey)
        np.random.seed(0)  # noqa: NPY002 - as the script that published the figure
        noise = np.random.normal(0, sigma / 255, clean.transpose(1, 2, 0).shape)  # noqa: NPY002
        yield path.stem, (clean + noise.transpose(2, 0, 1)).astype(np.float32), clean


def image(path: Path, is_grey: bool = False) -> np.ndarray:
    """Reads an 8-bit image as float32 ``(C, H, W)`` in [0, 1]."""
    values = np.asarray(Image.open(path).convert("L" if is_grey else "RGB"), np.float32) / 255
    return np.ascontiguousarray(values[None] if is_grey else values.transpose(2, 0, 1))


def main() -> None:
    """Measures, and writes a line for each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--clean", type=Path)
    parser.add_argument("--sigma", type=float, default=25)
    parser.add_argument("--grey", action="store_true")
    parser.add_argument("--title", required=True, help="of the row, such as 'PReNet, Rain100L'")
    parser.add_argument("--most", type=int, help="images at most; a row of fewer than all says so")
    arguments = parser.parse_args()
    settings: dict[str, Any] = {
        key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in arguments.set)
    }
    network = build_network(arguments.network, **settings).eval()
    load_weights(network, arguments.weights)
    source = pairs(arguments.pairs) if arguments.pairs else noisy(arguments.clean, arguments.sigma, arguments.grey)
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    done = {row["image"]: row for row in rows if row["title"] == arguments.title and "image" in row}
    for number, (name, degraded, clean) in enumerate(source):
        if arguments.most and number >= arguments.most:
            break
        if name in done:
            continue
        output = restore(network, torch.from_numpy(degraded), tile=4096)[None]
        found = quality_by_convention(output, torch.from_numpy(clean)[None])
        plain = {key: {metric: value.item() for metric, value in values.items()} for key, values in found.items()}
        done[name] = {"title": arguments.title, "image": name, **plain}
        _write(done[name])
    conventions = [key for key in next(iter(done.values())) if key not in ("title", "image")]
    means = {
        key: {metric: float(np.mean([row[key][metric] for row in done.values()])) for metric in ("psnr", "ssim")}
        for key in conventions
    }
    _write({"title": arguments.title, "images": len(done), "settings": settings, **means})


def _write(row: dict[str, Any]) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
