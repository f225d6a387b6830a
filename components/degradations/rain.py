"""Light rain in a photograph: bright, nearly parallel streaks that add to the image.

Drawing the streaks at random (`Rain.draw`) is apart from rendering them (`render_streaks`, a pure function).
Legend: C channels, H rows, W columns, N streaks. An angle is in degrees from the vertical, positive where a streak
leans like a backslash: further down is further right. So the unit vector along a streak at angle a is
``(cos a, sin a)`` and the one across it ``(-sin a, cos a)``, as (rows down, columns right).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# How streaks of one image differ, measured on Rain100L (benchmarks/rain_statistics.py): factors of the image's own
# length and width with mean 1, degrees about its angle, and the power of a uniform number that makes many streaks faint.
LENGTH_JITTER = 0.5
WIDTH_JITTER = 0.3
ANGLE_JITTER = 2.0
FAINTNESS = 3.0


@dataclass(frozen=True)
class Streaks:
    """N streaks, an ``(N,)`` array a property.

    Attributes:
        rows, columns: the centres in pixels; the centre of the first pixel is at (0, 0). They may lie outside the image.
        angles: degrees from the vertical, in -90..90, positive like a backslash.
        lengths, widths: full widths at half height along and across, in pixels.
        brightnesses: of the centres, in image units.
    """

    rows: np.ndarray
    columns: np.ndarray
    angles: np.ndarray
    lengths: np.ndarray
    widths: np.ndarray
    brightnesses: np.ndarray

    def where(self, chosen: np.ndarray) -> Streaks:
        """The streaks that an ``(N,)`` boolean array chooses."""
        return Streaks(**{name: values[chosen] for name, values in vars(self).items()})

    def transposed(self) -> Streaks:
        """The same streaks in the image with rows and columns exchanged; angles in 0..180."""
        return Streaks(self.columns, self.rows, 90 - self.angles, self.lengths, self.widths, self.brightnesses)


def render_streaks(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """The layer of light, ``(H, W)`` float32 >= 0: the sum of all streaks, each smooth along and across.

    ``layer[r, c] = sum_n brightness_n bump(along_n / length_n) bump(across_n / width_n)``, where (along, across) is
    (r, c) minus the streak's centre in its own axes and ``bump(x) = cos(pi x / 2)^2`` for |x| < 1, else 0: half
    height at |x| = 1/2, so a streak's light is brightness x length x width. Widths from 1 pixel are drawn without
    aliasing, as bumps of width 1 at neighbouring pixels add up to 1.
    """
    lying = np.abs(streaks.angles) > 45
    layer = _render_upright(height, width, streaks.where(~lying))
    if lying.any():
        layer = layer + _render_upright(width, height, streaks.where(lying).transposed()).T
    return layer.astype(np.float32)


def _render_upright(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """`render_streaks` in float64 for streaks that cross more rows than columns.

    A strip is the pixels of one row about the axis of one streak, as many as the widest streak needs; strips outside
    the image are dropped before any light is computed.
    """
    if not streaks.rows.size:
        return np.zeros((height, width))
    rows, columns, angles, lengths, widths, brightnesses = vars(streaks).values()
    cosines, sines = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    reaches = lengths * np.abs(cosines) + widths * np.abs(sines)  # rows from the centre
    first = np.clip(np.ceil(rows - reaches), 0, height).astype(np.int64)
    numbers = (np.clip(np.floor(rows + reaches), -1, height - 1).astype(np.int64) - first + 1).clip(0)
    owners = np.repeat(np.arange(rows.size), numbers)  # (M,) of M strips
    strip_rows = np.arange(owners.size) - np.repeat(np.cumsum(numbers) - numbers - first, numbers)
    below = strip_rows - rows[owners]
    reach = int(np.ceil((widths / np.abs(cosines)).max()))
    axis = np.rint(columns[owners] + below * (sines / cosines)[owners]).astype(np.int64)
    near = (axis >= -reach) & (axis < width + reach)
    owners, strip_rows, below, axis = owners[near], strip_rows[near], below[near], axis[near]

    offsets = np.arange(-reach, reach + 1)
    right = (axis - columns[owners]).astype(np.float32)[:, None] + offsets.astype(np.float32)  # (M, S)
    below, cosines, sines, lengths, widths, brightnesses = (
        values.astype(np.float32)[:, None]
        for values in (below, *(each[owners] for each in (cosines, sines, lengths, widths, brightnesses)))
    )  # (M, 1)
    along = (below * cosines + right * sines) / lengths
    across = (right * cosines - below * sines) / widths
    light = brightnesses * _bump(along) * _bump(across)  # (M, S)
    stride = width + 4 * reach  # a strip ends at most 2 reach beside the image
    pixels = (strip_rows * stride + axis + 2 * reach)[:, None] + offsets  # (M, S)
    canvas = np.bincount(pixels.ravel(), weights=light.ravel(), minlength=height * stride)
    return canvas.reshape(height, stride)[:, 2 * reach : 2 * reach + width]


def _bump(x: np.ndarray) -> np.ndarray:
    """``cos(pi x / 2)^2`` for |x| < 1, else 0."""
    return np.float32(0.5) + np.float32(0.5) * np.cos(np.float32(np.pi) * np.clip(x, -1, 1))


@dataclass(frozen=True)
class Rain:
    """``degraded = clip(clean + streak, 0, 1)`` with streak >= 0, equal in all channels.

    Each image draws its angle, length, width, density and brightness uniformly from the ranges ``[low, high]``;
    its streaks then vary about them. The light is that of an endless sky: streaks also start outside the image.

    Attributes:
        angle: degrees from the vertical in -90..90, positive where a streak leans like a backslash.
        length: of a streak at half its height, in pixels; a streak's own is 0.5 to 1.5 times as long.
        width: of a streak at half its height, in pixels, at least 0.5; a streak's own is 0.7 to 1.3 times as wide.
        density: length x width of all streaks together as a share of the image's area; they overlap.
        brightness: of the brightest streak's centre, in image units; a streak's own is this times u^3, u uniform.

    Raises:
        ValueError: a range is reversed or impossible.
    """

    angle: tuple[float, float]
    length: tuple[float, float]
    width: tuple[float, float]
    density: tuple[float, float]
    brightness: tuple[float, float]

    def __post_init__(self) -> None:
        _check_range("angle", self.angle, -90, 90, "degrees from the vertical")
        _check_range("length", self.length, 1, 1000, "pixels")
        _check_range("width", self.width, 0.5, 100, "pixels")
        _check_range("density", self.density, 0, 2, "area of all streaks over area of the image")
        _check_range("brightness", self.brightness, 0.001, 1, "image units of [0, 1]")

    def draw(self, height: int, width: int, generator: np.random.Generator) -> Streaks:
        """The random streaks that can touch an image of this size; their number is Poisson distributed."""
        ranges = (self.angle, self.length, self.width, self.density, self.brightness)
        angle, length, breadth, density, brightness = (generator.uniform(*limits) for limits in ranges)
        longest, broadest = length * (1 + LENGTH_JITTER), breadth * (1 + WIDTH_JITTER)
        margin = longest + broadest
        margin_columns = longest * np.sin(np.radians(min(90, abs(angle) + ANGLE_JITTER))) + broadest
        area = (height + 2 * margin) * (width + 2 * margin_columns)
        number = generator.poisson(density * area / (length * breadth))
        uniform = generator.uniform(size=(6, number))
        signed = 2 * uniform - 1
        return Streaks(
            rows=(height + 2 * margin) * uniform[0] - margin - 0.5,
            columns=(width + 2 * margin_columns) * uniform[1] - margin_columns - 0.5,
            angles=angle + ANGLE_JITTER * signed[2],
            lengths=length * (1 + LENGTH_JITTER * signed[3]),
            widths=breadth * (1 + WIDTH_JITTER * signed[4]),
            brightnesses=brightness * uniform[5] ** FAINTNESS,
        )

    def streaks(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """A random layer of light, ``(H, W)`` float32 >= 0."""
        return render_streaks(height, width, self.draw(height, width, generator))

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1], C = 1 or 3 -> the same shape, in [0, 1]."""
        return np.clip(clean + self.streaks(*clean.shape[1:], generator), 0, 1)


def _check_range(name: str, limits: Sequence[float], least: float, most: float, unit: str) -> None:
    low, high = limits
    if not least <= low <= high <= most:
        raise ValueError(f"{name} {low}..{high}: use {least} <= low <= high <= {most}, in {unit}")
