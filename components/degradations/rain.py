"""Light rain in a photograph: bright, nearly parallel streaks that add to the image.

`Rain.draw` draws the streaks at random. `render_streaks`, a pure function, renders them.
Legend: C channels, H rows, W columns, N streaks. An angle is in degrees from the vertical. It is positive if the streak
leans like a backslash, that is, if its lower end is further to the right. In coordinates (rows down, columns right),
the unit vector along a streak at angle a is ``(cos a, sin a)``. The unit vector across it is ``(-sin a, cos a)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.degradations.noise import check_range

# How the streaks of one image vary. The values were chosen by inspecting measured rain and by three statistics: its
# coherence, the spread of its orientations and the distribution of its values (benchmarks/rain_statistics.py).
SHORTEST, LONGEST = 0.2, 2.6  # factors of the drawn length: shortest + (longest - shortest) u^2, u uniform, mean 1
WIDTH_JITTER = 0.4  # uniform, share of the drawn width
ANGLE_JITTER = 1.5  # uniform, degrees
END = 0.4  # share of a streak's length over which each of its ends fades
BRIGHTEST = 0.8  # largest brightness of one streak; also the largest value of any measured layer


@dataclass(frozen=True)
class Streaks:
    """N streaks; each property is an ``(N,)`` array.

    Attributes:
        rows: rows of the centres in pixels; the centre of the first pixel is (0, 0). They may lie outside the image.
        columns: columns of the centres, likewise.
        angles: degrees from the vertical, in -90..90, positive like a backslash.
        lengths: full widths at half maximum along the streaks, in pixels.
        widths: full widths at half maximum across the streaks, in pixels.
        brightnesses: values at the centres, in image units.

    Example:
        >>> streaks = Streaks(*(np.array([value], dtype=float) for value in (8, 8, 10, 9, 2, 0.5)))
        >>> streaks.where(streaks.brightnesses > 0.6).rows.size
        0
    """

    rows: np.ndarray
    columns: np.ndarray
    angles: np.ndarray
    lengths: np.ndarray
    widths: np.ndarray
    brightnesses: np.ndarray

    def where(self, chosen: np.ndarray) -> Streaks:
        """Return the streaks that an ``(N,)`` boolean array selects."""
        return Streaks(**{name: values[chosen] for name, values in vars(self).items()})

    def transposed(self) -> Streaks:
        """Return the same streaks in the transposed image; the angles are in 0..180."""
        return Streaks(self.columns, self.rows, 90 - self.angles, self.lengths, self.widths, self.brightnesses)


def render_streaks(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """Render the layer of light, ``(H, W)`` float32 >= 0: the sum of all streaks.

    ``layer[r, c] = sum_n brightness_n bump(beyond_n / end_n) bump(across_n / width_n)`` with

    - ``bump(x) = cos(pi x / 2)^2`` for |x| < 1, else 0,
    - ``(along, across)``: (r, c) minus the streak's centre, in the streak's own axes,
    - ``beyond = max(|along| - (length - end) / 2, 0)`` and ``end = END length``.

    A streak is flat along its middle and fades at its ends. It has half its brightness at |along| = length / 2 and at
    |across| = width / 2. Its light sums to brightness x length x width. (Bumps of width 1 at neighbouring pixels add up
    to 1, so there is no aliasing.)

    Args:
        height: H.
        width: W.
        streaks: the N streaks.

    Example:
        >>> streak = Streaks(*(np.array([value], dtype=float) for value in (8, 8, 0, 9, 2, 0.5)))
        >>> layer = render_streaks(17, 17, streak)
        >>> layer.shape, float(layer[8, 8]), round(float(layer.sum()), 3)  # sum: 0.5 x 9 x 2
        ((17, 17), 0.5, 9.0)
    """
    lying = np.abs(streaks.angles) > 45
    layer = _render_upright(height, width, streaks.where(~lying))
    if lying.any():
        layer = layer + _render_upright(width, height, streaks.where(lying).transposed()).T
    return layer.astype(np.float32)


def _render_upright(height: int, width: int, streaks: Streaks) -> np.ndarray:
    """Render streaks that cross more rows than columns, as `render_streaks` but in float64.

    A strip is a run of pixels of one row, centred on the axis of one streak. All strips have the length that the widest
    streak needs. Strips outside the image are dropped before any light is computed.
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
    stride = width + 4 * reach  # a strip extends at most 2 reach beyond the image
    pixels = (strip_rows * stride + axis + 2 * reach)[:, None] + offsets  # (M, S)
    canvas = np.bincount(pixels.ravel(), weights=light.ravel(), minlength=height * stride)
    return canvas.reshape(height, stride)[:, 2 * reach : 2 * reach + width]


