"""Metrics of restored images against the reference: PSNR and SSIM of all channels and of the luma, for each task.

`quality` is for tasks that map an image to an image (rain, noise, blur). Each other task has its own function, which
computes the metrics that its literature reports. Legend: B images, C channels (1 grey, 3 RGB), H rows, W columns;
values in [0, 1]. Metrics are computed in float64 and returned as float64 ``(B,)`` on the device of the images. The
caller averages over the test set, because it also needs the value of each image.
"""

from __future__ import annotations

import math

import torch
from skimage import metrics
from torch import Tensor

PSNR_CAP = 20 * math.log10(2 * 255)
"""54.15 dB: an error of half a grey level everywhere. Identical images would have an infinite PSNR, and every mean that
contains them would be infinite. The reference comes from 8-bit files, so it is itself only accurate to half a level."""

SSIM_WINDOW = 11
"""Width of the Gaussian window in pixels: sigma 1.5, truncated at 3.5 sigma."""

BLOCK = 8
"""Width of a JPEG block in pixels."""


def as_saved(images: Tensor) -> Tensor:
    """Round images of any shape as an 8-bit file does: ``round(255 clip(x, 0, 1)) / 255``; NaN stays NaN.

    Example:
        >>> 255 * as_saved(torch.tensor([-0.1, 0.5, 1.2], dtype=torch.float64))
        tensor([  0., 128., 255.], dtype=torch.float64)
    """
    return (images.clamp(0, 1) * 255).round() / 255


def luma(images: Tensor) -> Tensor:
    """Compute Y of ITU-R BT.601 in its studio range, on which the deraining literature compares images.

    ``Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255``. Y is 16/255 for black and 235/255 for white. Nothing is
    clipped or rounded. (MATLAB scripts that convert 8-bit images also round Y. This lowers the PSNR by 0.01 dB at 31 dB
    and by 0.1 dB at 40 dB.) A grey image is returned unchanged, so its PSNR stays comparable to the literature on grey
    images.

    Shape: ``(B, 3, H, W)`` or ``(B, 1, H, W)`` -> ``(B, 1, H, W)``, in the dtype of the images.

    Raises:
        ValueError: the images do not have 1 or 3 channels.

    Source: MATLAB's rgb2ycbcr.

    Example:
        >>> white = luma(torch.ones(2, 3, 4, 4, dtype=torch.float64))
        >>> white.shape, round(255 * white.max().item(), 6)
        (torch.Size([2, 1, 4, 4]), 235.0)
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

    Example:
        >>> clean = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
        >>> psnr(clean + 0.1, clean).round(decimals=6)
        tensor([20., 20.], dtype=torch.float64)
    """
    _check(images, references)
    squares = (images.double() - references.double()).square()
    return (-10 * squares.mean(dim=(1, 2, 3)).log10()).clamp(max=PSNR_CAP)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity (SSIM) of each image; identical images have 1.

    The window is Gaussian, 11 x 11 pixels with sigma 1.5. K1 = 0.01, K2 = 0.03, and the data range is 1. Variances are
    divided by the window's weight. The result is averaged over the pixels whose whole window lies in the image, then
    over channels.

    Shape: two ``(B, C, H, W)``, H and W at least 11 -> ``(B,)``. scikit-image computes the SSIM on the CPU, image by
    image, with separable filters. (torchmetrics convolves with the whole window and includes a padded border.)

    Raises:
        ValueError: the shapes differ or are not ``(B, C, H, W)``, or an image is smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli, *Image Quality Assessment*, IEEE TIP 2004.

    Example:
        >>> clean = torch.rand(1, 3, 16, 16, generator=torch.manual_seed(0))
        >>> ssim(clean, clean)
        tensor([1.], dtype=torch.float64)
        >>> bool(ssim(clean * 0.5, clean) < 0.9)
        True
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
    """Compute the metrics reported for restored images: ``psnr``, ``ssim``, and ``psnr_y``, ``ssim_y`` of the luma.

    Images and references are first clipped to [0, 1] and rounded to 8 bits (`as_saved`). The metrics are therefore
    those of the saved files.

    Shape: two ``(B, C, H, W)``, C = 1 or 3, H and W at least 11 -> ``(B,)`` each.

    Raises:
        ValueError: as `luma`, `psnr` and `ssim`.

    Example:
        >>> clean = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
        >>> values = quality(clean + 0.1, clean)
        >>> sorted(values), values["psnr"].shape
        (['psnr', 'psnr_y', 'ssim', 'ssim_y'], torch.Size([1]))
    """
    saved, truth = as_saved(images.double()), as_saved(references.double())
    saved_luma, truth_luma = luma(saved), luma(truth)
    return {
        "psnr": psnr(saved, truth),
        "ssim": ssim(saved, truth),
        "psnr_y": psnr(saved_luma, truth_luma),
        "ssim_y": ssim(saved_luma, truth_luma),
    }


