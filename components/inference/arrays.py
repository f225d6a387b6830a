"""Arrays as people have them, and the layouts that a network takes.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import numpy as np

from components.data.readers.images import DecodedImage

PIXELS = (np.uint8, np.uint16)


def as_image(array: np.ndarray) -> DecodedImage:
    """Take an array of pixels as an image.

    Args:
        array: ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or, with alpha, ``(H, W, 2)`` or ``(H, W, 4)``; uint8 or uint16.

    Raises:
        ValueError: it has another shape.
    """
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] > 4):
        raise ValueError(
            f"array {array.shape} {array.dtype}: give one image as (H, W) or (H, W, C) with C = 1, 2, 3 or 4 channels, "
            "or a batch as (B, C, H, W)"
        )
    channels = array if array.ndim == 3 else array[..., None]
    alpha = channels[..., -1] if channels.shape[2] in (2, 4) else None
    pixels = channels[..., : channels.shape[2] - (alpha is not None)]
    return DecodedImage(pixels[..., 0] if pixels.shape[2] == 1 else pixels, alpha, "", None, None, ())


def as_array(image: DecodedImage, ndim: int) -> np.ndarray:
    """Return the pixels of an image, with alpha as the last channel: ``(H, W)`` or ``(H, W, C)``.

    Args:
        image: to return.
        ndim: 2 or 3, that of the array that was given.
    """
    if ndim == 2:
        return image.pixels
    channels = image.pixels.reshape(*image.pixels.shape[:2], -1)
    return channels if image.alpha is None else np.concatenate([channels, image.alpha[..., None]], axis=2)


def as_batch(array: np.ndarray, channels: int) -> tuple[np.ndarray, bool]:
    """Take a float array as a batch of inputs of a network.

    Args:
        array: ``(B, C, H, W)``, ``(B, H, W, C)``, ``(H, W, C)`` or, for one channel, ``(H, W)``; any float dtype,
            values in [0, 1].
        channels: C of the network.

    Returns:
        (``(B, C, H, W)`` float32, whether the channels were last).

    Raises:
        ValueError: the shape, the number of channels, the dtype or the values are not those that the network wants.
    """
    wanted = f"give float values in [0, 1] as (B, {channels}, H, W), or uint8 or uint16 pixels as (H, W, C)"
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{wanted}; the array has dtype {array.dtype}")
    batch = array[..., None] if array.ndim == 2 else array
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or not batch.size:
        raise ValueError(f"{wanted}; the array has the shape {array.shape}")
    is_last = array.ndim != 4 or (batch.shape[1] != channels and batch.shape[3] == channels)
    if batch.shape[3 if is_last else 1] != channels:
        raise ValueError(f"{wanted}; the array has the shape {array.shape}")
    least, largest = float(batch.min()), float(batch.max())
    if not (least >= 0 and largest <= 1):  # also false of NaN
        raise ValueError(f"{wanted}; the array has values from {least:g} to {largest:g}")
    moved = batch.transpose(0, 3, 1, 2) if is_last else batch
    return np.ascontiguousarray(moved, dtype=np.float32), is_last
