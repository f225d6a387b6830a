"""The convolutional dictionary of the unrolled algorithms: synthesis, its adjoint, and kernels to begin with.

Legend: B images, C channels of an image, k maps, H rows, W columns. A dictionary ``(C, k, 9, 9)`` has one kernel for
each map and channel.
"""

from __future__ import annotations

import hashlib
import math
from importlib import import_module
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL_SIZE = 9
DICTIONARY_SCALE = 10.0
"""The published algorithms divide dictionaries and step sizes by it."""

WHITE = 255.0
"""Value of the published range that is 1 in the product's range."""

EARLIER = 0.1
"""Published weight of the loss of an image or layer that is not the result, relative to that of the result."""

FIRST_STEP_OF_MAPS = 1.0
FIRST_STEP_OF_IMAGE = 5.0
FIRST_THRESHOLD_OF_LAYER = 1.0

LINE_LENGTH = 2.5
LINE_WIDTH = 0.6
"""Standard deviations of a line along and across it, in pixels."""


PUBLISHED_KERNELS = "eb93c5e0812599c4ce8cd44f171b7fe950f8603c0038c1cac942245ed181a9af"
"""SHA-256 of the file of the references, ``init_kernel.mat``."""
KEY = "C9"
"""Of the kernels ``(3, 32, 9, 9)`` in that file."""


def synthesis(maps: Tensor, kernels: Tensor) -> Tensor:
    """The sum of all maps, each convolved with its kernel: ``(B, k, H, W), (C, k, 9, 9) -> (B, C, H, W)``."""
    return F.conv2d(maps, kernels, padding=KERNEL_SIZE // 2)


def analysis(image: Tensor, kernels: Tensor) -> Tensor:
    """The adjoint of ``synthesis``: ``(B, C, H, W), (C, k, 9, 9) -> (B, k, H, W)``."""
    return F.conv_transpose2d(image, kernels, padding=KERNEL_SIZE // 2)


def line_kernels(number: int, channels: int = 1) -> Tensor:
    """Return kernels of straight lines in all directions, ``(channels, number, 9, 9)``.

    With ``x`` to the right and ``y`` down from the centre, kernel k is proportional to
    ``exp(-u^2 / (2 * 2.5^2) - v^2 / (2 * 0.6^2))``, ``u = x cos p + y sin p``, ``v = y cos p - x sin p``,
    ``p = pi k / number``. It is the same in all channels, has no negative entry and the sum 1.

    Example:
        >>> kernels = line_kernels(4)
        >>> kernels.shape, torch.allclose(kernels[:, 2], kernels[:, 0].rot90(1, (1, 2)))
        (torch.Size([1, 4, 9, 9]), True)
    """
    places = torch.arange(KERNEL_SIZE, dtype=torch.float64) - KERNEL_SIZE // 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    angles = math.pi / number * torch.arange(number, dtype=torch.float64)[:, None, None]
    along, across = x * angles.cos() + y * angles.sin(), y * angles.cos() - x * angles.sin()  # (number, 9, 9)
    values = torch.exp(-(along**2) / (2 * LINE_LENGTH**2) - across**2 / (2 * LINE_WIDTH**2))
    values = values / values.sum(dim=(-2, -1), keepdim=True)
    return values.to(torch.get_default_dtype()).expand(channels, -1, -1, -1).clone()


def first_kernels(number: int, channels: int = 1, file: str = "") -> Tensor:
    """Return the first of the published kernels, if there is a file of them, or else `line_kernels`.

    The path of the file is among the settings that identify a run, so its content must be fixed, too: any other file is
    refused.

    Args:
        number: of kernels for each channel.
        channels: of the image.
        file: path of ``init_kernel.mat`` of https://github.com/hongwang01/RCDNet at c6e1539; empty for lines.

    Returns:
        ``(channels, number, 9, 9)``.

    Raises:
        ValueError: the file cannot be read, is another one, or has fewer kernels or channels.
    """
    if not file:
        return line_kernels(number, channels)
    try:
        content = Path(file).read_bytes()
    except (OSError, TypeError, ValueError) as error:  # the latter two of what can be no path
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"kernel_file: {file}: cannot be read ({reason})") from None
    if (found := hashlib.sha256(content).hexdigest()) != PUBLISHED_KERNELS:
        raise ValueError(
            f"kernel_file: {file}: not the published init_kernel.mat: its SHA-256 is {found[:12]}..., not "
            f"{PUBLISHED_KERNELS[:12]}..."
        )
    kernels = torch.from_numpy(import_module("scipy.io").loadmat(BytesIO(content))[KEY])
    if channels > kernels.shape[0] or number > kernels.shape[1]:
        raise ValueError(
            f"kernel_file: it holds {kernels.shape[1]} kernels for {kernels.shape[0]} channels, and {number} for "
            f"{channels} are wanted"
        )
    return kernels[:channels, :number].to(torch.get_default_dtype()).clone()
