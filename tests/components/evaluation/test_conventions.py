"""PSNR and SSIM by the conventions of other projects, against their scripts written with numpy and explicit rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from components.evaluation.conventions import CONVENTIONS, quality_by_convention, truncated
from components.evaluation.metrics import quality
from components.evaluation.protocol import Row, means_by_convention

pytestmark = pytest.mark.unit


def images(channels: int = 3, size: tuple[int, int] = (24, 20)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, channels, *size, generator=generator)
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


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM of two images ``(H, W)`` in 0..255, by its definition in each window of 11x11 pixels that fits in them."""
    distances = np.arange(-5, 6) ** 2
    window = np.exp(-(distances[:, None] + distances) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = []
    for row, column in np.ndindex(first.shape[0] - 10, first.shape[1] - 10):
        x, y = (each[row : row + 11, column : column + 11].astype(float) for each in (first, second))
        mean_x, mean_y = (window * x).sum(), (window * y).sum()
        var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
        covariance = (window * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        found.append(luminance * (2 * covariance + c2) / (var_x + var_y + c2))
    return float(np.mean(found))


@pytest.mark.parametrize("size", [(24, 20), (11, 11), (11, 30)])
def test_the_ssim_of_every_convention_is_that_of_what_it_compares_in_whole_windows(size: tuple[int, int]) -> None:
    output, clean = (each[..., : size[0], : size[1]] for each in images(size=(24, 30)))
    truth = np.uint8((255 * clean[0].numpy()).round())
    rounded = np.uint8((255 * np.clip(output[0].numpy(), 0, 1)).round())
    cut = np.uint8(255 * np.clip(output[0].numpy(), 0, 1))
    luma_of = {key: 255 * matlab_luma(each / 255) for key, each in (("t", truth), ("r", rounded), ("c", cut))}
    expected = {
        "eqreg": similarity(luma_of["r"], luma_of["t"]),
        "prenet": similarity(luma_of["c"], luma_of["t"]),
        "mprnet": similarity(luma_of["r"].round(), luma_of["t"].round()),
        "kair": np.mean([similarity(*channels) for channels in zip(rounded, truth, strict=True)]),
    }
    found = {name: values["ssim"].item() for name, values in quality_by_convention(output, clean).items()}
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_mean_of_a_convention_is_that_of_the_images_and_not_of_their_errors() -> None:
    rows = [
        Row("test", "0", "a", "a", {}, {"kair": {"psnr": 20.0, "ssim": 0.5}}),
        Row("rotated", "90", "a", "a", {}),
        Row("test", "0", "b", "b", {}, {"kair": {"psnr": 40.0, "ssim": 0.7}}),
    ]
    assert means_by_convention(rows) == {"kair": {"psnr": 30.0, "ssim": pytest.approx(0.6)}}
    assert means_by_convention(rows[1:2]) == {}


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