def psnr_b(images: Tensor, references: Tensor) -> Tensor:
    """PSNR of the luma with a penalty for visible 8 x 8 blocks, in dB, at most `PSNR_CAP`.

    ``-10 log10 (mean (x - y)^2 + BEF(x))`` for the image x and its reference y. The blocking effect factor is
    ``BEF(x) = eta max(D_edge - D_inside, 0)`` with ``eta = log2 8 / log2 min(H, W)``. D_edge is the mean squared
    difference of horizontal and vertical neighbours across the edge of a block. D_inside is the mean squared difference
    of all other neighbours. The factor does not depend on the reference. If the image is as smooth across the edges as
    inside the blocks, PSNR-B equals PSNR.

    The first pixel is taken as the corner of a block. If an image was rotated after its compression, it must be rotated
    back first, unless its sides are multiples of 8.

    Shape: two ``(B, C, H, W)``, C = 1 or 3 -> ``(B,)``. For an image without any block edge (H and W at most 8), PSNR-B
    is the PSNR.

    Raises:
        ValueError: as `luma` and `psnr`.

    Source: Yim, Bovik, *Quality Assessment of Deblocked Images*, IEEE TIP 2011.

    Example:
        >>> clean = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
        >>> shifted, blocked = clean + 0.1, clean + 0.1
        >>> blocked[:, :, :8] -= 0.2  # the same squared error, with an edge between two blocks
        >>> bool(psnr_b(blocked, clean) < psnr(blocked, clean)), bool(psnr_b(shifted, clean) == psnr(shifted, clean))
        (True, True)
    """
    _check(images, references)
    image, reference = luma(images.double()), luma(references.double())
    errors = (image - reference).square().mean(dim=(1, 2, 3))
    return (-10 * (errors + _blocking_effect(image)).log10()).clamp(max=PSNR_CAP)


