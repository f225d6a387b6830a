"""Missing pixels, for inpainting: boxes, brush strokes, text, or given masks.

Legend: C channels, H rows, W columns, S segments. A hole is a region of missing pixels. The sizes of the holes are in
pixels and do not depend on the size of the image. Holes may begin outside the image, so a patch has the statistics of a
crop of a large image. In a mask, True (1) means missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from components.degradations.noise import check_range
from components.degradations.streak_layers import random_crop

GREY = 0.5
"""Fill value of an image that has no known pixel."""

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the Gaussian means that fill a hole, in pixels; the finest that reaches known pixels is
used."""

NEAR = 0.05  # lowest total weight of known pixels in such a mean

# All sizes are in pixels and are drawn uniformly.
BOX_SIDES = (6, 30)
STROKE_SEGMENTS = 6
SEGMENT_LENGTHS = (6.0, 24.0)
STROKE_WIDTHS = (4.0, 12.0)
STROKE_TURN = 50.0  # degrees, standard deviation from one segment to the next
STROKE_AREA = 766.0  # measured mean of 20 000 strokes, because segments overlap
FONT_SIZES = range(12, 29, 2)
WORDS = (
    *("the", "of", "and", "to", "in", "light", "Sample", "photograph", "Copyright", "image", "water", "Network"),
    *("restored", "holes", "Winter", "between", "rotation", "2019", "1874", "No. 5", "field", "by", "QUICK", "JUMP"),
)


