"""Ellipses, as images and as their exact sinograms; written from the conventions stated in `ct.geometry`, in numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from components.degradations.ct.geometry import FanBeam


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes in pixels from the centre of the image (x right, y up), angle in radians, value in 1/cm."""

    x: float
    y: float
    a: float
    b: float
    angle: float
    value: float


def ellipses(size: int) -> list[Ellipse]:
    """A body, an off-centre hole and two inserts; no symmetry."""
    return [
        Ellipse(0.02 * size, -0.03 * size, 0.40 * size, 0.29 * size, 0.3, 0.2),
        Ellipse(-0.15 * size, 0.06 * size, 0.10 * size, 0.14 * size, -0.5, -0.15),
        Ellipse(0.2 * size, -0.08 * size, 0.08 * size, 0.05 * size, 1.1, 0.2),
        Ellipse(0.05 * size, 0.12 * size, 0.04 * size, 0.04 * size, 0.0, 0.1),
    ]


def image_of(shapes: list[Ellipse], size: int, fine: int = 8) -> np.ndarray:
    """Pixels averaged over ``fine x fine`` points, ``(S, S)`` float32."""
    places = (np.arange(size * fine) + 0.5) / fine - size / 2
    x, y = places[None, :], -places[:, None]
    image = np.zeros((size * fine, size * fine))
    for shape in shapes:
        cosine, sine = math.cos(shape.angle), math.sin(shape.angle)
        along = ((x - shape.x) * cosine + (y - shape.y) * sine) / shape.a
        across = ((y - shape.y) * cosine - (x - shape.x) * sine) / shape.b
        image += shape.value * (along**2 + across**2 <= 1)
    return image.reshape(size, fine, size, fine).mean(axis=(1, 3)).astype(np.float32)


def sinogram_of(shapes: list[Ellipse], geometry: FanBeam) -> np.ndarray:
    """Chords of the ellipses, ``(V, D)`` float64: the ray is a line, its intersections a quadratic equation's roots."""
    sinogram = np.zeros((geometry.views, geometry.detectors))
    width = math.sqrt(2) * geometry.size
    for view in range(geometry.views):
        beta = 2 * math.pi * (view + 0.5) / geometry.views
        source = -geometry.source * np.array([math.cos(beta), math.sin(beta)])
        u = ((np.arange(geometry.detectors) + 0.5) / geometry.detectors - 0.5) * width
        hits = u[:, None] * np.array([math.sin(beta), -math.cos(beta)])  # on the line through the centre
        rays = (hits - source) / np.linalg.norm(hits - source, axis=1, keepdims=True)
        for shape in shapes:
            to_circle = np.diag([1 / shape.a, 1 / shape.b]) @ np.array(
                [[math.cos(shape.angle), math.sin(shape.angle)], [-math.sin(shape.angle), math.cos(shape.angle)]]
            )
            start = to_circle @ (source - np.array([shape.x, shape.y]))
            along = rays @ to_circle.T
            square, linear, constant = (along**2).sum(1), 2 * along @ start, start @ start - 1
            roots = np.maximum(linear**2 - 4 * square * constant, 0)
            sinogram[view] += shape.value * np.sqrt(roots) / square
    return sinogram * geometry.field_cm / geometry.size
