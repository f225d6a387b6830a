"""Is the synthetic rain as hard as real light rain? Statistics of measured streak layers, beside the model's.

    python benchmarks/rain_statistics.py --rain100l FOLDER [--clean FOLDER] [--params FILE]

FOLDER holds ``rain/rain-NNN.png`` and ``norain/norain-NNN.png``, of which ``rain = clip(norain + streak)``. One
JSON line a statistic and source: the least, 5 %, median, 95 % and largest value over the images. The sources are
``real`` and each set of rain under ``tasks.derain`` in the params file, drawn on the clean images, saved as 8 bit
and read back by the same code. Legend: H rows, W columns, C = 3 channels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy import fft, ndimage

from components.data.readers.images import is_image_name, read_image, to_float, to_uint8
from components.degradations.rain import Rain
from components.evaluation.metrics import luma, psnr

QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
TILE = 80  # pixels: side of the squares whose orientations are compared within an image


def streak_layer(degraded: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The streak in [0, 1] and whether it is known, both ``(H, W)``, from two ``(3, H, W)`` uint8 images.

    The streak is the same in all channels, so any channel that is not clipped at 255 gives it.
    """
    difference = degraded.astype(np.int16) - clean
    return difference.max(axis=0).clip(0) / 255, degraded.min(axis=0) < 255


def structure_tensor(streak: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``(3, H, W)``: squared and mixed derivatives (rows^2, columns^2, rows columns); 0 near unknown pixels."""
    rows = ndimage.gaussian_filter(streak, 1.0, order=(1, 0))
    columns = ndimage.gaussian_filter(streak, 1.0, order=(0, 1))
    trusted = ndimage.binary_erosion(known, iterations=4, border_value=1)
    return np.stack([rows * rows, columns * columns, rows * columns]) * trusted


def orientation(tensor: np.ndarray) -> tuple[float, float]:
    """Angle of the streaks in degrees from the vertical, as in `Rain`, and coherence (0 none, 1 parallel lines)."""
    rows, columns, mixed = tensor.reshape(3, -1).sum(axis=1)
    across = 0.5 * np.arctan2(2 * mixed, columns - rows)  # of the gradient, from the column axis towards the rows
    coherence = np.hypot(columns - rows, 2 * mixed) / (rows + columns)
    return float(-np.degrees(across)), float(coherence)


def tile_spread(tensor: np.ndarray, angle: float) -> float:
    """Standard deviation in degrees of the orientations of the image's tiles, weighted by their gradients."""
    tiles = [
        tensor[:, row : row + TILE, column : column + TILE]
        for row in range(0, tensor.shape[1] - TILE + 1, TILE)
        for column in range(0, tensor.shape[2] - TILE + 1, TILE)
    ]
    weights = [float(tile[:2].sum()) for tile in tiles]
    turns = [orientation(tile)[0] - angle if weight else 0.0 for tile, weight in zip(tiles, weights, strict=True)]
    turns = [(turn + 90) % 180 - 90 for turn in turns]
    return float(np.sqrt(np.average(np.square(turns), weights=weights)))


def extents(streak: np.ndarray, angle: float) -> tuple[float, float]:
    """Full width at half height of the autocovariance along and across the streaks, in pixels."""
    centred = streak - streak.mean()
    shape = [fft.next_fast_len(2 * side) for side in streak.shape]
    spectrum = np.abs(fft.rfft2(centred, shape)) ** 2
    covariance = np.roll(fft.irfft2(spectrum, shape), (shape[0] // 2, shape[1] // 2), (0, 1))
    lags = np.arange(0, min(streak.shape) / 2, 0.25)

    def width(row_step: float, column_step: float) -> float:
        points = [shape[0] // 2 + lags * row_step, shape[1] // 2 + lags * column_step]
        profile = ndimage.map_coordinates(covariance, points, order=1) / covariance.max()
        below = int(np.argmax(profile < 0.5))
        return float(2 * lags[below]) if below else float(2 * lags[-1])

    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    return width(cosine, sine), width(-sine, cosine)


def statistics(degraded: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """Every statistic of one ``(3, H, W)`` uint8 pair."""
    streak, known = streak_layer(degraded, clean)
    seen = streak[known]
    tensor = structure_tensor(streak, known)
    angle, coherence = orientation(tensor)
    length, width = extents(streak * known, angle)
    quality = psnr(luma(torch.from_numpy(degraded[None] / 255)), luma(torch.from_numpy(clean[None] / 255)))
    return {
        "coverage": float((seen > 0).mean()),
        "coverage_above_0.02": float((seen > 0.02).mean()),
        "coverage_above_0.1": float((seen > 0.1).mean()),
        "mean": float(seen.mean()),
        "rain_mean": float(seen[seen > 0].mean()),
        **{f"rain_p{percent}": float(np.percentile(seen[seen > 0], percent)) for percent in (50, 75, 90, 99)},
        "maximum": float(seen.max()),
        "angle": angle,
        "angle_absolute": abs(angle),
        "coherence": coherence,
        "angle_spread_of_tiles": tile_spread(tensor, angle),
        "length": length,
        "width": width,
        "psnr_y": float(quality),
    }


def real_pairs(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(degraded, clean) of every measured pair."""
    for path in sorted((folder / "rain").glob("rain-*.png")):
        yield read_image(path), read_image(folder / "norain" / f"no{path.name}")


def drawn_pairs(rain: Rain, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(degraded, clean): the model's rain on every image of the folder, as an 8-bit file would keep it."""
    for index, path in enumerate(sorted(path for path in folder.iterdir() if is_image_name(path))):
        clean = read_image(path)
        yield to_uint8(rain(to_float(clean), np.random.default_rng(index))), clean


def report(source: str, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Prints one JSON line a statistic."""
    images = [statistics(degraded, clean) for degraded, clean in pairs]
    for name in images[0]:
        values = np.quantile([image[name] for image in images], list(QUANTILES.values()))
        figures = {key: round(float(value), 4) for key, value in zip(QUANTILES, values, strict=True)}
        print(json.dumps({"statistic": name, "source": source, "images": len(images), **figures}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rain100l", type=Path, required=True, help="folder with rain/ and norain/")
    parser.add_argument("--clean", type=Path, help="folder of clean images for the model's rain (default: norain/)")
    parser.add_argument("--params", type=Path, default=Path(__file__).parents[1] / "params.yaml")
    arguments = parser.parse_args()
    derain = yaml.safe_load(arguments.params.read_text())["tasks"]["derain"]
    report("real", real_pairs(arguments.rain100l))
    for name, settings in {"degradation": derain["degradation"], **derain["out_of_distribution"]}.items():
        report(name, drawn_pairs(Rain(**settings), arguments.clean or arguments.rain100l / "norain"))


if __name__ == "__main__":
    main()