@dataclass(frozen=True)
class Holes:
    """Cut random holes into an image, fill them (`filled`), and append the mask of missing pixels as last channel.

    The holes are placed independently of each other (a Boolean model). The drawn share is therefore the expected share
    of missing pixels. The share of a large image is close to it. A small patch may lie entirely inside a hole or
    outside all holes.

    Attributes:
        kind: "boxes" are upright rectangles with sides of 6 to 30 pixels; "strokes" are round brush strokes of 4 to 12
            pixels width with random bends; "text" are words in font sizes of 12 to 28 pixels.
        share: expected share of missing pixels; each image draws its own value uniformly from this range.

    Raises:
        ValueError: the kind is unknown, or the range is reversed or leaves 0..0.9.

    Source for strokes as masks: Yu et al., *Free-form image inpainting with gated convolution*, ICCV 2019.

    Example:
        >>> degrade = Holes("boxes", share=(0.2, 0.4))
        >>> damaged = degrade(np.ones((3, 32, 32), dtype=np.float32), np.random.default_rng(0))
        >>> damaged.shape, np.unique(damaged[-1])  # the last channel is the mask
        ((4, 32, 32), array([0., 1.], dtype=float32))
    """

    kind: Literal["boxes", "strokes", "text"]
    share: tuple[float, float]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind '{self.kind}' is unknown: use one of {', '.join(sorted(_KINDS))}")
        check_range("share", self.share, 0, 0.9, "missing pixels as a share of the image")

    def mask(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """Draw a random mask, ``(H, W)`` bool.

        Args:
            height: H.
            width: W.
            generator: source of the random numbers.
        """
        return _KINDS[self.kind](height, width, generator.uniform(*self.share), generator)

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 -> ``(C + 1, H, W)``."""
        _, height, width = clean.shape
        return with_holes(clean, self.mask(height, width, generator))


@dataclass(frozen=True, eq=False)
class GivenHoles:
    """Cut the holes of a given mask into an image, fill them (`filled`), and append the mask as last channel.

    The mask is chosen, cropped and flipped at random. A mask that is smaller than the image is extended by its mirror
    image.

    Attributes:
        masks: ``(h, w)`` each, True or above 0 where a pixel is missing. Any sequence with a length and an index is
            accepted. Only the crop is read from memory-mapped arrays.

    Raises:
        ValueError: there is no mask; when called, a mask is not ``(h, w)``.

    Example:
        >>> degrade = GivenHoles([np.eye(8, dtype=bool)])
        >>> damaged = degrade(np.ones((3, 8, 8), dtype=np.float32), np.random.default_rng(0))
        >>> damaged.shape, int(damaged[-1].sum())
        ((4, 8, 8), 8)
    """

    masks: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if not len(self.masks):
            raise ValueError("masks: there are none; give at least one")

    def mask(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """Draw a random mask, ``(H, W)`` bool.

        Args:
            height: H.
            width: W.
            generator: source of the random numbers.
        """
        number = int(generator.integers(len(self.masks)))
        given = self.masks[number]
        if given.ndim != 2:
            raise ValueError(f"mask {number} is {given.shape}: give (h, w)")
        crop = random_crop(given, height, width, generator)
        upside_down, left_right = generator.integers(2, size=2)
        return crop[:: -1 if upside_down else 1, :: -1 if left_right else 1] > 0

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 -> ``(C + 1, H, W)``."""
        _, height, width = clean.shape
        return with_holes(clean, self.mask(height, width, generator))


def with_holes(clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill the missing pixels (`filled`) and append the mask as 0, 1.

    Shape: ``(C, H, W)`` float32 and ``(H, W)`` bool -> ``(C + 1, H, W)``.

    Example:
        >>> with_holes(np.ones((3, 4, 4), dtype=np.float32), np.eye(4, dtype=bool)).shape
        (4, 4, 4)
    """
    return np.concatenate([filled(clean, mask), mask[None].astype(np.float32)])


def filled(clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill the missing pixels of an image ``(C, H, W)`` with a simple first estimate, which a network then corrects.

    A missing pixel becomes the Gaussian mean of the known pixels near it, ``G * (known x) / (G * known)``. The mean
    uses the finest of `SCALES` at which the known pixels have a weight above `NEAR`. If there is no such scale, the
    pixel becomes the mean of all known pixels. Known pixels keep the exact values of the clean image. Missing pixels do
    not contribute. The result commutes with quarter turns, up to rounding.

    Source: Knutsson, Westin, *Normalized and differential convolution*, CVPR 1993.

    Example:
        >>> image = np.full((1, 4, 4), 0.25, dtype=np.float32)
        >>> mask = np.eye(4, dtype=bool)
        >>> damaged = np.where(mask, 0, image)
        >>> np.allclose(filled(damaged, mask), 0.25)
        True
    """
    known = ~mask
    if known.all():
        return clean
    weights = known.astype(np.float32)
    if not known.any():
        return np.full_like(clean, GREY)
    means = clean[:, known].mean(axis=1)  # (C,)
    guess = np.where(known, clean, means[:, None, None]).astype(np.float32)
    stack = np.concatenate([clean * weights, weights[None]])  # (C + 1, H, W)
    missing = mask
    for scale in SCALES:
        blurred = ndimage.gaussian_filter(stack, (0, scale, scale), mode="constant", truncate=2.0)
        reached = missing & (blurred[-1] > NEAR)
        guess[:, reached] = blurred[:-1, reached] / blurred[-1, reached]
        missing = missing & ~reached
        if not missing.any():
            break
    return guess


def render_strokes(
    height: int, width: int, starts: np.ndarray, ends: np.ndarray, half_widths: np.ndarray
) -> np.ndarray:
    """Return a mask ``(H, W)``, bool: True within half a width of a segment.

    Args:
        height: H.
        width: W.
        starts: rows and columns of the start of each segment, ``(S, 2)``.
        ends: rows and columns of the end of each segment, ``(S, 2)``.
        half_widths: half the width of each segment, ``(S,)``.

    Example:
        >>> render_strokes(3, 5, np.array([[1.0, 1.0]]), np.array([[1.0, 3.0]]), np.array([0.5])).astype(int)
        array([[0, 0, 0, 0, 0],
               [0, 1, 1, 1, 0],
               [0, 0, 0, 0, 0]])
    """
    mask = np.zeros((height, width), dtype=bool)
    least = np.minimum(starts, ends) - half_widths[:, None]
    most = np.maximum(starts, ends) + half_widths[:, None]
    seen = ((most >= 0) & (least <= (height - 1, width - 1))).all(axis=1)
    if not seen.any():
        return mask
    starts, ends, half_widths, least, most = (each[seen] for each in (starts, ends, half_widths, least, most))
    corners = np.ceil(least).astype(np.int64)  # (S, 2), corners of squares that contain one segment each
    side = int((np.floor(most) - corners).max()) + 1
    canvas = np.zeros((height + 2 * side, width + 2 * side), dtype=bool)  # a square extends less than a side outside
    offsets = np.arange(side)
    for first in range(0, len(corners), 256):  # bounded memory
        part = slice(first, first + 256)
        down, right = (
            (corners[part, axis, None] + offsets - starts[part, axis, None]).astype(np.float32) for axis in (0, 1)
        )  # (S, side) each: from the start to the pixels
        along = (ends[part] - starts[part]).astype(np.float32)[:, :, None, None]  # (S, 2, 1, 1)
        down, right = down[:, :, None], right[:, None, :]  # (S, side, 1), (S, 1, side)
        square = (along**2).sum(axis=1)  # (S, 1, 1)
        place = np.clip((down * along[:, 0] + right * along[:, 1]) / np.maximum(square, 1e-12), 0, 1)
        distances = (down - place * along[:, 0]) ** 2 + (right - place * along[:, 1]) ** 2  # (S, side, side)
        inside = np.nonzero(distances <= half_widths[part, None, None].astype(np.float32) ** 2)
        canvas[tuple(corners[part][inside[0], axis] + side + inside[1 + axis] for axis in (0, 1))] = True
    return canvas[side : side + height, side : side + width]


def _boxes(height: int, width: int, share: float, generator: np.random.Generator) -> np.ndarray:
    low, high = BOX_SIDES
    tops, lefts = _scatter(height, width, (high, high), ((low + high) / 2) ** 2, share, generator)
    sides = generator.integers(low, high, size=(len(tops), 2), endpoint=True)
    mask = np.zeros((height, width), dtype=bool)
    for top, left, (tall, broad) in zip(tops, lefts, sides, strict=True):
        mask[max(top, 0) : max(top + tall, 0), max(left, 0) : max(left + broad, 0)] = True
    return mask


def _strokes(height: int, width: int, share: float, generator: np.random.Generator) -> np.ndarray:
    reach = (STROKE_SEGMENTS * SEGMENT_LENGTHS[1] + STROKE_WIDTHS[1]) / 2  # radius of the longest stroke
    window = np.array([height + 2 * reach, width + 2 * reach])
    number = generator.poisson(_holes_per_pixel(share, STROKE_AREA) * window.prod())
    middles = generator.uniform(size=(number, 2)) * window - reach - 0.5
    starts, ends, half_widths = draw_strokes(number, generator)
    shape = (number * STROKE_SEGMENTS, 2)
    return render_strokes(
        height,
        width,
        (starts + middles[:, None]).reshape(shape),
        (ends + middles[:, None]).reshape(shape),
        np.repeat(half_widths, STROKE_SEGMENTS),
    )


def draw_strokes(number: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw random polylines; the mean of each one over its length is at (0, 0).

    Returns:
        Starts and ends of the segments, ``(number, STROKE_SEGMENTS, 2)`` rows and columns each, and half the widths of
        the strokes, ``(number,)``.

    Example:
        >>> starts, ends, half_widths = draw_strokes(3, np.random.default_rng(0))
        >>> starts.shape, ends.shape, half_widths.shape
        ((3, 6, 2), (3, 6, 2), (3,))
        >>> np.allclose(ends[:, :-1], starts[:, 1:])  # the segments are connected
        True
    """
    headings = STROKE_TURN * generator.standard_normal((number, STROKE_SEGMENTS))
    headings[:, 0] = generator.uniform(0, 360, size=number)
    headings = np.radians(np.cumsum(headings, axis=1))
    lengths = generator.uniform(*SEGMENT_LENGTHS, size=headings.shape)
    half_widths = generator.uniform(*STROKE_WIDTHS, size=number) / 2
    steps = lengths[:, :, None] * np.stack([np.cos(headings), np.sin(headings)], axis=2)
    ends = np.cumsum(steps, axis=1)
    starts = ends - steps
    middles = ((starts + ends) / 2 * lengths[:, :, None]).sum(axis=1, keepdims=True)
    middles /= lengths.sum(axis=1)[:, None, None]  # (number, 1, 2)
    return starts - middles, ends - middles, half_widths


def _text(height: int, width: int, share: float, generator: np.random.Generator) -> np.ndarray:
    words, largest, mean_area = _words()
    tops, lefts = _scatter(height, width, largest, mean_area, share, generator)
    mask = np.zeros((height, width), dtype=bool)
    for top, left, number in zip(tops, lefts, generator.integers(len(words), size=len(tops)), strict=True):
        word = words[number]
        place = mask[max(top, 0) : max(top + word.shape[0], 0), max(left, 0) : max(left + word.shape[1], 0)]
        rows, columns = max(-top, 0), max(-left, 0)  # rows and columns of the word outside the image
        place |= word[rows : rows + place.shape[0], columns : columns + place.shape[1]]
    return mask


@lru_cache(maxsize=1)
def _words() -> tuple[list[np.ndarray], tuple[int, int], float]:
    """Render every word at every size in Pillow's built-in font.

    Returns:
        The words, ``(h, w)`` bool each; the largest h and w; the mean area.
    """
    words = []
    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        for word in WORDS:
            left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
            image = Image.new("1", (right - left, bottom - top))  # one bit: a pixel is missing or not
            ImageDraw.Draw(image).text((-left, -top), word, fill=1, font=font)
            words.append(np.array(image))
    largest = (max(word.shape[0] for word in words), max(word.shape[1] for word in words))
    return words, largest, float(np.mean([word.sum() for word in words]))


def _scatter(
    height: int,
    width: int,
    largest: tuple[int, int],
    mean_area: float,
    share: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Draw the first rows and columns of N holes that may touch the image, ``(2, N)``; no hole exceeds ``largest``."""
    tall, broad = height + largest[0] - 1, width + largest[1] - 1
    number = generator.poisson(_holes_per_pixel(share, mean_area) * tall * broad)
    places = generator.integers((0, 0), (tall, broad), size=(number, 2))  # shifted below: a hole may begin outside
    return (places - np.array(largest) + 1).T


def _holes_per_pixel(share: float, mean_area: float) -> float:
    """Return the density at which a pixel lies in no hole with probability 1 - share.

    The number of holes that cover a pixel is Poisson distributed with mean density x area.
    """
    return -math.log1p(-share) / mean_area


_KINDS: dict[str, Callable[[int, int, float, np.random.Generator], np.ndarray]] = {
    "boxes": _boxes,
    "strokes": _strokes,
    "text": _text,
}
