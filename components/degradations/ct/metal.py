"""Random metal: cross-sections of implants, with the shapes and sizes that are found in patients.

Every shape is a union of rounded rectangles. A disc is a rounded rectangle without straight sides, a screw is one long
rectangle, and a wire is a chain of rectangles. Lengths are in pixels of the image. x points right and y down; the
origin is the centre of the first pixel.
Legend: N rectangles, S rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CANVAS = 256  # pixels: side of the canvas on which areas are measured
STANDARD_SIZE = 416  # pixels: side of the images to which areas refer
SOFT_TISSUE = -300  # HU: a body is denser
SMALLEST_BODY = 0.02  # share of the image
TRIES = 24  # largest number of positions drawn until one is inside the body
INSIDE = 0.98  # share of the metal that has to be inside the body


@dataclass(frozen=True)
class Rectangles:
    """N rounded rectangles; each property is an ``(N,)`` array.

    Attributes:
        x: columns of the centres.
        y: rows of the centres.
        lengths: half the sides along the rectangles.
        widths: half the sides across the rectangles.
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
        """Area of the union of all rectangles, measured on a canvas of 256 x 256 pixels, within about 1 %."""
        reach = float((np.hypot(self.x, self.y) + np.hypot(self.lengths, self.widths)).max())
        scale = (CANVAS / 2 - 1) / reach
        middle = (CANVAS - 1) / 2
        return float(render(self.placed(scale, 0.0, middle, middle), CANVAS).sum()) / scale**2

    def placed(self, scale: float, turn: float, x: float, y: float) -> Rectangles:
        """Scale and rotate the rectangles about the origin, then move them to (x, y).

        Args:
            scale: factor of all lengths.
            turn: rotation angle in radians, from the x axis towards the y axis.
            x: column of the new origin.
            y: row of the new origin.
        """
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
    """Render the coverage: the share of each pixel that metal fills, ``(S, S)`` float32 in [0, 1].

    The coverage is ``clip(1/2 - distance, 0, 1)``. The distance in pixels is from the pixel's centre to the nearest
    border; it is negative inside. The same term for the opposite border is subtracted, which matters for a thin
    rectangle. The coverage is exact along straight edges that are parallel to the pixel grid. Small rectangles are
    rendered on up to 8 x 8 sub-pixels of each pixel and averaged. Where rectangles overlap, the larger share is used.
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
    """Build rectangles from (x, y, length, width, roundness, angle) each; the mean of their centres is moved to (0, 0).

    Roundness 1 is a half circle at each end of a rectangle. Roundness 0 is four right angles.
    """
    x, y, lengths, widths, roundness, angles = np.array(boxes, dtype=np.float64).T
    return Rectangles(x - x.mean(), y - y.mean(), lengths, widths, roundness * np.minimum(lengths, widths), angles)


def _joint(generator: np.random.Generator) -> Rectangles:
    """A prosthesis: the ball of a hip, slightly oval as in an oblique section, in most cases with a neck."""
    ball = (0, 0, 1, generator.uniform(0.85, 1), 1, 0)
    if generator.random() < 0.4:
        return _rounded(ball)
    length = generator.uniform(0.5, 1.0)
    return _rounded(ball, (0.6 + length, 0, length, generator.uniform(0.25, 0.5), 0.5, 0))


def _screws(generator: np.random.Generator) -> Rectangles:
    """Pedicle screws: two mirrored screws that point to each other, each with a head."""
    lean, apart, width = generator.uniform(0.1, 0.7), generator.uniform(0.5, 1.2), generator.uniform(0.1, 0.2)
    screws: list[tuple[float, float, float, float, float, float]] = []
    for side in (-1, 1):
        angle = math.pi / 2 - side * lean
        screws.append((side * apart, 0, 1, width, generator.uniform(0.5, 1), angle))
        screws.append((side * apart + math.cos(angle), math.sin(angle), 0.25, 0.22, 0.8, angle))  # the head
    return _rounded(*screws)


def _rods(generator: np.random.Generator) -> Rectangles:
    """Cross-sections of one to three rods or nails: discs and ovals."""
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
    """Surgical clips: one to five small bars at random positions."""
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
    """A wire, lead or coil: a chain of short pieces along a curve that bends continuously, sometimes into a spiral."""
    pieces, bend = int(generator.integers(8, 22)), generator.uniform(-0.5, 0.5)
    angles = np.cumsum(bend + generator.normal(0, 0.12, pieces))
    x, y = np.cumsum(np.cos(angles)), np.cumsum(np.sin(angles))
    width = generator.uniform(0.2, 0.4)
    return _rounded(*((x[n], y[n], 0.5 + width, width, 1.0, angles[n]) for n in range(pieces)))


# Each kind of implant with its smallest and largest area, in pixels of a 416 x 416 image.
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
    """Draw a random implant within the body and return its coverage, ``(S, S)`` float32 in [0, 1].

    The area of the implant is log-uniform between both limits. Its kind is drawn from the kinds that occur with this
    area. Its angle is uniform. Up to `TRIES` positions are drawn among the pixels of the body. The first one with at
    least 98 % of the metal inside the body is used, otherwise the best one. Metal outside the body is cut off.

    Args:
        body: ``(S, S)`` bool, see `body_of`.
        area: smallest and largest area, in pixels of a 416 x 416 image.
        generator: source of the random numbers.
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
    """Find the body: the largest connected region denser than -300 HU, ``(S, S)`` bool, without the lungs.

    Raises:
        ValueError: the region fills less than 2 % of the slice.
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
