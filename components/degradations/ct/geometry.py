"""Geometry of a fan-beam scan: positions of the source, the rays and the pixels.

Legend: S rows and columns of the square image, V views, D detectors, β angle of a view, u position on the detector.

Conventions. x points right and y up, both in pixels from the centre of the image. The pixel in row r and column c is at
``x = c - (S - 1) / 2, y = (S - 1) / 2 - r`` and fills the square of side 1 around this point. In view v, at
``β = 2 pi (v + 1/2) / V``, the central ray runs along ``(cos β, sin β)``. The source lies `source` pixels before the
centre. The flat detector is scaled to lie at the centre; it is the line along ``(sin β, -cos β)``. Its bin d is at
``u = (d - (D - 1) / 2) pitch``. A rotation of the image by 90 degrees counter-clockwise therefore shifts its sinogram
by V / 4 views. The sinograms of the SynDeepLesion files follow the same conventions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST = 16  # pixels: below it, a pixel is larger than most metals


@dataclass(frozen=True)
class FanBeam:
    """A 360 degree scan of a fan-beam scanner with a flat detector.

    The defaults are the geometry of the SynDeepLesion data: 416 x 416 pixels of 512 / 416 x 0.3 mm, 640 views, 641
    bins, and the source 1075 pixels from the centre. (The field is thus 15 cm wide. The field of a chest scan is about
    36 cm wide.)

    Attributes:
        size: S, side of the image in pixels.
        views: V, over 360 degrees. V is a multiple of 4, because the rays of a quarter of the views are used for all
            views (`projection.project`).
        detectors: D, number of bins. Scaled to the centre, all bins together are as wide as the diagonal of the field.
        field_cm: side of the image in cm.
        distance: distance from the source to the centre, in sides of the image.

    Raises:
        ValueError: a number is impossible, or the source is within the corners of the field.

    Source: Lin et al., *DuDoNet: Dual Domain Network for CT Metal Artifact Reduction*, CVPR 2019; Wang et al.,
    *InDuDoNet*, MICCAI 2021.

    Example:
        >>> geometry = FanBeam().scaled(52)
        >>> geometry.size, geometry.views, geometry.detectors, geometry.field_cm
        (52, 80, 80, 15.36)
    """

    size: int = 416
    views: int = 640
    detectors: int = 641
    field_cm: float = 15.36
    distance: float = 1075 / 416

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise ValueError(f"size {self.size}: use an image of {SMALLEST} x {SMALLEST} pixels or more")
        if self.views < 4 or self.views % 4:
            raise ValueError(f"views {self.views}: use a multiple of 4, as each quarter turn repeats the first one")
        if self.detectors < 2:
            raise ValueError(f"detectors {self.detectors}: use 2 bins or more, about 1.5 a pixel of the image's side")
        if not 0 < self.field_cm < math.inf:
            raise ValueError(f"field_cm {self.field_cm}: use the side of the image in cm, such as 15.36 or 36")
        if not 0.75 <= self.distance < math.inf:
            raise ValueError(f"distance {self.distance}: use 0.75 sides of the image or more, outside of its corners")

    @property
    def source(self) -> float:
        """Distance from the source to the centre in pixels."""
        return self.distance * self.size

    @property
    def pixel_cm(self) -> float:
        """Side of a pixel in cm."""
        return self.field_cm / self.size

    @property
    def pitch(self) -> float:
        """Distance between bins in pixels, scaled to the centre of the image."""
        return math.sqrt(2) * self.size / self.detectors

    def scaled(self, size: int) -> FanBeam:
        """Return the same scanner and field at another resolution; pixels, views and bins change in proportion."""
        share = size / self.size
        return replace(
            self, size=size, views=max(4, 4 * round(self.views * share / 4)), detectors=round(self.detectors * share)
        )

    def angles(self) -> Tensor:
        """Angles β of the views of the first quarter turn in radians, ``(V / 4,)`` float64."""
        return (torch.arange(self.views // 4, dtype=torch.float64) + 0.5) * (2 * math.pi / self.views)

    def bins(self) -> Tensor:
        """Positions u of the bins in pixels, scaled to the centre, ``(D,)`` float64."""
        return (torch.arange(self.detectors, dtype=torch.float64) - (self.detectors - 1) / 2) * self.pitch
