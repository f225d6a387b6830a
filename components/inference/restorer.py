"""Restore images as people have them (8 or 16 bits, grey or colour, with alpha) with a network of float tensors.

Legend: C channels of the network, H rows, W columns of the image, s the scale (1 but for super-resolution).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.brief import first_line
from components.data.readers.images import DecodedImage, luma, to_float
from components.inference.contract import Contract
from components.inference.labels import to_trained_size
from components.inference.tiles import restore

LEAST_SIDE = 16
"""An image with a smaller side, in pixels, is extended to it by copies of its last row and column, and the result is
cropped. An exported program refuses images of a few pixels."""

TILES_AT_ONCE = 8
"""Tiles that a GPU gets at once. A CPU gets one: more need more memory and no less time."""

_LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey: ITU-R BT.601."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are restored.

    Attributes:
        tile: largest height and width of a tile in pixels; a multiple of 16.
        overlap: least overlap of neighbouring tiles in pixels; a multiple of 16.
        self_ensemble: number of transformed images that are averaged: 1, 4 (rotations) or 8 (and mirror images).
        metal_threshold: a pixel above it is metal, in Hounsfield units; for CT slices without a mask.
        noise_level: standard deviation of the noise in grey levels of 255, for a network that takes it; None for the
            middle of the range that it was trained on.
    """

    tile: int = 512
    overlap: int = 64
    self_ensemble: int = 1
    metal_threshold: float = 2500.0
    noise_level: float | None = None


class ImageRestorer:
    """A network with what is known of it.

    The network computes one image at a time, also if several threads call it, so that the memory is that of one image.

    Attributes:
        contract: what the network takes and gives.
        device: of the network.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], contract: Contract, device: torch.device | str) -> None:
        self.network, self.contract, self.device = network, contract, torch.device(device)
        self._one_at_a_time = threading.Lock()

    def restore(
        self, image: DecodedImage, options: Options | None = None, mask: np.ndarray | None = None
    ) -> DecodedImage:
        """Restore an image; the result has the channels, the depth and the alpha of the image.

        - A grey image for a network of colours is given as three equal channels. The result is their luma.
        - The channels of a colour image for a network of grey are restored one by one.
        - Alpha is not restored. It is enlarged (bicubic) where the network enlarges the image.

        Args:
            image: to restore.
            options: of the tiles and the ensemble.
            mask: ``(H, W)`` bool, True where pixels are missing; for networks that take one.

        Returns:
            The image with the new pixels, clipped to the range of its dtype and rounded.

        Raises:
            ValueError: the network takes another kind of input, the mask has another size than the image, the noise
                level is impossible or missing, or the network fails.
        """
        planes = _planes(image.pixels, self.contract.colours)
        restored = np.concatenate([self._restore_floats(plane, options or Options(), mask) for plane in planes])
        pixels = _pixels(restored, like=image.pixels)
        alpha = image.alpha
        if alpha is not None and self.contract.scale > 1:
            alpha = _enlarged(alpha, self.contract.scale)
        return replace(image, pixels=pixels, alpha=alpha)

    def restore_scan(
        self, data: bytes, options: Options | None = None, metal: np.ndarray | None = None, digest: str = ""
    ) -> Any:
        """Restore a CT slice; for a network of the kind "ct".

        Args:
            data: a DICOM file.
            options: of the tiles, the ensemble and the threshold of the metal.
            metal: ``(H, W)`` bool, the metal; None to use the threshold.
            digest: SHA-256 of the model, or another name of it, for the elements of the file.

        Returns:
            `components.inference.ct.RestoredSlice`.

        Raises:
            ValueError: the network takes no CT slices or fails, or the file or the metal cannot be used.
        """
        if self.contract.kind != "ct":
            raise ValueError(f"a network of kind {self.contract.kind} restores no CT slice")
        chosen = options or Options()
        ct = import_module("components.inference.ct")  # imports pydicom, which other networks do not need
        return ct.restore_dicom(
            lambda inputs: self.restore_floats(inputs[None], chosen)[0],
            data,
            model=f"eqreg-{self.contract.task or 'ct'} {digest[:12]}" if len(digest) == 64 else digest or "eqreg-ct",
            digest=digest,
            metal=metal,
            threshold_hu=chosen.metal_threshold,
            settings=f"self-ensemble {chosen.self_ensemble}" if chosen.self_ensemble > 1 else "",
        )

    def restore_floats(self, images: np.ndarray, options: Options | None = None) -> np.ndarray:
        """Restore a batch of network inputs, ``(B, C, H, W)`` float32 -> ``(B, C', s H, s W)`` float32, not clipped.

        Raises:
            ValueError: the network fails.
        """
        return np.stack([self._tiled(torch.from_numpy(image), options or Options()) for image in images])

    def scores(self, image: DecodedImage) -> np.ndarray:
        """Return the output of a network that recognises images, ``(classes,)`` float32.

        Raises:
            ValueError: the network fails.
        """
        return self.scores_of_floats(self.label_input(image)[None])[0]

    def label_input(self, image: DecodedImage) -> np.ndarray:
        """Return the input of a network that recognises images, ``(C, h, w)`` float32, of the size of training."""
        (plane, *others) = _planes(image.pixels, self.contract.colours)
        if others:  # a colour image for a network of grey
            plane = to_float(luma(image.pixels))[None]
        return to_trained_size(plane, self.contract.image_size)

    def scores_of_floats(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs for a batch, ``(B, C, H, W)`` float32 -> ``(B, classes)`` float32.

        Raises:
            ValueError: the network fails.
        """
        with self._computing(images.shape), torch.inference_mode():
            result = self.network(torch.from_numpy(images).to(self.device)).float().cpu()
        return _finite(result)

    def _restore_floats(self, image: np.ndarray, options: Options, mask: np.ndarray | None) -> np.ndarray:
        """Restore one image of the network's colours, ``(C, H, W)`` float32."""
        level = self.contract.chosen_noise_level(options.noise_level)
        if self.contract.kind == "image":
            if mask is not None:
                raise ValueError("mask: this network takes an image alone")
            if level is not None:  # (C, H, W) -> (C + 1, H, W)
                image = np.concatenate((image, np.full_like(image[:1], level / 255)))
            return self._tiled(torch.from_numpy(image), options)
        if self.contract.kind != "masked_image":
            raise ValueError(f"a network of kind {self.contract.kind} restores no image")
        if mask is None:
            raise ValueError("the network wants an image and a mask of its missing pixels")
        if mask.shape != image.shape[-2:]:
            sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in (mask, image)]
            raise ValueError(f"mask: {sizes[0]} pixels, its image has {sizes[1]}")
        inputs = _masked_input(image, mask)
        return np.where(mask, self._tiled(torch.from_numpy(inputs), options), image)

    def _tiled(self, image: Tensor, options: Options) -> np.ndarray:
        height, width = image.shape[-2:]
        if min(height, width) < LEAST_SIDE:
            rows, columns = (torch.arange(max(side, LEAST_SIDE)).clamp(max=side - 1) for side in (height, width))
            image = image[:, rows][:, :, columns]
        with self._computing((1, *image.shape)):
            restored = restore(
                self.network,
                image,
                tile=options.tile,
                overlap=options.overlap,
                self_ensemble=options.self_ensemble,
                device=self.device,
                batch=1 if self.device.type == "cpu" else TILES_AT_ONCE,
            )
        scale = restored.shape[-1] // image.shape[-1]
        return _finite(restored[:, : scale * height, : scale * width])

    @contextmanager
    def _computing(self, shape: tuple[int, ...]) -> Iterator[None]:
        """Wait for the turn; a failure of the network becomes a ValueError of one line."""
        with self._one_at_a_time:
            try:
                yield
            except (RuntimeError, AssertionError) as error:
                size = f"{shape[-1]}x{shape[-2]}"
                raise ValueError(f"{size} pixels, which this model fails on ({first_line(error)})") from error


