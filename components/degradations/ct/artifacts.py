"""Simulation of metal artifacts: from a clean slice to the inputs and the reference of a network.

Legend: H rows and columns of a slice, S rows and columns of an image, V views, D bins, F fine bins per bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from components.degradations.ct.attenuation import (
    BONE_PER_WATER,
    DENSITIES,
    WATER,
    WHITE,
    transmission,
    water_equivalent,
)
from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.metal import LARGEST_AREA, SMALLEST_AREA, body_of, draw_metal
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection

FINE = 3  # rays per bin where there is metal
SOFT_TISSUE, BONE = 100.0, 1500.0  # HU: only water up to the first, only bone from the second, a mixture between them
# Odds. Iron is close to steel and cobalt-chrome; gold and copper occur in teeth.
MATERIALS = {"titanium": 0.7, "iron": 0.3}


@dataclass(frozen=True)
class MetalArtifactCase:
    """A slice with metal in it.

    Images are ``(1, S, S)`` float32 in [0, 1]: the attenuation divided by 0.5 per cm and clipped.

    Attributes:
        clean: the slice without metal.
        artifact: filtered back-projection of the measured sinogram.
        linear_interpolation: filtered back-projection of the sinogram interpolated across the metal trace (LI).
        mask: 1 where the metal coverage of the pixel is at least 1/2, or at least half of the highest coverage of the
            slice if that is lower; else 0.
        trace: ``(V, D)`` bool, bins in which a ray meets metal.
        sinogram: ``(V, D)`` float32, line integrals of attenuation, without unit.
        interpolated_sinogram: the sinogram interpolated across the metal trace, likewise.
        material: name of the metal.

    Example:
        >>> image, sinogram = np.zeros((1, 16, 16), dtype=np.float32), np.zeros((8, 12), dtype=np.float32)
        >>> case = MetalArtifactCase(image, image + 1, image, image, sinogram > 0, sinogram, sinogram, "iron")
        >>> case.inputs.shape, float(case.inputs[1].mean())  # LI, artifact image, mask
        ((3, 16, 16), 1.0)
    """

    clean: np.ndarray
    artifact: np.ndarray
    linear_interpolation: np.ndarray
    mask: np.ndarray
    trace: np.ndarray
    sinogram: np.ndarray
    interpolated_sinogram: np.ndarray
    material: str

    @property
    def inputs(self) -> np.ndarray:
        """Inputs of the networks: LI, the artifact image and the mask, ``(3, S, S)`` float32."""
        return np.concatenate([self.linear_interpolation, self.artifact, self.mask])


@dataclass(frozen=True)
class MetalArtifacts:
    """Simulation of a CT scan of a patient with an implant; see `scan` for the physics.

    Attributes:
        geometry: geometry of the scanner and the image; `FanBeam.scaled` returns smaller ones.
        photons: number of photons that reach a bin through air, per view.
        area: range of the metal's area in pixels of a 416 x 416 image, log-uniform (`metal.draw_metal`).
        materials: odds of each metal: titanium, iron, copper or gold.

    Raises:
        ValueError: a setting is impossible.

    Example:
        >>> scanner = MetalArtifacts(FanBeam(size=32, views=16, detectors=48), area=(400, 800))
        >>> hu = np.full((32, 32), -1000.0)
        >>> hu[4:28, 4:28] = 40  # a body of soft tissue in air
        >>> case = scanner.simulate(hu, pixel_spacing_mm=None, generator=np.random.default_rng(0))
        >>> case.inputs.shape, case.clean.shape, bool(case.mask.any())
        ((3, 32, 32), (1, 32, 32), True)
    """

    geometry: FanBeam = field(default_factory=FanBeam)
    photons: float = 2e7
    area: tuple[float, float] = (16, 2400)
    materials: Mapping[str, float] = field(default_factory=lambda: dict(MATERIALS))

    def __post_init__(self) -> None:
        if not 1 <= self.photons <= 1e12:
            raise ValueError(f"photons {self.photons}: use 1 .. 1e12, usually 1e5 .. 2e7")
        low, high = self.area
        if not SMALLEST_AREA <= low <= high <= LARGEST_AREA:
            raise ValueError(
                f"area {low}..{high}: use {SMALLEST_AREA} <= low <= high <= {LARGEST_AREA} pixels of 416 x 416"
            )
        unknown = sorted(set(self.materials) - set(DENSITIES))
        if unknown:
            raise ValueError(f"materials '{unknown[0]}' is no metal of the table: use {', '.join(DENSITIES)}")
        odds = list(self.materials.values())
        if not odds or min(odds) < 0 or not 0 < sum(odds) < np.inf:
            raise ValueError(f"materials {dict(self.materials)}: give a metal with odds above 0, and none below")

    def simulate(
        self, hu: np.ndarray, pixel_spacing_mm: float | None, generator: np.random.Generator
    ) -> MetalArtifactCase:
        """Simulate a scan of a clean slice with metal of a random shape, size, position and material.

        Args:
            hu: ``(H, H)`` in Hounsfield units, any H; without metal. Values below -1000 (outside the scan) are set to
                air.
            pixel_spacing_mm: pixel spacing of this slice. If None, the slice fills the field of the geometry, whatever
                the true size of the body is. The published data sets do the same.
            generator: source of the random metal and of the photon noise.

        Raises:
            ValueError: the slice is not square, not finite, or shows no body; or the spacing is not positive.
        """
        hu = np.asarray(hu)
        if hu.ndim != 2 or hu.shape[0] != hu.shape[1]:
            raise ValueError(f"slice {hu.shape}: use a square one (H, H); pad with -1000 or crop it")
        if not np.isfinite(hu).all():
            raise ValueError("the slice has values that are not finite: replace them, by -1000 outside of the scan")
        geometry = self.geometry
        if pixel_spacing_mm is not None:
            if not 0 < pixel_spacing_mm < np.inf:
                raise ValueError(f"pixel_spacing_mm {pixel_spacing_mm}: use mm above 0, or None if it is unknown")
            geometry = replace(geometry, field_cm=float(pixel_spacing_mm) / 10 * hu.shape[0])
        resized = resize(hu, geometry.size)
        coverage = draw_metal(body_of(resized), self.area, generator)
        odds = np.array(list(self.materials.values()), dtype=np.float64)
        material = list(self.materials)[generator.choice(len(odds), p=odds / odds.sum())]
        return scan(resized, coverage, material, geometry, self.photons, generator)


def resize(hu: np.ndarray, size: int) -> np.ndarray:
    """Resize a slice to ``(S, S)`` float32 by antialiased bilinear interpolation; values below air are set to air."""
    pixels = torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32)).clamp(min=-1000)[None, None]
    if hu.shape[0] != size:
        pixels = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return pixels[0, 0].numpy()


def scan(
    hu: np.ndarray,
    coverage: np.ndarray,
    material: str,
    geometry: FanBeam,
    photons: float,
    generator: np.random.Generator,
) -> MetalArtifactCase:
    """Simulate the measurement of a slice with metal, and reconstruct the images.

    1. A pixel of tissue is a mixture of water and bone (`tissue_densities`). The metal displaces the tissue in
       proportion to its coverage. The mass paths of water, bone and metal along the rays are computed once.
    2. The transmission of a ray is ``T = sum_E N(E) exp(-sum_m mu_m(E) L_m)`` over the spectrum (beam hardening). The
       T of a bin is the mean over its rays. A bin has three rays where metal is near, because metal often covers only
       a part of a bin (partial volume).
    3. The detector counts ``Poisson(photons T)``. A count of 0 becomes 1.
    4. ``-log(counts / photons)`` is converted to a length of water (`water_equivalent`) times 0.192 / cm. Water alone
       therefore gives no artifact.
    5. The images are filtered back-projections of the result.

    Scatter is not simulated.

    Args:
        hu: the slice in Hounsfield units, ``(S, S)``.
        coverage: share of each pixel that metal fills, ``(S, S)`` in [0, 1].
        material: name of the metal.
        geometry: geometry of the scanner and the image.
        photons: number of photons that reach a bin through air, per view.
        generator: source of the photon noise.

    Source: Zhang and Yu, *Convolutional Neural Network Based Metal Artifact Reduction in X-Ray Computed Tomography*,
    IEEE TMI 2018.

    Example:
        >>> hu, coverage = np.full((16, 16), 40, dtype=np.float32), np.zeros((16, 16), dtype=np.float32)
        >>> coverage[7:9, 7:9] = 1
        >>> geometry = FanBeam(size=16, views=8, detectors=24)
        >>> case = scan(hu, coverage, "titanium", geometry, photons=1e6, generator=np.random.default_rng(0))
        >>> case.artifact.shape, case.sinogram.shape, int(case.mask.sum())
        ((1, 16, 16), (8, 24), 4)
    """
    water, bone = tissue_densities(hu)
    tissue = np.stack([water, bone]) * (1 - coverage)
    water_paths, bone_paths = project(torch.from_numpy(tissue.astype(np.float32)), geometry)
    fine = replace(geometry, detectors=FINE * geometry.detectors)
    metal_paths = project(torch.from_numpy(coverage)[None] * DENSITIES[material], fine)[0].unflatten(-1, (-1, FINE))
    trace = (metal_paths > 0).any(dim=-1)  # (V, D) of (V, D, F)

    shares = transmission({"water": water_paths, "bone": bone_paths})
    rays = {"water": water_paths[trace][:, None], "bone": bone_paths[trace][:, None]}  # (n, 1)
    metal_rays = metal_paths[trace]  # (n, F)
    shares[trace] = transmission(
        {**{name: paths.expand_as(metal_rays) for name, paths in rays.items()}, material: metal_rays}
    ).mean(dim=-1)

    counts = np.maximum(generator.poisson(photons * shares.double().numpy()), 1)
    sinogram = torch.from_numpy(WATER * water_equivalent(-np.log(counts / photons))).float()
    interpolated = linear_interpolation(sinogram, trace)
    artifact, corrected = filtered_back_projection(torch.stack([sinogram, interpolated]), geometry)
    return MetalArtifactCase(
        clean=shown(torch.from_numpy(WATER * (1 + hu / 1000))),
        artifact=shown(artifact),
        linear_interpolation=shown(corrected),
        mask=(coverage >= max(min(0.5, coverage.max() / 2), 1e-6)).astype(np.float32)[None],
        trace=trace.numpy(),
        sinogram=sinogram.numpy(),
        interpolated_sinogram=interpolated.numpy(),
        material=material,
    )


def tissue_densities(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the densities of water and of cortical bone in g/cm^3, each of the shape of the slice.

    The share of bone in a pixel's attenuation grows linearly from 0 at 100 HU to 1 at 1500 HU. At 70 keV both together
    attenuate ``(1 + HU / 1000)`` times as much as water, as the Hounsfield unit is defined.
    """
    attenuations = np.maximum(1 + hu / 1000, 0)
    bone = np.clip((hu - SOFT_TISSUE) / (BONE - SOFT_TISSUE), 0, 1)
    return attenuations * (1 - bone), attenuations * bone / BONE_PER_WATER


def shown(attenuation: Tensor) -> np.ndarray:
    """Scale an image of attenuation in 1/cm to [0, 1]: ``clip(attenuation / 0.5, 0, 1)``, ``(1, S, S)``."""
    return (attenuation / WHITE).clamp(0, 1).float().numpy()[None]
