"""Restore an image of any size with bounded memory, in overlapping tiles.

Legend: C channels, H rows, W columns. Along one axis of N pixels a tile covers ``start:stop``; of its result
``keep_start:keep_stop`` is kept, and the kept parts of all tiles cover the axis once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from components.equivariance import rotate

ALIGNMENT = 16
"""Tiles begin at multiples of this, so that up to 4 poolings by 2 see the same blocks in a tile as in the
image."""

Restorer = Callable[[Tensor], Tensor]
"""``(B, C', h, w)`` -> ``(B, C, s h, s w)``, s the scale, 1 but for super-resolution."""


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis, in pixels of the image."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def restore(
    network: Restorer, image: Tensor, *, tile: int = 512, overlap: int = 64, self_ensemble: bool = False
) -> Tensor:
    """The restored image; memory is bounded by the tile, whatever the size of the image.

    Every pixel comes from a tile in which it lies at least ``overlap / 2`` from each edge that is not the
    image's. So the result equals that of the whole image, to rounding, if an output pixel depends only on
    input pixels at most ``overlap / 2`` away, and on their position only through the grid of 16 x 16 blocks
    (up to 4 poolings). A network that looks further (attention, instance normalisation, or resizing by a
    factor that depends on the size, as a U-Net does at sizes its poolings do not divide) gives another image
    than in one pass.

    Args:
        network: in evaluation mode, on the device of the image.
        image: ``(C', h, w)``, in [0, 1], of any size; an image of at most a tile takes one pass.
        tile: the greatest height and width given to the network, in pixels; a multiple of 16.
        overlap: the least overlap of neighbouring tiles, in pixels; a multiple of 16.
        self_ensemble: the mean over the quarter turns, ``mean_n rot(f(rot(x, n)), -n)``: equivariant to
            rounding, at four times the cost.

    Returns:
        ``(C, s h, s w)``, with the dtype and on the device of the image, not clipped.

    Raises:
        ValueError: a shape, tile or overlap that does not fit, a network in training mode, or one that
            gives no image of a whole multiple of the size.
    """
    _check(network, image, tile, overlap)
    if not self_ensemble:
        return _restore_tiles(network, image, tile, overlap)
    turned = (rotate(_restore_tiles(network, rotate(image, n), tile, overlap), -n) for n in range(4))
    return torch.stack(list(turned)).mean(dim=0)


def tile_spans(size: int, tile: int, overlap: int) -> list[TileSpan]:
    """The tiles along an axis of ``size`` pixels.

    They begin every ``tile - overlap`` pixels; the last is shifted inwards to the last multiple of 16 from
    which it reaches the end, so it may be up to 15 pixels smaller, never padded. Cuts lie in the middle of
    each overlap.
    """
    last = -(-max(size - tile, 0) // ALIGNMENT) * ALIGNMENT
    starts = [*range(0, last, tile - overlap), last]
    stops = [min(start + tile, size) for start in starts]
    inner_cuts = [(start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)]
    cuts = [0, *inner_cuts, size]
    return [TileSpan(*span) for span in zip(starts, stops, cuts[:-1], cuts[1:], strict=True)]


def _restore_tiles(network: Restorer, image: Tensor, tile: int, overlap: int) -> Tensor:
    restored: Tensor | None = None
    scale = 1
    for rows in tile_spans(image.shape[-2], tile, overlap):
        for columns in tile_spans(image.shape[-1], tile, overlap):
            part = image[None, :, rows.start : rows.stop, columns.start : columns.stop].contiguous()
            with torch.inference_mode():
                result = network(part)
            if restored is None:
                scale = max(1, result.shape[-1] // part.shape[-1]) if result.ndim == 4 else 0
                # Allocated outside of inference mode: the caller may change it in place.
                channels = result.shape[1]
                restored = image.new_empty((channels, scale * image.shape[-2], scale * image.shape[-1]))
            expected = (1, restored.shape[0], scale * part.shape[-2], scale * part.shape[-1])
            if tuple(result.shape) != expected:
                raise ValueError(
                    f"network: gives {tuple(result.shape)} for {tuple(part.shape)}, but must keep the shape or enlarge "
                    "it by a whole number: run this network on whole images instead"
                )
            restored[
                :,
                _scaled(rows.keep_start, rows.keep_stop, scale),
                _scaled(columns.keep_start, columns.keep_stop, scale),
            ] = result[
                0,
                :,
                _scaled(rows.keep_start - rows.start, rows.keep_stop - rows.start, scale),
                _scaled(columns.keep_start - columns.start, columns.keep_stop - columns.start, scale),
            ]
    assert restored is not None  # there is at least one tile
    return restored


def _scaled(start: int, stop: int, scale: int) -> slice:
    return slice(scale * start, scale * stop)


def _check(network: Restorer, image: Tensor, tile: int, overlap: int) -> None:
    if image.ndim != 3 or not image.numel() or not image.is_floating_point():
        raise ValueError(f"image {tuple(image.shape)} {image.dtype}: give one float image (C, H, W), not a batch")
    if tile % ALIGNMENT or overlap % ALIGNMENT or not 0 <= overlap < tile:
        raise ValueError(
            f"tile {tile} and overlap {overlap} must be multiples of {ALIGNMENT}, with 0 <= overlap < tile: "
            "use 512 and 64, or less of both where memory is short"
        )
    if isinstance(network, nn.Module):
        for name, module in network.named_modules():
            if module.training and isinstance(module, (_BatchNorm, _DropoutNd)):
                raise ValueError(f"network: '{name}' is in training mode: call network.eval() first")
