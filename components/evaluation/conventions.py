"""PSNR and SSIM as the scripts of other projects compute them, from the same outputs.

The scripts differ in how they make 8-bit images and in what they take for the luma Y. On the same weights the PSNR of Y
differs by up to 0.2 dB between them, which is more than some published gains. A published figure is therefore compared
under the convention of its own script.

| convention | 8 bits | compared | peak |
|---|---|---|---|
| eqreg | rounded | Y, not rounded | 1 |
| prenet | truncated, ``uint8(255 x)`` | Y, not rounded | 1 |
| mprnet | rounded | Y, rounded to 8 bits | 255 |
| kair | rounded | all channels | 255 |

"prenet" is that of https://github.com/csdwren/PReNet: ``test_PReNet.py``, and MATLAB's ``rgb2ycbcr`` of floats.
"mprnet" is that of https://github.com/swz30/MPRNet and https://github.com/swz30/Restormer for deraining: MATLAB's
``rgb2ycbcr`` of 8-bit images. Their scripts for blur and noise compare all channels: those figures are under "kair".
"kair" is that of https://github.com/cszn/KAIR: ``calculate_psnr`` without a border. A grey image is its own Y.
References are 8-bit images and are rounded in every convention.

The SSIM is in every convention that of `components.evaluation.metrics.ssim`, of what the convention compares: Gaussian
windows of 11 x 11 pixels that lie in the image as a whole, the mean over windows and channels. MPRNet's script for
deraining and KAIR's compute the same. Those of PReNet, and MPRNet's for blur, call a function ``ssim`` of MATLAB that
their repositories do not hold; MATLAB's own extends the borders. As everywhere here, a PSNR is at most
`components.evaluation.metrics.PSNR_CAP`. A mean over a test set is the mean of the values of its images.

Legend: B images, C channels (1 grey, 3 RGB), H rows, W columns; values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from components.evaluation.metrics import as_saved, luma, psnr, ssim


def truncated(images: Tensor) -> Tensor:
    """Truncate images as ``uint8(255 clip(x, 0, 1))`` does in single precision, and return them in [0, 1].

    Example:
        >>> import torch
        >>> 255 * truncated(torch.tensor([-0.1, 0.5, 1.2], dtype=torch.float64))
        tensor([  0., 127., 255.], dtype=torch.float64)
    """
    return (images.float().clamp(0, 1) * 255).floor().to(images.dtype) / 255


def _same(images: Tensor) -> Tensor:
    return images


def _rounded_luma(images: Tensor) -> Tensor:
    return as_saved(luma(images))


CONVENTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "eqreg": (as_saved, luma),
    "prenet": (truncated, luma),
    "mprnet": (as_saved, _rounded_luma),
    "kair": (as_saved, _same),
}
"""Name -> (outputs to 8 bits, what is compared of 8-bit images)."""


def quality_by_convention(outputs: Tensor, references: Tensor) -> dict[str, dict[str, Tensor]]:
    """Compute PSNR and SSIM of each image under every convention.

    Args:
        outputs: ``(B, C, H, W)``, H and W at least 11.
        references: ``(B, C, H, W)``.

    Returns:
        convention -> {"psnr": ``(B,)`` dB, "ssim": ``(B,)``}, float64.

    Raises:
        ValueError: as `components.evaluation.metrics.luma`, `psnr` and `ssim`.

    Example:
        >>> import torch
        >>> clean = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
        >>> found = quality_by_convention(clean + 0.1, clean)
        >>> {name: round(float(values["psnr"]), 2) for name, values in found.items()}
        {'eqreg': 21.49, 'prenet': 21.49, 'mprnet': 21.69, 'kair': 20.17}
    """
    given, truth = outputs.double(), as_saved(references.double())
    found: dict[str, dict[str, Tensor]] = {}
    for name, (to_bytes, compared) in CONVENTIONS.items():
        images, wanted = compared(to_bytes(given)), compared(truth)
        found[name] = {"psnr": psnr(images, wanted), "ssim": ssim(images, wanted)}
    return found
