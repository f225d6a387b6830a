"""The image model of a registered version: image files or arrays in, the same kind out. It needs no code of ours.

MLflow's pyfunc flavour calls `ImageModel.predict`; this module and all that it imports are copied into the version
under a name of their own when the version is registered.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.data.readers.images import decode_image, luma
from components.inference.arrays import PIXELS, as_array, as_batch, as_image
from components.inference.contract import NOISE_LEVEL, Contract
from components.inference.integrity import check_files
from components.inference.restorer import ImageRestorer, Options
from components.inference.writing import encode_image, same_format

COLUMN, MASK_COLUMN = "image", "mask"
MOST_BYTES = 100 << 20
"""Largest size of the encoded images of one request, in bytes."""

PARAMETERS: dict[str, int | float | str] = {
    "tile": 512,
    "overlap": 64,
    "self_ensemble": 1,
    "metal_threshold": 2500.0,
    "mask": "",
}
"""Parameters of a request with their defaults; ``mask`` is an encoded image in base64, for a request of one image."""


def parameters_of(contract: Contract) -> dict[str, int | float | str | None]:
    """Return the parameters that a model takes with their defaults: `PARAMETERS`, for some ``noise_level`` too.

    ``noise_level`` is in grey levels of 255; None is the middle of the range of training.
    """
    return {**PARAMETERS} if contract.noise_level is None else {**PARAMETERS, NOISE_LEVEL: None}


WANTED = (
    'give encoded images as bytes or base64 (PNG, JPEG, TIFF, WebP, BMP), in a list or in a DataFrame column "image"; '
    "or arrays of uint8 or uint16 pixels (H, W, C), or of float values in [0, 1] (B, C, H, W)"
)


class ImageModel:
    """A network that takes and gives images as people have them.

    Attributes:
        restorer: the network with what is known of it.
        digest: SHA-256 of the list of the version's files, which names the model in a DICOM file.
    """

    def __init__(self, restorer: ImageRestorer, digest: str = "") -> None:
        self.restorer, self.digest = restorer, digest

    @classmethod
    def load(cls, program: Path, contract: dict[str, Any], device: str = "auto") -> ImageModel:
        """Load a registered version, after its files were verified.

        Args:
            program: the exported program, in the version's folder ``artifacts``.
            contract: `Contract.as_dict` of the version.
            device: a device of torch; "auto" is a GPU where there is one, else the CPU.

        Raises:
            ValueError: a file of the version is altered, missing or additional, or there is no such device.
        """
        digest = check_files(program.parents[1])
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        network = load_program(program, device)
        return cls(ImageRestorer(network, Contract.from_dict(contract), device), digest)

    def predict(self, model_input: Any, parameters: Mapping[str, Any] | None = None) -> Any:
        """Restore images; a network that recognises images gives the score of each class instead.

        Args:
            model_input: a DataFrame with the column ``image`` (and ``mask``) or a list, of encoded images (bytes, or
                text in base64); bytes of one image; an array of uint8 or uint16 pixels ``(H, W)`` or ``(H, W, C)``; a
                list of such arrays; an array of floats in [0, 1], ``(B, C, H, W)`` with the channels of the network.
            parameters: of `parameters_of` the contract.

        Returns:
            What was given, restored: bytes for bytes, text for text, in the format of the image; arrays of the same
            dtype and layout; a DataFrame for a DataFrame.

        Raises:
            ValueError: the input is not of these kinds. The message says what is wanted first.
        """
        options, mask = _options(parameters or {}, parameters_of(self.restorer.contract))
        if hasattr(model_input, "columns"):
            return self._of_table(model_input, options, mask)
        if isinstance(model_input, dict) and set(model_input) <= {COLUMN, MASK_COLUMN} and COLUMN in model_input:
            mask = model_input.get(MASK_COLUMN, mask)
            model_input = model_input[COLUMN]
        if isinstance(model_input, bytes | str):
            return self._of_files([model_input], [mask], options)[0]
        if isinstance(model_input, np.ndarray) and model_input.dtype != object:
            return self._of_array(model_input, options, mask)
        items = list(model_input) if isinstance(model_input, list | tuple | np.ndarray) else []
        if items and all(isinstance(item, bytes | str) for item in items):
            return self._of_files(items, [mask] * len(items), options)
        if items and all(isinstance(item, np.ndarray) for item in items):
            return [self._of_array(item, options, mask) for item in items]
        raise ValueError(f"{WANTED}; this is {type(model_input).__name__}")

    def _of_table(self, table: Any, options: Options, mask: bytes | str | None) -> Any:
        unknown = [str(name) for name in table.columns if name not in (COLUMN, MASK_COLUMN)]
        if COLUMN not in table.columns or unknown:
            raise ValueError(f"{WANTED}; the columns are {', '.join(map(str, table.columns)) or 'none'}")
        masks = list(table[MASK_COLUMN]) if MASK_COLUMN in table.columns else [mask] * len(table)
        results = self._of_files(list(table[COLUMN]), masks, options)
        if self.restorer.contract.kind == "labels":
            return type(table)(results, index=table.index, columns=list(self.restorer.contract.classes) or None)
        return type(table)({COLUMN: results}, index=table.index)

    def _of_files(self, files: list[Any], masks: list[Any], options: Options) -> list[Any]:
        if sum(len(file) for file in files if isinstance(file, bytes | str)) > MOST_BYTES * 4 // 3:
            raise ValueError(f"at most {MOST_BYTES >> 20} MiB of encoded images in one request: send fewer at a time")
        return [self._of_file(*pair, options, number) for number, pair in enumerate(zip(files, masks, strict=True), 1)]

    def _of_file(self, file: Any, mask: Any, options: Options, number: int) -> Any:
        if self.restorer.contract.kind == "ct":
            return self._of_scan(file, mask, options, number)
        image = decode_image(_decoded(file), f"image {number}")
        if self.restorer.contract.kind == "labels":
            return self.restorer.scores(image).tolist()
        holes = None
        if mask is not None and mask != "":
            pixels = decode_image(_decoded(mask), f"mask {number}").pixels
            holes = is_missing(pixels)
        content, _ = encode_image(self.restorer.restore(image, options, holes), same_format(image.format))
        return base64.b64encode(content).decode() if isinstance(file, str) else content

    def _of_scan(self, file: Any, mask: Any, options: Options, number: int) -> Any:
        metal = None
        if mask is not None and mask != "":
            metal = is_missing(decode_image(_decoded(mask), f"mask {number}").pixels)
        try:
            content = self.restorer.restore_scan(_decoded(file), options, metal, self.digest).data
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from None
        return base64.b64encode(content).decode() if isinstance(file, str) else content

    def _of_array(self, array: np.ndarray, options: Options, mask: bytes | str | None) -> np.ndarray:
        is_labels = self.restorer.contract.kind == "labels"
        if array.dtype in PIXELS:
            if array.ndim == 4:
                is_first = array.shape[-1] > 4
                images = array.transpose(0, 2, 3, 1) if is_first else array
                restored = np.stack([self._of_array(image, options, mask) for image in images])
                return restored.transpose(0, 3, 1, 2) if is_first and not is_labels else restored
            image = as_image(array)
            if is_labels:
                return self.restorer.scores(image)
            holes = None if not mask else is_missing(decode_image(_decoded(mask), "mask").pixels)
            return as_array(self.restorer.restore(image, options, holes), array.ndim)
        if options.noise_level is not None:
            raise ValueError("params: noise_level: an array of floats holds the noise level as its last channel")
        batch, is_last = as_batch(array, self.restorer.contract.inputs)
        if is_labels:
            return self.restorer.scores_of_floats(batch)
        restored = self.restorer.restore_floats(batch, options)
        moved = restored.transpose(0, 2, 3, 1) if is_last else restored
        return moved if array.ndim == 4 else moved[0].reshape(moved.shape[1:][: array.ndim])


def load_program(path: Path, device: str) -> torch.nn.Module:
    """Load an exported program onto a device. The module of a program cannot be moved later.

    Raises:
        ValueError: there is no such device.
    """
    from torch.export.passes import move_to_device_pass

    program = torch.export.load(path)
    if torch.device(device).type != "cpu":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {device}: torch cannot use it here ({error})") from error
        program = move_to_device_pass(program, device)
    return program.module()


def is_missing(pixels: np.ndarray) -> np.ndarray:
    """Return where the image of a mask is lighter than middle grey, ``(H, W)`` bool."""
    grey = luma(pixels) if pixels.ndim == 3 else pixels
    return grey > np.iinfo(grey.dtype).max / 2


def _options(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[Options, bytes | str | None]:
    if unknown := sorted(set(parameters) - set(defaults)):
        raise ValueError(f"params: {', '.join(defaults)} are known; {unknown[0]} is not")
    values = {**defaults, **{key: value for key, value in parameters.items() if value is not None}}
    mask = values.pop("mask")
    numbers: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults[key]
        kind = float if default is None else type(default)
        try:
            numbers[key] = value if value is None else kind(value)
        except (TypeError, ValueError, OverflowError):
            shown = "the middle of the range of training" if default is None else default
            raise ValueError(f"params: {key} is a number, by default {shown}; this is {value!r:.50}") from None
    return Options(**numbers), mask or None


def _decoded(file: Any) -> bytes:
    if isinstance(file, bytes):
        return file
    if not isinstance(file, str):
        raise ValueError(f"{WANTED}; this is {type(file).__name__}")
    try:
        return base64.b64decode(file.partition("base64,")[2] if file.startswith("data:") else file, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{WANTED}; this text is no base64 ({error})") from None