def _finite(output: Tensor) -> np.ndarray:
    """Return the output of a network; as pixels, NaN would become black.

    Raises:
        ValueError: a value is not finite.
    """
    if not output.isfinite().all():
        raise ValueError("the model gives values that are no finite numbers: its training may have diverged")
    result: np.ndarray = output.numpy()
    return result


def _masked_input(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the input of a network for missing pixels; imports SciPy, which other networks do not need."""
    holes = import_module("components.degradations.holes")
    result: np.ndarray = holes.with_holes(image, mask)
    return result


def _planes(pixels: np.ndarray, colours: int) -> list[np.ndarray]:
    """Return the inputs of a network of 1 or 3 colours, ``(colours, H, W)`` float32 each."""
    values = to_float(pixels)
    if pixels.ndim == 2:
        return [np.repeat(values[None], colours, axis=0)]
    channels = np.ascontiguousarray(values.transpose(2, 0, 1))
    return [channels] if colours == 3 else [channel[None] for channel in channels]


def _pixels(restored: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Convert ``(C', H, W)`` floats to pixels with the channels and the dtype of an image, rounded and clipped."""
    values = np.clip(restored, 0, 1)
    if like.ndim == 2 and len(values) == 3:
        values = np.tensordot(np.asarray(_LUMA, np.float32), values, axes=1)[None]
    values = np.rint(values * np.float32(np.iinfo(like.dtype).max)).astype(like.dtype)
    return values[0] if like.ndim == 2 else np.ascontiguousarray(values.transpose(1, 2, 0))


def _enlarged(alpha: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge ``(H, W)`` by a whole number: ``(s H, s W)``, bicubic, of the same dtype."""
    size = [scale * side for side in alpha.shape]
    values = torch.from_numpy(to_float(alpha))[None, None]
    larger = torch.nn.functional.interpolate(values, size=size, mode="bicubic", align_corners=False)
    return _pixels(larger[0].numpy(), like=alpha)
