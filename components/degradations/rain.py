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

# What the streaks of one image look like beside each other; chosen by looking at measured rain and by its coherence,
# the spread of its orientations and the distribution of its values (benchmarks/rain_statistics.py).
SHORTEST, LONGEST = 0.2, 2.6  # factors of the image's length: shortest + (longest - shortest) u^2, u uniform, mean 1
WIDTH_JITTER = 0.4  # uniform, share of the image's width
ANGLE_JITTER = 1.5  # uniform, degrees
END = 0.4  # share of a streak's length over which each of its ends fades
BRIGHTEST = 0.8  # of one streak; also the largest value of any measured layer


@dataclass(frozen=True)
class Streaks:
    """N streaks, an ``(N,)`` array a property.

    Attributes:
        rows, columns: the centres in pixels; the centre of the first pixel is (0, 0). They may lie outside the image.
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
    """The layer of light, ``(H, W)`` float32 >= 0: the sum of all streaks.

    ``layer[r, c] = sum_n brightness_n bump(beyond_n / end_n) bump(across_n / width_n)`` with
    ``bump(x) = cos(pi x / 2)^2`` for |x| < 1, else 0; ``(along, across)`` is (r, c) minus the streak's centre in its
    own axes; ``beyond = max(|along| - (length - end) / 2, 0)`` and ``end = END length``. A streak is flat along
    its middle and fades at its ends; it is half as bright at |along| = length / 2 and at |across| = width / 2, and its
    light sums to brightness x length x width. (Bumps of width 1 at neighbouring pixels add up to 1: no aliasing.)
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
    reaches = (1 + END) / 2 * lengths * np.abs(cosines) + widths * np.abs(sines)  # rows from the centre
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
    across = right * cosines - below * sines
    ends = np.float32(END) * lengths
    beyond = np.maximum(np.abs(below * cosines + right * sines) - (lengths - ends) / 2, 0)
    light = brightnesses * _bump(beyond / ends) * _bump(across / widths)  # (M, S)
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

    Each image draws one value from each range ``[low, high]``, uniformly; its streaks vary about them. They also start
    outside the image, so that a small patch has the statistics of a crop of a large image.

    Attributes:
        angle: degrees from the vertical in -90..90, positive where streaks lean like a backslash; a streak's own is at
            most 1.5 degrees off.
        length: mean of the streaks, at half brightness, in pixels; a streak's own is 0.2 to 2.6 times as long.
        width: mean of the streaks, at half brightness, in pixels; a streak's own is 0.6 to 1.4 times as wide.
        density: expected sum of length x width of the streaks, as a share of the image's area. They overlap, and fade
            into more pixels than these: half of the pixels carry light at 0.35.
        brightness: at a streak's middle, in image units; a streak's own is exponentially distributed with this mean,
            cut off at 0.8.

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
        _check_range("density", self.density, 0, 2, "area of all streaks as a share of the image")
        _check_range("brightness", self.brightness, 0.001, 1, "image units of [0, 1]")

    def draw(self, height: int, width: int, generator: np.random.Generator) -> Streaks:
        """The random streaks that can touch an image of this size; their number is Poisson distributed."""
        ranges = (self.angle, self.length, self.width, self.density, self.brightness)
        angle, length, breadth, density, brightness = (generator.uniform(*limits) for limits in ranges)
        reach = (1 + END) / 2 * LONGEST * length  # of the longest streak, along its axis
        broadest = breadth * (1 + WIDTH_JITTER)
        tilt = np.radians(min(90, abs(angle) + ANGLE_JITTER))
        sky_height = height + 2 * (reach + broadest)
        sky_width = width + 2 * (reach * np.sin(tilt) + broadest)
        number = generator.poisson(density * sky_height * sky_width / (length * breadth))
        uniform = generator.uniform(size=(6, number))
        return Streaks(
            rows=sky_height * (uniform[0] - 0.5) + (height - 1) / 2,
            columns=sky_width * (uniform[1] - 0.5) + (width - 1) / 2,
            angles=angle + ANGLE_JITTER * (2 * uniform[2] - 1),
            lengths=length * (SHORTEST + (LONGEST - SHORTEST) * uniform[3] ** 2),
            widths=breadth * (1 + WIDTH_JITTER * (2 * uniform[4] - 1)),
            brightnesses=-brightness * np.log1p(uniform[5] * np.expm1(-BRIGHTEST / brightness)),
        )

    def streaks(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """A random layer of light, ``(H, W)`` float32 >= 0."""
        return render_streaks(height, width, self.draw(height, width, generator))

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1], C = 1 or 3 -> the same shape, in [0, 1]."""
        _, height, width = clean.shape
        return np.clip(clean + self.streaks(height, width, generator), 0, 1)


def _check_range(name: str, limits: Sequence[float], least: float, most: float, unit: str) -> None:
    low, high = limits
    if not least <= low <= high <= most:
        raise ValueError(f"{name} {low}..{high}: use {least} <= low <= high <= {most}, in {unit}")