def _bump(x: np.ndarray) -> np.ndarray:
    """``cos(pi x / 2)^2`` for |x| < 1, else 0."""
    return np.float32(0.5) + np.float32(0.5) * np.cos(np.float32(np.pi) * np.clip(x, -1, 1))


@dataclass(frozen=True)
class Rain:
    """``degraded = clip(clean + streak, 0, 1)`` with streak >= 0, equal in all channels.

    Each image draws one value uniformly from each range ``[low, high]``. The properties of its streaks vary about these
    values. Streaks may also start outside the image, so a small patch has the statistics of a crop of a large image.

    Attributes:
        angle: degrees from the vertical in -90..90, positive where streaks lean like a backslash. The angle of a streak
            deviates by at most 1.5 degrees.
        length: mean length of the streaks at half brightness, in pixels. The length of a streak is 0.2 to 2.6 times the
            mean.
        width: mean width of the streaks at half brightness, in pixels. The width of a streak is 0.6 to 1.4 times the
            mean.
        density: expected sum of length x width of the streaks, as a share of the image's area. Streaks overlap, and
            their fading ends and sides cover more pixels than this area. At 0.35, half of the pixels carry light.
        brightness: brightness at the middle of a streak, in image units. The brightness of a streak is exponentially
            distributed with this mean and truncated at 0.8.

    Raises:
        ValueError: a range is reversed or impossible.

    Example:
        >>> degrade = Rain(angle=(10, 10), length=(9, 9), width=(1, 1), density=(0.3, 0.3), brightness=(0.2, 0.2))
        >>> clean = np.full((3, 32, 32), 0.5, dtype=np.float32)
        >>> rainy = degrade(clean, np.random.default_rng(0))
        >>> rainy.shape, bool((rainy >= clean).all()), bool((rainy[0] == rainy[2]).all())
        ((3, 32, 32), True, True)
    """

    angle: tuple[float, float]
    length: tuple[float, float]
    width: tuple[float, float]
    density: tuple[float, float]
    brightness: tuple[float, float]

    def __post_init__(self) -> None:
        check_range("angle", self.angle, -90, 90, "degrees from the vertical")
        check_range("length", self.length, 1, 1000, "pixels")
        check_range("width", self.width, 0.5, 100, "pixels")
        check_range("density", self.density, 0, 2, "area of all streaks as a share of the image")
        check_range("brightness", self.brightness, 0.001, 1, "image units of [0, 1]")

    def draw(self, height: int, width: int, generator: np.random.Generator) -> Streaks:
        """Draw the random streaks that can touch an image of this size; their number is Poisson distributed.

        Args:
            height: rows of the image.
            width: columns of the image.
            generator: source of the random numbers.
        """
        ranges = (self.angle, self.length, self.width, self.density, self.brightness)
        angle, length, breadth, density, brightness = (generator.uniform(*limits) for limits in ranges)
        reach = (1 + END) / 2 * LONGEST * length  # reach of the longest streak along its axis
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
        """Return a random layer of light, ``(H, W)`` float32 >= 0.

        Args:
            height: H.
            width: W.
            generator: source of the random numbers.
        """
        return render_streaks(height, width, self.draw(height, width, generator))

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 in [0, 1], C = 1 or 3 -> the same shape, in [0, 1]."""
        _, height, width = clean.shape
        return np.clip(clean + self.streaks(height, width, generator), 0, 1)
