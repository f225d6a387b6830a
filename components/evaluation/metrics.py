"""How near a restored image is to the truth: PSNR and SSIM, of all channels and of the luma.

Legend: B images, C channels (1 grey, 3 RGB), H rows, W columns; values in [0, 1]. Computed in float64, given
back as float64 ``(B,)`` on the device of the images: the mean over a test set is the caller's, who needs
every image.
"""

from __future__ import annotations

import math

import torch
from skimage import metrics
from torch import Tensor

PSNR_CAP = 20 * math.log10(2 * 255)
"""54.15 dB: wrong by half a grey level everywhere. Identical images would have infinite PSNR and with it
every mean; the truth, read from 8-bit files, is itself no surer than half a level."""

SSIM_WINDOW = 11
"""Width of the Gaussian window in pixels: sigma 1.5, cut at 3.5 sigma."""


def as_saved(images: Tensor) -> Tensor:
    """Images as an 8-bit file gives them back: ``round(255 clip(x, 0, 1)) / 255``, of any shape; NaN stays."""
    return (images.clamp(0, 1) * 255).round() / 255


def luma(images: Tensor) -> Tensor:
    """Y of ITU-R BT.601 in its studio range, as the deraining literature compares images.

    ``Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255``, so 16/255 for black and 235/255 for white; nothing
    is clipped or rounded. (MATLAB scripts that convert 8-bit images round Y as well: 0.01 dB less at 31 dB,
    0.1 dB at 40.) A grey image is its own luma, unchanged: its PSNR stays comparable to the literature on
    grey images.

    Shape: ``(B, 3, H, W)`` or ``(B, 1, H, W)`` -> ``(B, 1, H, W)``, in the dtype of the images.

    Raises:
        ValueError: not 1 or 3 channels.

    Source: MATLAB's rgb2ycbcr.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images {tuple(images.shape)}: luma needs (B, 1, H, W) or (B, 3, H, W)")
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (16 + 65.481 * red + 128.553 * green + 24.966 * blue) / 255


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, ``-10 log10 mean (x - y)^2``, at most `PSNR_CAP`.

    Shape: two ``(B, C, H, W)`` -> ``(B,)``. The mean runs over channels and pixels; the peak is 1; nothing is
    clipped.

    Raises:
        ValueError: the shapes differ or are not ``(B, C, H, W)``.
    """
    _check(images, references)
    squares = (images.double() - references.double()).square()
    return (-10 * squares.mean(dim=(1, 2, 3)).log10()).clamp(max=PSNR_CAP)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image: 1 is identical.

    Gaussian window 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, variances divided by the
    window's weight; averaged over the pixels whose whole window lies in the image, then over channels.

    Shape: two ``(B, C, H, W)``, H and W at least 11 -> ``(B,)``. Runs on the CPU, one image after another, in
    scikit-image: separable filters, where torchmetrics convolves with the whole window and counts a padded
    border.

    Raises:
        ValueError: the shapes differ or are not ``(B, C, H, W)``, or an image is smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli, *Image Quality Assessment*, IEEE TIP 2004.
    """
    _check(images, references)
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels are smaller than the SSIM window: "
            f"use at least {SSIM_WINDOW} x {SSIM_WINDOW}, or psnr alone"
        )
    similarities = [
        metrics.structural_similarity(
            image.numpy(),
            reference.numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for image, reference in zip(images.detach().cpu().double(), references.detach().cpu().double(), strict=True)
    ]
    return torch.tensor(similarities, dtype=torch.float64, device=images.device)


def quality(images: Tensor, references: Tensor) -> dict[str, Tensor]:
    """The figures reported for restored images: ``psnr``, ``ssim``, and ``psnr_y``, ``ssim_y`` of the luma.

    Both sides are first clipped to [0, 1] and rounded to 8 bits (`as_saved`), so that the figures are those
    of the files a user would keep.

    Shape: two ``(B, C, H, W)``, C = 1 or 3, H and W at least 11 -> ``(B,)`` each.

    Raises:
        ValueError: as `luma`, `psnr` and `ssim`.
    """
    saved, truth = as_saved(images.double()), as_saved(references.double())
    saved_luma, truth_luma = luma(saved), luma(truth)
    return {
        "psnr": psnr(saved, truth),
        "ssim": ssim(saved, truth),
        "psnr_y": psnr(saved_luma, truth_luma),
        "ssim_y": ssim(saved_luma, truth_luma),
    }


def _check(images: Tensor, references: Tensor) -> None:
    if images.ndim != 4 or images.shape != references.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and references {tuple(references.shape)}: "
            "give both in one shape (B, C, H, W)"
        )
