"""Drawn metal: cross-sections of implants, of the shapes and sizes that are found in patients.

Every shape is a union of rounded rectangles: a disc has no straight sides, a screw is one long rectangle, a wire a
chain of them. Lengths are in pixels of the image; x points right and y down, from the centre of its first pixel.
Legend: N rectangles, S rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CANVAS = 256  # pixels, to measure areas on
STANDARD_SIZE = 416  # pixels: the side of the images that areas refer to
SOFT_TISSUE = -300  # HU: a body is denser
SMALLEST_BODY = 0.02  # share of the image
TRIES = 24  # places drawn until one is inside of the body
INSIDE = 0.98  # share of the metal that has to be


@dataclass(frozen=True)
class Rectangles:
    """N rounded rectangles, ``(N,)`` an array.

    Attributes:
        x, y: the centres.
        lengths, widths: half the sides, along and across.
        corners: radii of the corners, at most the smaller half side.
        angles: radians from the x axis towards the y axis.
    """

    x: np.ndarray
    y: np.ndarray
    lengths: np.ndarray
    widths: np.ndarray
    corners: np.ndarray
    angles: np.ndarray

    def area(self) -> float:
        """Of all together, overlaps counted once; measured on a canvas of 256 x 256, within about 1 %."""
        reach = float((np.hypot(self.x, self.y) + np.hypot(self.lengths, self.widths)).max())
        scale = (CANVAS / 2 - 1) / reach
        middle = (CANVAS - 1) / 2
        return float(render(self.placed(scale, 0.0, middle, middle), CANVAS).sum()) / scale**2

    def placed(self, scale: float, turn: float, x: float, y: float) -> Rectangles:
        """Scaled and turned about the origin, then moved to (x, y)."""
        cosine, sine = math.cos(turn) * scale, math.sin(turn) * scale
        return Rectangles(
            x + self.x * cosine - self.y * sine,
            y + self.x * sine + self.y * cosine,
            self.lengths * scale,
            self.widths * scale,
            self.corners * scale,
            self.angles + turn,
        )


def render(rectangles: Rectangles, size: int) -> np.ndarray:
    """The share of each pixel that metal fills, ``(S, S)`` float32 in [0, 1].

    ``clip(1/2 - distance, 0, 1)`` with the distance in pixels from the pixel's centre to the nearest border, negative
    inside, less as much for the border on the other side of a thin rectangle: exact along straight edges that follow
    the pixels. Small rectangles are drawn so on up to 8 x 8 parts of each pixel, and averaged. Where rectangles
    overlap, the larger share counts.
    """
    coverage = np.zeros((size, size), dtype=np.float32)
    for x, y, length, width, corner, angle in zip(*vars(rectangles).values(), strict=True):
        half = min(length, width)
        fine = min(8, max(1, math.ceil(1.5 / half)))
        reach = math.hypot(length, width) + 1
        rows = slice(max(0, math.floor(y - reach)), max(0, math.ceil(y + reach) + 1))
        columns = slice(max(0, math.floor(x - reach)), max(0, math.ceil(x + reach) + 1))
        window = coverage[rows, columns]
        height, breadth = window.shape
        down = (rows.start - y + (np.arange(height * fine) + 0.5) / fine - 0.5)[:, None]
        right = (columns.start - x + (np.arange(breadth * fine) + 0.5) / fine - 0.5)[None, :]
        along = np.abs(right * math.cos(angle) + down * math.sin(angle)) - (length - corner)
        across = np.abs(down * math.cos(angle) - right * math.sin(angle)) - (width - corner)
        distance = np.hypot(along.clip(0), across.clip(0)) + np.maximum(along, across).clip(max=0) - corner
        inner = np.clip(0.5 - fine * distance, 0, 1) - np.clip(0.5 - fine * (distance + 2 * half), 0, 1)
        share = inner.reshape(height, fine, breadth, fine).mean(axis=(1, 3))
        np.maximum(window, share, out=window)
    return coverage


def _rounded(*boxes: tuple[float, float, float, float, float, float]) -> Rectangles:
    """Rectangles from (x, y, length, width, roundness, angle) each, moved so that the mean of their centres is (0, 0).

    Roundness 1 is a half circle at each end of a rectangle, 0 four right angles.
    """
    x, y, lengths, widths, roundness, angles = np.array(boxes, dtype=np.float64).T
    return Rectangles(x - x.mean(), y - y.mean(), lengths, widths, roundness * np.minimum(lengths, widths), angles)


def _joint(generator: np.random.Generator) -> Rectangles:
    """A prosthesis: the ball of a hip, a little oval where it is cut askew, most with a neck."""
    ball = (0, 0, 1, generator.uniform(0.85, 1), 1, 0)
    if generator.random() < 0.4:
        return _rounded(ball)
    length = generator.uniform(0.5, 1.0)
    return _rounded(ball, (0.6 + length, 0, length, generator.uniform(0.25, 0.5), 0.5, 0))


def _screws(generator: np.random.Generator) -> Rectangles:
    """Pedicle screws: two, mirrored, pointing to one another, each with its head."""
    lean, apart, width = generator.uniform(0.1, 0.7), generator.uniform(0.5, 1.2), generator.uniform(0.1, 0.2)
    screws: list[tuple[float, float, float, float, float, float]] = []
    for side in (-1, 1):
        angle = math.pi / 2 - side * lean
        screws.append((side * apart, 0, 1, width, generator.uniform(0.5, 1), angle))
        screws.append((side * apart + math.cos(angle), math.sin(angle), 0.25, 0.22, 0.8, angle))  # the head
    return _rounded(*screws)


def _rods(generator: np.random.Generator) -> Rectangles:
    """One to three rods or nails, cut across: discs and ovals."""
    boxes = []
    for number in range(generator.integers(1, 4)):
        place = number * generator.uniform(3, 6)
        boxes.append(
            (place, generator.uniform(-1, 1), generator.uniform(0.8, 1.6), 0.8, 1, generator.uniform(0, math.pi))
        )
    return _rounded(*boxes)


def _fillings(generator: np.random.Generator) -> Rectangles:
    """Fillings and crowns: two to seven blobs on the arch of the teeth."""
    radius = generator.uniform(7, 11)
    places = generator.choice(np.linspace(0.1, math.pi - 0.1, 12), generator.integers(2, 8), replace=False)
    return _rounded(
        *(
            (
                radius * math.cos(place),
                -1.2 * radius * math.sin(place),
                generator.uniform(0.5, 1.3),
                generator.uniform(0.5, 1.0),
                generator.uniform(0.3, 1),
                generator.uniform(0, math.pi),
            )
            for place in places
        )
    )


def _clips(generator: np.random.Generator) -> Rectangles:
    """Surgical clips: one to five small bars that lie about."""
    return _rounded(
        *(
            (
                *(generator.normal(0, 5, 2) if number else (0.0, 0.0)),
                generator.uniform(0.8, 1.6),
                generator.uniform(0.3, 0.6),
                0.5,
                generator.uniform(0, math.pi),
            )
            for number in range(generator.integers(1, 6))
        )
    )


def _wire(generator: np.random.Generator) -> Rectangles:
    """A wire, lead or coil: a chain of short pieces along a curve that bends ever on, some to a spiral."""
    pieces, bend = int(generator.integers(8, 22)), generator.uniform(-0.5, 0.5)
    angles = np.cumsum(bend + generator.normal(0, 0.12, pieces))
    x, y = np.cumsum(np.cos(angles)), np.cumsum(np.sin(angles))
    width = generator.uniform(0.2, 0.4)
    return _rounded(*((x[n], y[n], 0.5 + width, width, 1.0, angles[n]) for n in range(pieces)))


# Each kind of implant with the areas in which it is found, in pixels of a 416 x 416 image.
KINDS: dict[str, tuple[Callable[[np.random.Generator], Rectangles], float, float]] = {
    "clips": (_clips, 8, 120),
    "wire": (_wire, 60, 400),
    "fillings": (_fillings, 80, 900),
    "rods": (_rods, 40, 800),
    "screws": (_screws, 150, 1500),
    "joint": (_joint, 400, 4000),
}
SMALLEST_AREA = min(low for _, low, _ in KINDS.values())
LARGEST_AREA = max(high for _, _, high in KINDS.values())


def draw_metal(body: np.ndarray, area: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """The coverage of a drawn implant within the body, ``(S, S)`` float32 in [0, 1].

    Its area is log-uniform between both limits, in pixels of a 416 x 416 image; its kind is any of those found in that
    size; its angle is free. Of `TRIES` places about pixels of the body, it takes the first that has 98 % of the metal
    in the body, otherwise the best; metal outside of the body is cut off.

    Args:
        body: ``(S, S)`` bool, see `body_of`.
    """
    size = body.shape[0]
    drawn = float(np.exp(generator.uniform(*np.log(area))))
    kinds = [kind for kind, (_, low, high) in KINDS.items() if low <= drawn <= high]
    shape = KINDS[kinds[generator.integers(len(kinds))]][0](generator)
    scale = math.sqrt(drawn / shape.area()) * size / STANDARD_SIZE
    places = np.flatnonzero(body)
    best, most = np.zeros(body.shape, dtype=np.float32), -1.0
    for _ in range(TRIES):
        row, column = divmod(int(places[generator.integers(len(places))]), size)
        coverage = render(shape.placed(scale, generator.uniform(0, 2 * math.pi), column, row), size)
        inside = np.where(body, coverage, 0)
        share = float(inside.sum() / max(coverage.sum(), 1e-6))
        if share > most:
            best, most = inside, share
        if coverage.sum() > 0 and inside.sum() >= INSIDE * coverage.sum():
            return inside
    return best


def body_of(hu: np.ndarray) -> np.ndarray:
    """The largest connected part denser than -300 HU, ``(S, S)`` bool; the lungs are no part of it.

    Raises:
        ValueError: it fills less than 2 % of the slice.
    """
    labels, _ = ndimage.label(hu > SOFT_TISSUE)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if sizes.max() < SMALLEST_BODY * hu.size:
        raise ValueError(
            f"the slice has no body: {sizes.max()} of {hu.size} pixels together are above {SOFT_TISSUE} HU; "
            "use slices in Hounsfield units (air -1000, water 0) that show a patient"
        )
    return labels == sizes.argmax()
