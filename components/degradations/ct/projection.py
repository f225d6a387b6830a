"""Line integrals of images along the rays of a fan beam.

Legend: B images, S rows and columns, V views, D bins, Q = V / 4 views of a quarter turn, K points on a ray.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from components.degradations.ct.geometry import FanBeam

VALUES_AT_ONCE = 2**23  # largest number of interpolated values in memory at a time


def project(images: Tensor, geometry: FanBeam) -> Tensor:
    """Compute sinograms: the integral of each image along each ray, in units of the image x cm.

    The image is 0 outside its square and bilinear between the centres of its pixels. Each ray is summed at S equally
    spaced points within the square, at most 1.42 pixels apart (the midpoint rule). The views of the second to fourth
    quarter turn equal the views of the first quarter turn of the image rotated back by 90, 180 and 270 degrees. The
    points are therefore computed once for all four quarter turns.

    Shape: ``(B, S, S)`` float32 or float64 -> ``(B, V, D)``.

    Raises:
        ValueError: the images have another size than the geometry.

    Example:
        >>> geometry = FanBeam(size=16, views=8, detectors=12)
        >>> images = torch.rand(1, 16, 16, generator=torch.manual_seed(0), dtype=torch.float64)
        >>> sinogram, rotated = project(images, geometry), project(images.rot90(1, (1, 2)), geometry)
        >>> sinogram.shape
        torch.Size([1, 8, 12])
        >>> torch.allclose(rotated, sinogram.roll(2, dims=1))  # a quarter turn shifts the sinogram by V / 4 views
        True
    """
    size = geometry.size
    if images.ndim != 3 or images.shape[1:] != (size, size):
        raise ValueError(f"images {tuple(images.shape)}: this geometry takes (B, {size}, {size}); see FanBeam.scaled")
    turned = torch.stack([torch.rot90(images, -turns, dims=(-2, -1)) for turns in range(4)])  # (4, B, S, S)
    channels = turned.flatten(0, 1)  # (4B, S, S)
    quarter = geometry.views // 4
    at_once = max(1, min(quarter, VALUES_AT_ONCE // (geometry.detectors * size * len(channels))))
    sums = []
    for angles in geometry.angles().split(at_once):
        points, steps = _points(angles, geometry, images.dtype)  # (q, D, K, 2), (q, D)
        values = functional.grid_sample(
            channels.expand(len(angles), -1, -1, -1), points, align_corners=False
        )  # (q, 4B, D, K)
        sums.append(values.sum(-1) * steps[:, None])
    sinograms = torch.cat(sums)  # (Q, 4B, D)
    return sinograms.unflatten(1, (4, -1)).permute(2, 1, 0, 3).flatten(1, 2) * geometry.pixel_cm  # (B, 4Q, D)


def _points(angles: Tensor, geometry: FanBeam, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute the sample points on the rays of q views.

    Returns:
        The points in the coordinates of `grid_sample`, ``(q, D, S, 2)``, and their spacing in pixels, ``(q, D)``. The
        spacing is 0 for rays that miss the square.
    """
    half = geometry.size / 2
    cosines, sines = angles.cos()[:, None], angles.sin()[:, None]  # (q, 1)
    across = geometry.bins() / geometry.source  # tangents of the angles between the rays and the central ray
    sources = -geometry.source * torch.stack([cosines, sines])  # (2, q, 1), right and up
    rays = torch.stack([cosines + across * sines, sines - across * cosines]) / (1 + across**2).sqrt()  # (2, q, D)
    walls = (torch.tensor([-half, half])[:, None, None, None] - sources) / _no_zero(rays)  # (2, 2, q, D), distances
    entry, leave = walls.amin(0).amax(0), walls.amax(0).amin(0)  # (q, D)
    steps = (leave - entry).clamp(min=0) / geometry.size
    down = torch.tensor([1.0, -1.0])[:, None, None] / half  # in grid_sample, y points down and the border is at 1
    starts, strides = ((sources + entry * rays) * down).to(dtype), (steps * rays * down).to(dtype)
    numbers = torch.arange(geometry.size, dtype=dtype) + 0.5
    points = torch.addcmul(starts[..., None], strides[..., None], numbers)  # (2, q, D, S)
    return points.permute(1, 2, 3, 0), steps.to(dtype)


def _no_zero(values: Tensor) -> Tensor:
    """Replace values near 0 by 1e-12, so that they can be a divisor."""
    return torch.where(values.abs() < 1e-12, torch.full_like(values, 1e-12), values)
