"""How near are the inputs of a slice without sinogram to those of a measured one, and what does a network make of them?

    python -m benchmarks.ct_restore [--slices FILE.npz [--count 8] [--model model.safetensors --packed FOLDER]]
                                    [--sizes 208 416]

One JSON line a figure; all are root mean squares in HU of pixels at least two away from the metal. A scan of a slice
with drawn metal is simulated, and reconstructed from its sinogram without clipping. This image, rounded to whole HU
and cut off at -1024 and 3071, is what a scanner would store. ``components/inference/ct.py`` gets it and nothing else.

- ``phantom``: discs of water, bone and metal, with the true sinogram's LI image as the reference.
- ``slice``: FILE holds ``hu`` (N, H, H) and ``pixel_spacing_mm`` (N, 2). Each slice once with drawn metal.
  ``artifact``, ``li`` (of the measured sinogram) and ``own_li`` (of the stored image) against the slice without metal,
  ``own_li_to_li`` between both.
- with a model of the task ct_mar: ``network`` (inputs of the measured sinogram), ``own_network`` (what ``eqreg
  restore`` does). FOLDER is the ``data/packed`` of its training; only slices of its test images are used.
- ``mean``: the mean of each over the slices of a size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from components.data.packs import Pack
from components.degradations.ct import (
    WATER,
    WHITE,
    FanBeam,
    MetalArtifactCase,
    MetalArtifacts,
    filtered_back_projection,
    scan,
)
from components.inference.ct import metal_inputs, restored_hounsfield

CLEAN = 2500  # HU; a slice with more holds metal
HU_PER_GREY = 1000 * WHITE / WATER
STORED = (-1024, 3071)  # HU, of 12 bits

Network = Callable[[np.ndarray], np.ndarray]


def compared(case: MetalArtifactCase, geometry: FanBeam, network: Network | None) -> dict[str, float]:
    """The figures of one case."""
    image = filtered_back_projection(torch.from_numpy(case.sinogram)[None], geometry)[0].numpy()
    stored = np.rint(1000 * (image / WATER - 1)).clip(*STORED).astype(np.float32)
    inputs, metal, _ = metal_inputs(stored, None, None)
    outside = ~ndimage.binary_dilation((case.mask[0] > 0) | metal, iterations=2)

    def rms(first: np.ndarray, second: np.ndarray) -> float:
        return round(HU_PER_GREY * float(np.sqrt(((first - second)[outside].astype(np.float64) ** 2).mean())), 2)

    clean, true = case.clean[0], case.linear_interpolation[0]
    figures = {
        "metal_pixels": int(case.mask.sum()),
        "found_pixels": int(metal.sum()),
        "artifact": rms(case.artifact[0], clean),
        "li": rms(true, clean),
        "own_li": rms(inputs[0], clean),
        "own_li_to_li": rms(inputs[0], true),
    }
    if network is not None:
        figures["network"] = rms(network(case.inputs)[0].clip(0, 1), clean)
        restored = restored_hounsfield(stored, network(inputs)[0], metal)
        figures["own_network"] = rms((WATER * (1 + restored / 1000) / WHITE).clip(0, 1), clean)
    return figures


def phantom(size: int) -> Iterator[dict[str, object]]:
    """Discs: a body of water, bone and two pieces of metal; without noise."""

    def disc(row: float, column: float, radius: float) -> np.ndarray:
        rows, columns = (np.indices((size, size)) + 0.5) / size
        return (size * (radius - np.hypot(rows - row, columns - column)) + 0.5).clip(0, 1).astype(np.float32)

    hu = 1000 * (disc(0.5, 0.5, 0.42) - 1) + 800 * disc(0.65, 0.5, 0.06)
    coverage = np.maximum(disc(0.42, 0.38, 0.03), disc(0.58, 0.63, 0.02))
    geometry = replace(FanBeam().scaled(size), field_cm=36.0)
    for material in ("titanium", "iron"):
        case = scan(hu, coverage, material, geometry, 1e12, np.random.default_rng(0))
        yield {"figure": "phantom", "size": size, "material": material, **compared(case, geometry, None)}


def slices(
    path: Path, count: int, size: int, network: Network | None, packed: Path | None
) -> Iterator[dict[str, object]]:
    """Drawn metal in slices of patients, evenly chosen of those without metal of their own."""
    with np.load(path) as file:
        hu, spacings = file["hu"], file["pixel_spacing_mm"]
    clean = np.flatnonzero(hu.max(axis=(1, 2)) < CLEAN)
    if packed is not None:  # entries are named FILE-SLICE-DRAW
        tested = {int(entry.name.split("-")[-2]) for entry in Pack(packed / "test").entries}
        clean = np.array([number for number in clean if number in tested])
    chosen = clean[np.unique(np.linspace(0, len(clean) - 1, count).round().astype(int))]
    rows = []
    for seed, number in enumerate(chosen):
        scanner, spacing = MetalArtifacts(FanBeam().scaled(size)), float(spacings[number, 0])
        case = scanner.simulate(hu[number], spacing, np.random.default_rng(seed))
        geometry = replace(scanner.geometry, field_cm=spacing / 10 * hu.shape[-1])
        rows.append(compared(case, geometry, network))
        yield {"figure": "slice", "size": size, "slice": int(number), "material": case.material, **rows[-1]}
    means = {key: round(float(np.mean([row[key] for row in rows])), 2) for key in rows[0]}
    yield {"figure": "mean", "size": size, "slices": len(rows), **means}


def loaded(path: Path) -> Network:
    """The network of a model file, on whole slices."""
    from pipeline.model_file import load_model

    network, metadata = load_model(path)
    if metadata["task"] != "ct_mar":
        raise SystemExit(f"--model {path}: a model of the task {metadata['task']}, not of ct_mar")

    def run(inputs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = network(torch.from_numpy(inputs)[None])[0].numpy()
        return output

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[208, 416])
    arguments = parser.parse_args()
    network = loaded(arguments.model) if arguments.model else None
    for size in arguments.sizes:
        figures = [phantom(size)]
        if arguments.slices:
            figures.append(slices(arguments.slices, arguments.count, size, network, arguments.packed))
        for group in figures:
            for figure in group:
                print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
