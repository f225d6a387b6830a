"""Metal artifacts as a scanner makes them: from a clean slice to what networks get and should restore.

Legend: H rows and columns of a slice, S of an image, V views, D bins, F fine bins a bin.
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
    transmission,
    water_equivalent,
)
from components.degradations.ct.geometry import FanBeam
from components.degradations.ct.interpolation import linear_interpolation
from components.degradations.ct.metal import LARGEST_AREA, SMALLEST_AREA, body_of, draw_metal
from components.degradations.ct.projection import project
from components.degradations.ct.reconstruction import filtered_back_projection

WHITE = 0.5  # 1/cm: attenuation shown as 1, that is 1604 HU; the scale of the SynDeepLesion data is this unit, 1/cm
FINE = 3  # rays a bin where there is metal
SOFT_TISSUE, BONE = 100.0, 1500.0  # HU: all water up to the first, all bone from the second, a mixture between
MATERIALS = {"titanium": 0.7, "iron": 0.3}  # odds; iron is near steel and cobalt-chrome, gold and copper are in teeth


@dataclass(frozen=True)
class MetalArtifactCase:
    """A slice with metal in it. Images are ``(1, S, S)`` float32 in [0, 1], attenuation / 0.5 per cm, clipped.

    Attributes:
        clean: the slice without metal.
        artifact: filtered back-projection of the measured sinogram.
        linear_interpolation: that of the sinogram interpolated across the metal trace (LI).
        mask: 1 where metal fills half of the pixel or more, or half of what it fills of the fullest pixel; else 0.
        trace: ``(V, D)`` bool, bins in which a ray meets metal.
        sinogram, interpolated_sinogram: ``(V, D)`` float32, line integrals of attenuation, without unit.
        material: of the metal.
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
        """What networks take: LI, the artifact image and the mask, ``(3, S, S)`` float32."""
        return np.concatenate([self.linear_interpolation, self.artifact, self.mask])


@dataclass(frozen=True)
class MetalArtifacts:
    """A CT scan of a patient with an implant, simulated; see `scan` for the physics.

    Attributes:
        geometry: of the scanner and the image; `FanBeam.scaled` gives smaller ones.
        photons: that reach a bin through air, per view.
        area: range of the metal's area in pixels of a 416 x 416 image, log-uniform (`metal.draw_metal`).
        materials: odds of each metal, of titanium, iron, copper and gold.

    Raises:
        ValueError: a setting is impossible.
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
        """Metal of a drawn shape, size, place and material in a clean slice, scanned.

        Args:
            hu: ``(H, H)`` in Hounsfield units, any H; without metal. Below -1000 (outside the scan) is air.
            pixel_spacing_mm: of this slice. None: the field of the geometry, whatever the body's true size, as the
                published data sets do it.

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
    """The slice at ``(S, S)`` float32, bilinear, averaged where it shrinks; never below air."""
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
    """The physics: what a scanner measures of this slice with this metal, and the images made of it.

    A pixel of tissue is a mixture of water and bone (`tissue_densities`), displaced by the metal in proportion to
    its coverage. The mass paths of water, bone and metal along the rays are found once; for a ray

        ``T = sum_E N(E) exp(-sum_m mu_m(E) L_m)`` over the spectrum (beam hardening),

    a bin's T is the mean of its rays, three where metal is near, as metal often covers a part of a bin only
    (partial volume). The detector counts ``Poisson(photons T)``, no count taken as one; ``-log(counts / photons)`` is
    turned into a path of water (`water_equivalent`) times 0.192 / cm, so that water alone gives no artifact. Images are
    filtered back-projections of it. No scatter.

    Args:
        hu: ``(S, S)``.
        coverage: share of each pixel that metal fills, ``(S, S)`` in [0, 1].

    Source: Zhang and Yu, *Convolutional Neural Network Based Metal Artifact Reduction in X-Ray Computed Tomography*,
    IEEE TMI 2018.
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
    """Density of water and of cortical bone in g/cm^3, each of the shape of the slice.

    The share of bone in a pixel's attenuation grows linearly from 0 at 100 HU to 1 at 1500 HU; both together attenuate
    as much as the Hounsfield unit says at 70 keV, ``(1 + HU / 1000)`` times water.
    """
    attenuations = np.maximum(1 + hu / 1000, 0)
    bone = np.clip((hu - SOFT_TISSUE) / (BONE - SOFT_TISSUE), 0, 1)
    return attenuations * (1 - bone), attenuations * bone / BONE_PER_WATER


def shown(attenuation: Tensor) -> np.ndarray:
    """An image of attenuation in 1/cm as the case gives it: ``clip(attenuation / 0.5, 0, 1)``, ``(1, S, S)``."""
    return (attenuation / WHITE).clamp(0, 1).float().numpy()[None]
