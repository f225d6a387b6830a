"""Restore an image of any size with bounded memory, in overlapping tiles.

Legend: C channels, H rows, W columns. Along one axis of N pixels, a tile covers ``start:stop``. Only
``keep_start:keep_stop`` of its result is kept. The kept intervals of all tiles cover the axis exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 16
"""Tiles begin at multiples of this number of pixels. Up to 4 poolings by 2 then use the same blocks in a tile as in the
image."""

_OF_TRAINING = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
"""Layers whose output differs in training mode."""

Restorer = Callable[[Tensor], Tensor]
"""``(B, C', h, w)`` -> ``(B, C, s h, s w)``; s is the scale, which is 1 except for super-resolution."""


@dataclass(frozen=True)
class TileSpan:
    """One tile along one axis, in pixels of the image.

    Attributes:
        start: first pixel of the tile.
        stop: end of the tile (exclusive).
        keep_start: first pixel that is kept.
        keep_stop: end of the kept interval (exclusive).
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


def restore(
    network: Restorer, image: Tensor, *, tile: int = 512, overlap: int = 64, self_ensemble: bool = False
) -> Tensor:
    """Restore an image in tiles; the memory depends on the size of the tile, not on the size of the image.

    Every pixel is taken from a tile in which it has a distance of at least ``overlap / 2`` from each edge inside the
    image. The result equals that of the whole image up to rounding under two conditions: an output pixel depends only
    on input pixels at most ``overlap / 2`` away, and it depends on their position only through the grid of 16 x 16
    blocks (up to 4 poolings). A network with a larger receptive field gives a different image than in one pass.
    Examples are attention, instance normalisation, and resizing by a factor that depends on the size, as in a U-Net
    whose poolings do not divide the size.

    Args:
        network: in evaluation mode, on the device of the image.
        image: ``(C', h, w)``, in [0, 1], of any size. An image that is not larger than a tile takes one pass.
        tile: largest height and width of the network's input, in pixels; a multiple of 16.
        overlap: smallest overlap of neighbouring tiles, in pixels; a multiple of 16.
        self_ensemble: whether to average over the quarter turns, ``mean_n rot(f(rot(x, n)), -n)``. The result is
            equivariant up to rounding, at four times the cost.

    Returns:
        ``(C, s h, s w)``, with the dtype and on the device of the image, not clipped.

    Raises:
        ValueError: a shape, tile or overlap is invalid, the network is in training mode, or its output size is not a
            whole multiple of the input size.
    """
    _check(network, image, tile, overlap)
    if not self_ensemble:
        return _restore_tiles(network, image, tile, overlap)
    turned = (_turn(_restore_tiles(network, _turn(image, n), tile, overlap), -n) for n in range(4))
    return torch.stack(list(turned)).mean(dim=0)


def _turn(image: Tensor, quarter_turns: int) -> Tensor:
    """Rotate an image counter-clockwise."""
    return torch.rot90(image, quarter_turns, dims=(-2, -1))


def tile_spans(size: int, tile: int, overlap: int) -> list[TileSpan]:
    """Compute the tiles along one axis.

    A tile begins every ``tile - overlap`` pixels. The last tile begins at the first multiple of 16 from which it
    reaches the end. It may therefore be up to 15 pixels smaller; it is never padded. The kept intervals meet in the
    middle of each overlap.

    Args:
        size: number of pixels of the axis.
        tile: largest size of a tile in pixels; a multiple of 16.
        overlap: smallest overlap of neighbouring tiles in pixels; a multiple of 16.
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
                if result.ndim != 4:
                    raise ValueError(
                        f"network: gives {tuple(result.shape)} for {tuple(part.shape)}, but must give (B, C, h, w), "
                        "one image for each: use a network that restores images"
                    )
                scale = max(1, result.shape[-1] // part.shape[-1])
                # Allocated outside inference mode, so that the caller may change it in place.
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
            if module.training and isinstance(module, _OF_TRAINING):
                raise ValueError(f"network: '{name}' is in training mode: call network.eval() first")
