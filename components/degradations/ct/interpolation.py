"""Linear interpolation (LI): the standard first correction of metal artifacts, and an input of the networks."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_interpolation(sinogram: Tensor, trace: Tensor) -> Tensor:
    """Replace the bins of the metal trace in each view by linear interpolation between their neighbours.

    A gap at an end of the detector takes the value of its only neighbour.

    Shape: ``(..., V, D)`` float and bool -> the shape of the sinogram.

    Raises:
        ValueError: the shapes differ, or the trace fills a whole view.

    Source: Kalender, Hebel, Ebersberger, *Reduction of CT artifacts caused by metallic implants*, Radiology 1987.

    Example:
        >>> sinogram = torch.tensor([[1.0, 9.0, 9.0, 4.0, 9.0]])
        >>> linear_interpolation(sinogram, sinogram == 9)
        tensor([[1., 2., 3., 4., 4.]])
    """
    if sinogram.shape != trace.shape or trace.dtype != torch.bool:
        raise ValueError(
            f"trace {tuple(trace.shape)} of {trace.dtype}: use a boolean one of the sinogram's {tuple(sinogram.shape)}"
        )
    if trace.all(dim=-1).any():
        raise ValueError("the metal trace fills a whole view: use less metal, nothing is left to interpolate from")
    detectors = sinogram.shape[-1]
    bins = torch.arange(detectors).expand(trace.shape)
    left = torch.where(trace, -1, bins).cummax(dim=-1).values  # the nearest bin at or before, outside the trace
    right = torch.where(trace, detectors, bins).flip(-1).cummin(dim=-1).values.flip(-1)
    left, right = torch.where(left < 0, right, left), torch.where(right == detectors, left, right)
    start, end = sinogram.gather(-1, left), sinogram.gather(-1, right)
    share = (bins - left) / (right - left).clamp(min=1)
    return torch.where(trace, start + (end - start) * share.to(sinogram.dtype), sinogram)
