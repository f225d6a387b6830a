"""Filtered back-projection: reconstruction of the image from its sinogram.

Legend: B images, S rows and columns, V views, D bins, Q = V / 4 views of a quarter turn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from components.degradations.ct.geometry import FanBeam

VALUES_AT_ONCE = 2**23  # number of interpolated values in memory at a time


def filtered_back_projection(sinograms: Tensor, geometry: FanBeam) -> Tensor:
    """Reconstruct images from sinograms, in units of the sinogram / cm.

    ``f(x, y) = sum_β (2 pi / V) / U^2 (p_β * h)(u)`` with

    - ``U = 1 + (x cos β + y sin β) / R``: the distance of the pixel from the source along the central ray, divided by
      the distance R of the centre,
    - ``u = (x sin β - y cos β) / U``: the position of the pixel on the detector, interpolated linearly between bins,
    - ``p_β(u) = sinogram R / sqrt(R^2 + u^2)``,
    - h: half the ramp filter, band-limited at the Nyquist frequency of the bins, without a further window (`ramp`).

    Shape: ``(B, V, D)`` float32 or float64 -> ``(B, S, S)``.

    Raises:
        ValueError: the shape of the sinograms does not match the geometry.

    Source: Kak and Slaney, *Principles of Computerized Tomographic Imaging*, section 3.4.2, 1988.

    Example:
        >>> from components.degradations.ct.projection import project
        >>> geometry = FanBeam(size=16, views=32, detectors=24)
        >>> images = torch.zeros(1, 16, 16)
        >>> images[:, 4:12, 4:12] = 1
        >>> restored = filtered_back_projection(project(images, geometry), geometry)
        >>> restored.shape, bool((restored - images)[:, 6:10, 6:10].abs().max() < 0.1)
        (torch.Size([1, 16, 16]), True)
    """
    shape = (geometry.views, geometry.detectors)
    if sinograms.ndim != 3 or sinograms.shape[1:] != shape:
        raise ValueError(f"sinograms {tuple(sinograms.shape)}: this geometry takes (B, {shape[0]}, {shape[1]})")
    bins = geometry.bins().to(sinograms.dtype)
    cosines = geometry.source / (geometry.source**2 + bins**2).sqrt()
    filtered = _convolved(sinograms * cosines, ramp(geometry.detectors, geometry.pitch) / 2 * geometry.pitch)
    quarters = filtered.unflatten(1, (4, -1)).permute(2, 1, 0, 3).flatten(1, 2)  # (Q, 4B, D)

    size, dtype = geometry.size, sinograms.dtype
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    right, up = places[None, None, :], -places[None, :, None]
    total = torch.zeros(quarters.shape[1], size, size, dtype=dtype)
    at_once = max(1, VALUES_AT_ONCE // total.numel())
    for angles, views in zip(geometry.angles().split(at_once), quarters.split(at_once), strict=True):
        cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
        source = geometry.source
        nearness = ((1 + right * cosine / source).to(dtype) + (up * sine / source).to(dtype)).reciprocal_()  # 1 / U
        points = torch.zeros(2, len(angles), size, size, dtype=dtype)
        border = geometry.pitch * geometry.detectors / 2  # the coordinate 1 of grid_sample
        torch.add((right * sine / border).to(dtype), (-up * cosine / border).to(dtype), out=points[0])
        points[0] *= nearness
        values = functional.grid_sample(views[:, :, None], points.permute(1, 2, 3, 0), align_corners=False)
        total += values.mul_(nearness.square_()[:, None]).sum(0)  # (q, 4B, S, S) -> (4B, S, S)
    turned = total.view(4, -1, size, size)
    images = torch.stack([torch.rot90(turned[turns], turns, dims=(-2, -1)) for turns in range(4)]).sum(0)
    return images * (2 * math.pi / geometry.views / geometry.pixel_cm)


def ramp(detectors: int, pitch: float) -> Tensor:
    """The ramp filter, band-limited at the Nyquist frequency, at offsets -(D - 1)..D - 1, ``(2 D - 1,)`` float64.

    ``1 / (4 pitch^2)`` at 0, ``-1 / (pi n pitch)^2`` at odd n, 0 at other even n (Ramachandran and Lakshminarayanan).
    """
    offsets = torch.arange(1 - detectors, detectors, dtype=torch.float64)
    odd = torch.where(offsets % 2 == 1, -1 / (math.pi * offsets * pitch) ** 2, torch.zeros_like(offsets))
    odd[detectors - 1] = 1 / (4 * pitch**2)
    return odd


def _convolved(rows: Tensor, kernel: Tensor) -> Tensor:
    """Convolve rows ``(..., D)`` with a kernel of offsets -(D - 1)..D - 1, by the Fourier transform."""
    length = rows.shape[-1]
    padded = 2 ** math.ceil(math.log2(3 * length))
    spectrum = torch.fft.rfft(rows, padded) * torch.fft.rfft(kernel.to(rows.dtype), padded)
    return torch.fft.irfft(spectrum, padded)[..., length - 1 : 2 * length - 1]