def masked_psnr(images: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    """`psnr` of the pixels where the mask is True.

    Args:
        images: ``(B, C, H, W)``.
        references: ``(B, C, H, W)``.
        mask: boolean ``(B, 1, H, W)`` or ``(B, C, H, W)``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: the shapes do not match, the mask is not boolean, or it selects no pixel of an image.

    Example:
        >>> clean = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
        >>> mask = torch.eye(4, dtype=torch.bool)[None, None]
        >>> masked_psnr(torch.where(mask, clean + 0.1, clean + 0.7), clean, mask).round(decimals=6)
        tensor([20.], dtype=torch.float64)
    """
    return (-10 * _masked_mean_square(images, references, mask).log10()).clamp(max=PSNR_CAP)


def masked_ssim(images: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    """`ssim` after the pixels where the mask is False have been replaced by the values of the reference.

    These pixels count as identical. The replacement creates no edge that is in neither image. Setting the pixels to 0
    would create one.

    Args:
        images: ``(B, C, H, W)``, H and W at least 11.
        references: ``(B, C, H, W)``.
        mask: boolean ``(B, 1, H, W)`` or ``(B, C, H, W)``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: as `ssim` and `masked_psnr`.

    Example:
        >>> clean = torch.rand(1, 1, 16, 16, generator=torch.manual_seed(0))
        >>> mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
        >>> mask[..., 4:8, 4:8] = False
        >>> masked_ssim(torch.where(mask, clean, 0), clean, mask)  # the error is outside the mask only
        tensor([1.], dtype=torch.float64)
    """
    counted = _check_mask(images, references, mask)
    return ssim(torch.where(counted, images, references), references)


def crop_border(images: Tensor, pixels: int) -> Tensor:
    """Remove ``pixels`` rows and columns on every side: ``(..., H, W) -> (..., H - 2p, W - 2p)``, a view.

    Raises:
        ValueError: ``pixels`` is negative or nothing would be left.

    Example:
        >>> crop_border(torch.zeros(1, 3, 16, 20), 4).shape
        torch.Size([1, 3, 8, 12])
    """
    height, width = images.shape[-2:]
    if not 0 <= 2 * pixels < min(height, width):
        raise ValueError(
            f"a border of {pixels} pixels and images of {height} x {width}: use 0 to {(min(height, width) - 1) // 2}"
        )
    return images[..., pixels : height - pixels, pixels : width - pixels]


def super_resolution_quality(outputs: Tensor, references: Tensor, scale: int) -> dict[str, Tensor]:
    """Compute the metrics of super-resolution: ``psnr_y`` and ``ssim_y`` of the images as saved, without the border.

    ``scale`` pixels are cropped from every side, because there an up-sampled image depends on the boundary condition.
    The luma of a grey image is the image itself.

    Args:
        outputs: ``(B, C, H, W)``, C = 1 or 3, H and W at least 11 + 2 scale.
        references: ``(B, C, H, W)``.
        scale: factor of the super-resolution.

    Returns:
        ``(B,)`` each.

    Raises:
        ValueError: as `luma`, `psnr`, `ssim` and `crop_border`.

    Source: the protocol since Timofte, De Smet, Van Gool, *A+*, ACCV 2014.

    Example:
        >>> clean = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(0))
        >>> restored = clean.clone()
        >>> restored[..., 0] = 0  # an error in the border only
        >>> super_resolution_quality(restored, clean, scale=2)["ssim_y"]
        tensor([1., 1.], dtype=torch.float64)
    """
    saved, truth = (crop_border(luma(as_saved(x.double())), scale) for x in (outputs, references))
    return {"psnr_y": psnr(saved, truth), "ssim_y": ssim(saved, truth)}


def inpainting_quality(outputs: Tensor, inputs: Tensor, references: Tensor) -> dict[str, Tensor]:
    """Compute the metrics of inpainting: ``psnr``, ``ssim`` of the image and ``psnr_hole`` of the missing pixels.

    Known pixels are kept: where the mask is 0, the outputs are replaced by the inputs. The images are then rounded to 8
    bits (`as_saved`).

    Args:
        outputs: ``(B, C, H, W)``, H and W at least 11.
        inputs: ``(B, C + 1, H, W)``; the last channel is the mask, 1 = missing.
        references: ``(B, C, H, W)``.

    Returns:
        ``(B,)`` each.

    Raises:
        ValueError: the shapes do not match, or nothing is missing in an image.

    Example:
        >>> clean = torch.zeros(1, 3, 16, 16)
        >>> mask = torch.zeros(1, 1, 16, 16)
        >>> mask[..., 4:8, 4:8] = 1
        >>> metrics = inpainting_quality(clean + 0.2, torch.cat([clean, mask], dim=1), clean)
        >>> metrics["psnr_hole"].round(decimals=2), bool(metrics["psnr"] > metrics["psnr_hole"])
        (tensor([13.9800], dtype=torch.float64), True)
    """
    _check(outputs, references)
    _check_inputs(inputs, outputs, outputs.shape[1] + 1)
    missing = inputs[:, -1:] > 0.5
    composite = torch.where(missing, outputs.double(), inputs[:, :-1].double())
    saved, truth = as_saved(composite), as_saved(references.double())
    return {
        "psnr": psnr(saved, truth),
        "ssim": ssim(saved, truth),
        "psnr_hole": masked_psnr(saved, truth, missing),
    }


def jpeg_quality(outputs: Tensor, references: Tensor) -> dict[str, Tensor]:
    """Compute the metrics of JPEG restoration: ``psnr``, ``ssim`` of all channels, ``psnr_b`` of the luma, as saved.

    In colour, ``psnr_b`` is not comparable to ``psnr``, because the luma has 219 of 255 levels and a smaller error.

    Shape: two ``(B, C, H, W)``, C = 1 or 3, H and W at least 11 -> ``(B,)`` each.

    Raises:
        ValueError: as `luma`, `psnr` and `ssim`.

    Example:
        >>> clean = torch.zeros(1, 1, 16, 16)
        >>> metrics = jpeg_quality(clean + 0.2, clean)
        >>> sorted(metrics), bool(metrics["psnr"] == metrics["psnr_b"])  # no block edges
        (['psnr', 'psnr_b', 'ssim'], True)
    """
    saved, truth = as_saved(outputs.double()), as_saved(references.double())
    return {"psnr": psnr(saved, truth), "ssim": ssim(saved, truth), "psnr_b": psnr_b(saved, truth)}


def metal_artifact_quality(
    outputs: Tensor, inputs: Tensor, references: Tensor, *, hounsfield_range: float
) -> dict[str, Tensor]:
    """Compute the metrics of metal artifact reduction outside the metal: ``psnr``, ``ssim`` and ``rmse``.

    ``rmse = hounsfield_range sqrt(mean (x - y)^2)`` is in Hounsfield units. The means exclude the metal. For the SSIM,
    the metal takes the values of the reference. Nothing is clipped or rounded, because these images are not saved in 8
    bits.

    Args:
        outputs: ``(B, 1, H, W)``, H and W at least 11.
        inputs: ``(B, 3, H, W)``; the last channel is the mask, 1 = metal.
        references: ``(B, 1, H, W)``.
        hounsfield_range: Hounsfield units from grey value 0 to grey value 1, such as 4000 for -1000..3000 HU.

    Returns:
        ``(B,)`` each.

    Raises:
        ValueError: the shapes do not match, an image is all metal, or the range is not positive.

    Example:
        >>> clean = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
        >>> inputs = torch.cat([clean, clean, torch.zeros_like(clean)], dim=1)  # no metal
        >>> metrics = metal_artifact_quality(clean + 0.1, inputs, clean, hounsfield_range=4000)
        >>> metrics["rmse"].round(decimals=6)
        tensor([400.], dtype=torch.float64)
    """
    if not 0 < hounsfield_range < math.inf:
        raise ValueError(f"hounsfield_range {hounsfield_range}: use the Hounsfield units between grey values 0 and 1")
    _check(outputs, references)
    _check_inputs(inputs, outputs, 3)
    tissue = inputs[:, -1:] <= 0.5
    return {
        "psnr": masked_psnr(outputs, references, tissue),
        "ssim": masked_ssim(outputs, references, tissue),
        "rmse": hounsfield_range * _masked_mean_square(outputs, references, tissue).sqrt(),
    }


def top1(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the class with the largest score is the label, else 0; the mean is the top-1 accuracy.

    Shape: ``(B, classes)`` and integers ``(B,)`` -> ``(B,)`` float64. Scores with a NaN count as wrong. Among equal
    largest scores, the first class counts.

    Raises:
        ValueError: the shapes do not match, or a label is not a class.

    Example:
        >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor([1., 0.], dtype=torch.float64)
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)}: give (B, classes) and one label for each"
        )
    num_classes = scores.shape[1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels {int(labels.min())}..{int(labels.max())} and {num_classes} scores: use 0..{num_classes - 1}"
        )
    hits = (scores.argmax(dim=1) == labels) & ~scores.isnan().any(dim=1)
    return hits.double()


