"""Are the simulated metal artifacts as strong as the published ones, and how long does a slice take?

    python -m benchmarks.ct_artifacts [--samples FOLDER] [--slices FILE.npz] [--count 8] [--threads 2]

One JSON line a figure. Always: seconds a slice at four sizes, on a body of ellipses, and the errors of projector and
reconstruction against the closed form. FOLDER is searched for SynDeepLesion cases (``gt.h5`` beside ``NUMBER.h5``):
PSNR of their own artifact and LI images and of ours, simulated from their clean image with their metal, found where
their artifact image is above 1 / cm; and how near both sinograms and images are. FILE holds ``hu`` (N, H, H) and
``pixel_spacing_mm`` (N, 2): PSNR with drawn metal, with the bodies' true size and with the standard field. PSNR is of
images in [0, 1] (0.5 / cm is 1), outside of the metal, and of all pixels where the name says "whole".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch
from scipy import ndimage

from components.degradations.ct import WATER, WHITE, FanBeam, MetalArtifactCase, MetalArtifacts, scan
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection
from tests.components.degradations.ct.phantoms import ellipses, image_of, sinogram_of

METAL = 1.0  # 1/cm, more than bone
CLEAN = 2500  # HU; a slice with more holds metal


def psnr(image: np.ndarray, reference: np.ndarray, where: np.ndarray) -> float:
    """In dB of the pixels of two ``(S, S)`` images that a boolean one chooses; the largest value is 1."""
    return float(-10 * np.log10(((image - reference)[where] ** 2).mean()))


def phantom_errors() -> Iterator[dict[str, object]]:
    """Root mean squares relative to the largest value, at the standard geometry."""
    geometry = FanBeam()
    shapes = ellipses(geometry.size)
    exact, image = sinogram_of(shapes, geometry), image_of(shapes, geometry.size)
    projected = project(torch.from_numpy(image)[None], geometry)[0].numpy()
    restored = filtered_back_projection(torch.from_numpy(exact).float()[None], geometry)[0].numpy()
    flat = ndimage.maximum_filter(image, 7) - ndimage.minimum_filter(image, 7) < 1e-6
    yield {"figure": "projector_error", "value": float(np.sqrt(((projected - exact) ** 2).mean()) / exact.max())}
    yield {"figure": "projector_sum_error", "value": float(projected.sum() / exact.sum() - 1)}
    yield {"figure": "fbp_error_flat", "value": float(np.sqrt(((restored - image)[flat] ** 2).mean()) / image.max())}
    yield {"figure": "fbp_error_whole", "value": float(np.sqrt(((restored - image) ** 2).mean()) / image.max())}


def seconds(threads: int) -> Iterator[dict[str, object]]:
    """The best of three slices, after a first one."""
    hu = (image_of(ellipses(512), 512) / WATER - 1) * 1000
    for size in (64, 128, 256, 416):
        artifacts = MetalArtifacts(geometry=FanBeam().scaled(size))
        times = []
        for seed in range(4):
            start = time.perf_counter()
            artifacts.simulate(hu, None, np.random.default_rng(seed))
            times.append(time.perf_counter() - start)
        yield {"figure": "seconds_a_slice", "size": size, "threads": threads, "value": min(times[1:])}


def strength(case: MetalArtifactCase) -> dict[str, float]:
    """PSNR of a case."""
    without = case.mask[0] == 0
    whole = np.ones_like(without)
    return {
        "artifact_db": psnr(case.artifact[0], case.clean[0], without),
        "li_db": psnr(case.linear_interpolation[0], case.clean[0], without),
        "artifact_whole_db": psnr(case.artifact[0], case.clean[0], whole),
        "li_whole_db": psnr(case.linear_interpolation[0], case.clean[0], whole),
    }


def samples(folder: Path) -> Iterator[dict[str, object]]:
    """Published cases beside ours with the same tissue and metal."""
    for truth in sorted(folder.rglob("gt.h5")):
        with h5py.File(truth) as file:
            clean = file["image"][()]
        for path in sorted(set(truth.parent.glob("*.h5")) - {truth}):
            with h5py.File(path) as file:
                published = {name: file[name][()] for name in file}
            metal = published["ma_CT"] > METAL
            trace = published["metal_trace"] > 0
            own = MetalArtifactCase(
                **{
                    name: (np.clip(image / WHITE, 0, 1)[None])
                    for name, image in (
                        ("clean", clean),
                        ("artifact", published["ma_CT"]),
                        ("linear_interpolation", published["LI_CT"]),
                    )
                },
                mask=metal.astype(np.float32)[None],
                trace=trace,
                sinogram=published["ma_sinogram"],
                interpolated_sinogram=published["LI_sinogram"],
                material="published",
            )
            case_name = str(path.relative_to(folder))
            yield {"figure": "sample", "case": case_name, "by": "published", "area": int(metal.sum()), **strength(own)}
            hu = ((clean / WATER - 1) * 1000).astype(np.float32)
            for material in ("titanium", "iron"):
                case = scan(hu, metal.astype(np.float32), material, FanBeam(), 2e7, np.random.default_rng(0))
                yield {
                    "figure": "sample",
                    "case": case_name,
                    "by": material,
                    **strength(case),
                    "published_artifact_db": psnr(case.artifact[0], own.artifact[0], ~metal),
                    "published_li_db": psnr(case.linear_interpolation[0], own.linear_interpolation[0], ~metal),
                }
            ours = linear_interpolation(torch.from_numpy(own.sinogram), torch.from_numpy(trace)).numpy()
            yield {
                "figure": "sample_li_sinogram_largest_difference",
                "case": case_name,
                "value": float(np.abs(ours - own.interpolated_sinogram).max()),
            }
            image = filtered_back_projection(torch.from_numpy(own.interpolated_sinogram)[None], FanBeam())[0].numpy()
            difference = image - published["LI_CT"]
            yield {
                "figure": "sample_fbp_difference",
                "case": case_name,
                "mean": float(difference.mean()),
                "deviation": float(difference.std()),
            }


def slices(path: Path, count: int) -> Iterator[dict[str, object]]:
    """Drawn metal in slices of patients, evenly chosen of those without metal of their own."""
    with np.load(path) as file:
        hu, spacings = file["hu"], file["pixel_spacing_mm"]
    clean = np.flatnonzero(hu.max(axis=(1, 2)) < CLEAN)
    chosen = clean[np.linspace(0, len(clean) - 1, count).round().astype(int)]
    for field in ("standard", "true"):
        for seed, number in enumerate(chosen):
            spacing = float(spacings[number, 0]) if field == "true" else None
            case = MetalArtifacts().simulate(hu[number], spacing, np.random.default_rng(seed))
            yield {
                "figure": "slice",
                "slice": int(number),
                "field": field,
                "material": case.material,
                "area": int(case.mask.sum()),
                **strength(case),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--slices", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = [phantom_errors(), seconds(arguments.threads)]
    if arguments.samples:
        figures.append(samples(arguments.samples))
    if arguments.slices:
        figures.append(slices(arguments.slices, arguments.count))
    for group in figures:
        for figure in group:
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
