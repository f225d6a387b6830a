"""Comparison images: images side by side, with one enlarged detail of each below.

Legend: images are ``(C, H, W)`` in [0, 1], C = 1 or 3. Lengths are in pixels of the picture. Every image pixel is drawn
as a whole number of picture pixels, so nothing is blurred. Only an image wider than `WIDEST` is averaged in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy.ndimage import uniform_filter
from torch import Tensor

from components.evaluation.metrics import as_saved, psnr

NARROWEST, WIDEST = 240, 480
"""Smallest and largest width of a column: smaller images are enlarged, larger images are averaged."""

ZOOM = 4
"""Enlargement of the detail relative to the image, at least."""

MARGIN, HEADER, GAP = 12, 44, 8
FRAME = "#E69F00"
DPI = 100

Image = Tensor | np.ndarray


@style.context("default")
def save_comparison(path: Path, columns: Mapping[str, Image]) -> Figure:
    """Save a PNG of images side by side, such as input | restored | truth, with their PSNR against the last image.

    The detail is the square in which the first image has large errors and the last image has much structure. A frame
    marks it. Images are shown as saved in 8 bits. The PSNR is computed from the images as saved, too.

    Args:
        path: path of the PNG.
        columns: title -> ``(C, H, W)``, all of one shape, from the most degraded image to the reference.

    Returns:
        The figure, for inspection.

    Raises:
        ValueError: fewer than two images, different shapes, or not 1 or 3 channels.
    """
    images = {title: torch.as_tensor(np.array(image)) for title, image in columns.items()}
    shapes = {tuple(image.shape) for image in images.values()}
    if len(images) < 2 or len(shapes) > 1 or len(shape := shapes.pop()) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"columns of shapes {[tuple(image.shape) for image in images.values()]}: give at least two images "
            "of one shape (1 or 3, H, W)"
        )
    _, height, width = shape
    enlargement, reduction = max(1, NARROWEST // width), -(-width // WIDEST)
    shown_height, shown_width = height * enlargement // reduction, width * enlargement // reduction
    zoom = ZOOM * enlargement
    side = max(1, min(shown_width // zoom, height, width))  # side of the detail in image pixels
    first, *_, truth = images.values()
    top, left = _telling_detail(first, truth, side)

    column_width = max(shown_width, side * zoom)
    total_width = 2 * MARGIN + len(images) * (column_width + GAP) - GAP
    total_height = HEADER + shown_height + GAP + side * zoom + MARGIN
    figure = _figure(total_width, total_height)
    for index, (title, image) in enumerate(images.items()):
        x = MARGIN + index * (column_width + GAP)
        decibels = psnr(as_saved(image)[None], as_saved(truth)[None]).item()
        caption = "" if image is truth else f"{decibels:.2f} dB"
        figure.text(x / total_width, 1 - 5 / total_height, title, va="top", weight="bold", size=9)
        figure.text(x / total_width, 1 - 23 / total_height, caption, va="top", size=9)
        pixels = _bytes(image)
        detail = pixels[top : top + side, left : left + side]
        _place(figure, _resize(pixels, enlargement, reduction), x, HEADER)
        _place(figure, _resize(detail, zoom, 1), x, HEADER + shown_height + GAP)
        corner = [(offset * enlargement) // reduction for offset in (left, top)]
        _frame(figure, x + corner[0], HEADER + corner[1], side * enlargement // reduction)
        _frame(figure, x, HEADER + shown_height + GAP, side * zoom)
    figure.savefig(path, format="png", dpi=DPI)
    return figure


def _telling_detail(degraded: Tensor, truth: Tensor, side: int) -> tuple[int, int]:
    """Return top and left of the ``side x side`` window with the largest (square error) x (variance of the truth)."""
    clean = truth.double().numpy()
    error = uniform_filter((degraded.double().numpy() - clean) ** 2, size=(1, side, side)).mean(axis=0)
    means, squares = (uniform_filter(values, size=(1, side, side)) for values in (clean, clean**2))
    variance = (squares - means**2).clip(min=0).mean(axis=0)
    # uniform_filter centres the window of pixel i on i - side // 2 .. i + (side - 1) // 2
    rows, columns = (slice(side // 2, size - (side - 1) // 2) for size in clean.shape[1:])
    scores = (error * variance)[rows, columns]
    top, left = np.unravel_index(np.argmax(scores), scores.shape)
    return int(top), int(left)


def _figure(width: int, height: int) -> Figure:
    # Half a pixel is added, because matplotlib rounds the size down.
    figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _bytes(image: Tensor) -> np.ndarray:
    """Convert an image ``(1 or 3, H, W)`` to ``(H, W, 3)`` of 8 bits."""
    pixels = (as_saved(image) * 255).round().to(torch.uint8)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _resize(pixels: np.ndarray, enlargement: int, reduction: int) -> np.ndarray:
    """Resize pixels ``(H, W, 3)``: repeat every pixel, or average blocks of ``reduction x reduction`` pixels.

    Rows and columns that do not fill a block are cut off.
    """
    if reduction == 1:
        return pixels.repeat(enlargement, axis=0).repeat(enlargement, axis=1)
    height, width = (size // reduction for size in pixels.shape[:2])
    blocks = pixels[: height * reduction, : width * reduction].reshape(height, reduction, width, reduction, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def _place(figure: Figure, pixels: np.ndarray, x: int, y: int) -> None:
    """Put pixels with their upper left corner at x, y, counted from the upper left corner of the picture."""
    figure.figimage(pixels, x, int(figure.bbox.height) - y - len(pixels), origin="upper")


def _frame(figure: Figure, x: int, y: int, side: int) -> None:
    """Draw a square frame just outside the pixels x .. x + side - 1."""
    bottom = int(figure.bbox.height) - y - side
    style: dict[str, Any] = {"fill": False, "edgecolor": FRAME, "linewidth": 2 * 72 / DPI, "antialiased": False}
    figure.add_artist(Rectangle((x - 1, bottom - 1), side + 2, side + 2, transform=None, **style))