def _blocking_effect(image: Tensor) -> Tensor:
    """The blocking effect factor of `psnr_b`: ``(B, 1, H, W) -> (B,)``."""
    height, width = image.shape[-2:]
    edges, insides = [], []
    for length, steps in ((height, image.diff(dim=-2)), (width, image.diff(dim=-1).mT)):
        is_edge = torch.arange(1, length, device=image.device) % BLOCK == 0  # the differences lead to pixels 1, 2, ...
        edges.append(steps[:, :, is_edge].square().flatten(1))
        insides.append(steps[:, :, ~is_edge].square().flatten(1))
    at_edges, inside = torch.cat(edges, dim=1), torch.cat(insides, dim=1)
    if not at_edges.shape[1]:
        return image.new_zeros(len(image))
    eta = math.log2(BLOCK) / math.log2(min(height, width)) if min(height, width) > 1 else 0.0
    return eta * (at_edges.mean(dim=1) - inside.mean(dim=1)).clamp(min=0)


def _masked_mean_square(images: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    counted = _check_mask(images, references, mask)
    squares = (images.double() - references.double()).square()
    return torch.where(counted, squares, 0).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3))


def _check_mask(images: Tensor, references: Tensor, mask: Tensor) -> Tensor:
    """Check the mask and expand it to every channel, ``(B, C, H, W)``."""
    _check(images, references)
    if mask.dtype != torch.bool or mask.shape not in (images.shape, images[:, :1].shape):
        raise ValueError(
            f"mask {tuple(mask.shape)} of {mask.dtype} for images {tuple(images.shape)}: "
            "give a boolean mask (B, 1, H, W) or of the images' shape"
        )
    counted = mask.expand_as(images)
    empty = (~counted.flatten(1).any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the mask leaves no pixel of image {empty[0]} to compare: leave such images out")
    return counted


def _check_inputs(inputs: Tensor, outputs: Tensor, channels: int) -> None:
    expected = (outputs.shape[0], channels, *outputs.shape[-2:])
    if inputs.shape != expected:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} for outputs {tuple(outputs.shape)}: give {expected}, the mask last"
        )


def _check(images: Tensor, references: Tensor) -> None:
    if images.ndim != 4 or images.shape != references.shape:
        raise ValueError(
            f"images {tuple(images.shape)} and references {tuple(references.shape)}: "
            "give both in one shape (B, C, H, W)"
        )
