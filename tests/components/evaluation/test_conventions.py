"""PSNR and SSIM by the conventions of other projects, against their scripts written with numpy and explicit rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from components.evaluation.conventions import CONVENTIONS, quality_by_convention, truncated
from components.evaluation.metrics import quality

pytestmark = pytest.mark.unit


def images(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, channels, 24, 20, generator=generator)
    clean = (clean * 255).round() / 255
    return (clean + 0.05 * torch.randn(clean.shape, generator=generator)), clean


def decibels(first: np.ndarray, second: np.ndarray, peak: float) -> float:
    return float(10 * np.log10(peak**2 / np.mean((first.astype(float) - second.astype(float)) ** 2)))


def matlab_luma(image: np.ndarray) -> np.ndarray:
    """rgb2ycbcr's Y of floats in [0, 1], ``(3, H, W)``."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    return 16 / 255 + np.tensordot(weights, image, axes=1)


def test_the_psnr_of_prenet_is_that_of_truncated_images_and_a_luma_of_floats() -> None:
    output, clean = images()
    saved = np.uint8(255 * np.clip(output[0].numpy(), 0, 1)) / 255
    expected = decibels(matlab_luma(saved), matlab_luma(clean[0].double().numpy()), 1)
    assert quality_by_convention(output, clean)["prenet"]["psnr"].item() == pytest.approx(expected, abs=1e-4)


def test_the_psnr_of_mprnet_is_that_of_a_luma_of_8_bits() -> None:
    output, clean = images()
    saved, truth = (np.uint8((255 * np.clip(x[0].numpy(), 0, 1)).round()) / 255 for x in (output, clean))
    of_bytes = [np.uint8((255 * matlab_luma(x)).round()) for x in (saved, truth)]
    expected = decibels(*of_bytes, peak=255)
    assert quality_by_convention(output, clean)["mprnet"]["psnr"].item() == pytest.approx(expected, abs=1e-6)


def test_the_psnr_of_kair_is_that_of_all_channels_in_8_bits() -> None:
    output, clean = images()
    saved, truth = (np.uint8((255 * np.clip(x.numpy(), 0, 1)).round()) for x in (output, clean))
    found = quality_by_convention(output, clean)["kair"]
    assert found["psnr"].item() == pytest.approx(decibels(saved, truth, 255), abs=1e-6)


def test_our_own_convention_is_that_of_the_metrics_and_the_others_differ() -> None:
    output, clean = images()
    found, own = quality_by_convention(output, clean), quality(output, clean)
    assert (found["eqreg"]["psnr"], found["eqreg"]["ssim"]) == (own["psnr_y"], own["ssim_y"])
    assert (found["kair"]["psnr"], found["kair"]["ssim"]) == (own["psnr"], own["ssim"])
    values = [found[name]["psnr"].item() for name in CONVENTIONS]
    assert len({round(value, 4) for value in values}) == len(values) == 4


def test_a_grey_image_is_its_own_luma() -> None:
    output, clean = images(1)
    found = quality_by_convention(output, clean)
    assert found["eqreg"]["psnr"] == found["mprnet"]["psnr"] == found["kair"]["psnr"] != found["prenet"]["psnr"]


def test_truncating_keeps_every_8_bit_level_and_takes_half_a_level_from_others() -> None:
    levels = torch.arange(256) / 255
    assert torch.equal(truncated(levels), levels)
    between = (torch.arange(255) + 0.999) / 255
    assert torch.equal(truncated(between), levels[:-1])
