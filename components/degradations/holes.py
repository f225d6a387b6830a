"""Missing pixels, for inpainting: boxes, brush strokes, text, or given masks.

Legend: C channels, H rows, W columns, S segments. The holes' sizes are in pixels, whatever the size of the image, and
holes also begin outside of it: a patch has the statistics of a crop of a large image. In a mask True (1) is missing.
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
"""What an image without a known pixel is filled with."""

SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Pixels of standard deviation of the means that fill a hole, the finest that reaches a known pixel."""

NEAR = 0.05  # least weight of known pixels in such a mean

# All sizes in pixels, drawn uniformly.
BOX_SIDES = (6, 30)
STROKE_SEGMENTS = 6
SEGMENT_LENGTHS = (6.0, 24.0)
STROKE_WIDTHS = (4.0, 12.0)
STROKE_TURN = 50.0  # degrees, standard deviation from one segment to the next
STROKE_AREA = 766.0  # mean of 20 000 strokes: segments overlap
FONT_SIZES = range(12, 29, 2)
WORDS = (
    *("the", "of", "and", "to", "in", "light", "Sample", "photograph", "Copyright", "image", "water", "Network"),
    *("restored", "holes", "Winter", "between", "rotation", "2019", "1874", "No. 5", "field", "by", "QUICK", "JUMP"),
)


@dataclass(frozen=True)
class Holes:
    """The image with random holes, filled from around (`filled`), and the mask of its missing pixels as last channel.

    The holes are scattered independently of each other (a Boolean model), so that the share of missing pixels has the
    drawn value as its expectation: a large image is near it, a small patch may lie in one hole or between all.

    Attributes:
        kind: "boxes", upright rectangles with sides of 6 to 30 pixels; "strokes", round brush strokes of 4 to 12 pixels
            width, bent at random; "text", words in letters of 12 to 28 pixels height.
        share: expected share of missing pixels; each image draws its own uniformly from this range.

    Raises:
        ValueError: the kind is unknown, or the range is reversed or leaves 0..0.9.

    Source: Yu et al., *Free-form image inpainting with gated convolution*, ICCV 2019, for strokes as holes.
    """

    kind: Literal["boxes", "strokes", "text"]
    share: tuple[float, float]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind '{self.kind}' is unknown: use one of {', '.join(sorted(_KINDS))}")
        check_range("share", self.share, 0, 0.9, "missing pixels as a share of the image")

    def mask(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """A random mask, ``(H, W)`` bool."""
        return _KINDS[self.kind](height, width, generator.uniform(*self.share), generator)

    def __call__(self, clean: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``(C, H, W)`` float32 -> ``(C + 1, H, W)``."""
        _, height, width = clean.shape
        return with_holes(clean, self.mask(height, width, generator))


@dataclass(frozen=True, eq=False)
class GivenHoles:
    """The image with the holes of a random mask, cropped and flipped at random, and the mask as last channel.

    Where the image is larger than the mask, the mask goes on as its own mirror image.

    Attributes:
        masks: ``(h, w)`` each, True or above 0 where a pixel is missing; anything with a length and an index, such as
            memory-mapped arrays, of which only the crop is read.

    Raises:
        ValueError: there is no mask; when called, a mask is not ``(h, w)``.
    """

    masks: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        if not len(self.masks):
            raise ValueError("masks: there are none; give at least one")

    def mask(self, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
        """A random mask, ``(H, W)`` bool."""
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
    """``(C, H, W)`` float32 and ``(H, W)`` bool -> ``(C + 1, H, W)``: `filled`, and the mask as 0, 1."""
    return np.concatenate([filled(clean, mask), mask[None].astype(np.float32)])


def filled(clean: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image ``(C, H, W)`` without what is missing: a plain first guess, which a network then corrects.

    A missing pixel becomes the Gaussian mean of the known ones about it, ``G * (known x) / (G * known)``, at the finest
    of `SCALES` at which these have a weight of `NEAR`; at none, the mean of all that is known. Known pixels are exactly
    those of the clean image; those missing have no part. It commutes with quarter turns, to rounding.

    Source: Knutsson, Westin, *Normalized and differential convolution*, CVPR 1993.
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
    """``(H, W)`` bool: True within half a width of a segment. ``(S, 2)`` rows and columns twice, and ``(S,)``."""
    mask = np.zeros((height, width), dtype=bool)
    least = np.minimum(starts, ends) - half_widths[:, None]
    most = np.maximum(starts, ends) + half_widths[:, None]
    seen = ((most >= 0) & (least <= (height - 1, width - 1))).all(axis=1)
    if not seen.any():
        return mask
    starts, ends, half_widths, least, most = (each[seen] for each in (starts, ends, half_widths, least, most))
    corners = np.ceil(least).astype(np.int64)  # (S, 2), of squares that hold one segment each
    side = int((np.floor(most) - corners).max()) + 1
    canvas = np.zeros((height + 2 * side, width + 2 * side), dtype=bool)  # a square ends less than a side outside
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
    reach = (STROKE_SEGMENTS * SEGMENT_LENGTHS[1] + STROKE_WIDTHS[1]) / 2  # of the longest stroke from its middle
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
    """Random polylines about (0, 0): starts and ends of their segments, ``(number, STROKE_SEGMENTS, 2)`` rows and
    columns each, and half their widths, ``(number,)``. The origin is the mean over a stroke's length.
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
        rows, columns = max(-top, 0), max(-left, 0)  # of the word, above and beside the image
        place |= word[rows : rows + place.shape[0], columns : columns + place.shape[1]]
    return mask


@lru_cache(maxsize=1)
def _words() -> tuple[list[np.ndarray], tuple[int, int], float]:
    """Every word at every size in Pillow's built-in font, ``(h, w)`` bool each; the largest h, w; the mean area."""
    words = []
    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        for word in WORDS:
            left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
            image = Image.new("1", (right - left, bottom - top))  # of one bit: no half missing pixels
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
    """``(2, N)``: the tops and lefts of N holes, of at most the largest size, that may touch the image."""
    tall, broad = height + largest[0] - 1, width + largest[1] - 1
    number = generator.poisson(_holes_per_pixel(share, mean_area) * tall * broad)
    places = generator.integers((0, 0), (tall, broad), size=(number, 2))  # from the largest hole's reach above, on
    return (places - np.array(largest) + 1).T


def _holes_per_pixel(share: float, mean_area: float) -> float:
    """A pixel lies in a Poisson number of holes, of mean density x area, so in none with probability 1 - share."""
    return -math.log1p(-share) / mean_area


_KINDS: dict[str, Callable[[int, int, float, np.random.Generator], np.ndarray]] = {
    "boxes": _boxes,
    "strokes": _strokes,
    "text": _text,
}
