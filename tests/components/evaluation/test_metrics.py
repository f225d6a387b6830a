"""PSNR, SSIM and luma agree with scikit-image, torchmetrics and arithmetic, for every size and kind of image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from components.evaluation.metrics import PSNR_CAP, as_saved, luma, psnr, quality, ssim

SIZES = [(11, 11), (11, 40), (12, 13), (33, 57), (64, 64), (101, 80)]


def photographs(channels: int, size: tuple[int, int], count: int = 2) -> tuple[Tensor, Tensor]:
    """Noisy and clean crops of a photograph: (count, channels, *size), of different noise."""
    generator = torch.Generator().manual_seed(sum(size))
    coffee = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[:channels] / 255
    crops = [coffee[:, 40 * i : 40 * i + size[0], 60 * i : 60 * i + size[1]] for i in range(count)]
    clean = torch.stack(crops)
    levels = torch.linspace(0.05, 0.2, count)[:, None, None, None]
    return clean + levels * torch.randn(clean.shape, generator=generator), clean


def skimage_ssim(image: Tensor, reference: Tensor) -> float:
    return structural_similarity(
        image.double().numpy(),
        reference.double().numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image_for_each_image(channels: int, size: tuple[int, int]) -> None:
    noisy, clean = photographs(channels, size)
    expected = [
        peak_signal_noise_ratio(c.double().numpy(), n.double().numpy(), data_range=1)
        for n, c in zip(noisy, clean, strict=True)
    ]
    np.testing.assert_allclose(psnr(noisy, clean), expected, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_torchmetrics_inside_of_its_padded_border(channels: int, size: tuple[int, int]) -> None:
    noisy, clean = photographs(channels, size)
    _, similarities = structural_similarity_index_measure(
        noisy.double(), clean.double(), data_range=1.0, reduction="none", return_full_image=True
    )
    expected = similarities[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(noisy, clean), expected, rtol=1e-9, atol=1e-9)


def test_ssim_of_one_window_is_the_formula_of_wang() -> None:
    noisy, clean = photographs(1, (11, 11), count=1)
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = line[:, None] * line / line.sum() ** 2
    x, y = noisy[0, 0].double(), clean[0, 0].double()
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    covariance = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    torch.testing.assert_close(ssim(noisy, clean)[0], expected)


def test_ssim_is_the_mean_of_the_channels() -> None:
    noisy, clean = photographs(3, (30, 41), count=1)
    channels = [ssim(noisy[:, c : c + 1], clean[:, c : c + 1]) for c in range(3)]
    torch.testing.assert_close(ssim(noisy, clean), torch.stack(channels).mean(dim=0))


def test_luma_is_the_first_channel_of_rgb2ycbcr() -> None:
    noisy, _ = photographs(3, (17, 23))
    expected = np.stack([rgb2ycbcr(image.double().numpy(), channel_axis=0)[0] for image in noisy]) / 255
    assert luma(noisy).shape == (2, 1, 17, 23)
    np.testing.assert_allclose(luma(noisy.double())[:, 0], expected, rtol=1e-12)


def test_luma_runs_from_16_to_235_and_leaves_grey_images_alone() -> None:
    extremes = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(luma(extremes)[:, 0, 0, 0] * 255, torch.tensor([16.0, 235.0]))
    assert torch.equal(luma(extremes[:, :1]), extremes[:, :1])


def test_an_image_wrong_by_ten_grey_levels_has_the_psnr_of_arithmetic() -> None:
    clean = torch.full((1, 3, 16, 16), 100 / 255)
    assert psnr(clean + 10 / 255, clean).item() == pytest.approx(20 * math.log10(25.5), abs=1e-5)


def test_identical_images_have_the_psnr_of_half_a_grey_level_and_similarity_one() -> None:
    _, clean = photographs(3, (20, 20))
    figures = quality(clean, clean)
    half_a_level = 10 * math.log10(1 / (0.5 / 255) ** 2)
    for key, best in {"psnr": half_a_level, "psnr_y": half_a_level, "ssim": 1.0, "ssim_y": 1.0}.items():
        np.testing.assert_allclose(figures[key], best, rtol=1e-12)
    assert pytest.approx(half_a_level) == PSNR_CAP
    assert psnr(clean + 0.4 / 255, clean).tolist() == [PSNR_CAP, PSNR_CAP]
    assert (psnr(clean + 0.6 / 255, clean) < PSNR_CAP).all()


def test_saved_images_are_the_bytes_of_a_file() -> None:
    images = torch.tensor([-0.5, 0.0, 0.49 / 255, 0.51 / 255, 127.4 / 255, 254.6 / 255, 1.0, 1.7])
    assert (as_saved(images) * 255).tolist() == pytest.approx([0, 0, 0, 1, 127, 255, 255, 255])


@pytest.mark.parametrize("channels", [1, 3])
def test_quality_compares_what_is_saved_in_rgb_and_in_luma(channels: int) -> None:
    noisy, clean = photographs(channels, (37, 29), count=3)
    noisy[0] *= 3  # far out of range
    clean *= 0.973  # not in 8 bits either
    files = [(images.clip(0, 1) * 255).round().to(torch.uint8).numpy() for images in (noisy, clean)]
    figures = quality(noisy, clean)
    assert set(figures) == {"psnr", "ssim", "psnr_y", "ssim_y"}
    for i, (image, truth) in enumerate(zip(*files, strict=True)):
        image_y, truth_y = (
            rgb2ycbcr(x, channel_axis=0)[:1] / 255 if channels == 3 else x / 255 for x in (image, truth)
        )
        expected = {
            "psnr": peak_signal_noise_ratio(truth, image, data_range=255),
            "ssim": skimage_ssim(torch.from_numpy(image / 255), torch.from_numpy(truth / 255)),
            "psnr_y": peak_signal_noise_ratio(truth_y, image_y, data_range=1),
            "ssim_y": skimage_ssim(torch.from_numpy(image_y), torch.from_numpy(truth_y)),
        }
        assert {key: values[i].item() for key, values in figures.items()} == pytest.approx(expected, abs=1e-6)


def test_a_broken_restoration_does_not_look_like_a_number() -> None:
    _, clean = photographs(3, (16, 16), count=1)
    assert psnr(as_saved(clean * torch.nan), clean).isnan().all()


@pytest.mark.parametrize("size", [(10, 30), (30, 10), (1, 1)])
def test_an_image_smaller_than_the_window_is_refused_with_a_remedy(size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size)
    with pytest.raises(ValueError, match="at least 11 x 11, or psnr alone"):
        ssim(images, images)
    assert psnr(images, images).item() == PSNR_CAP


@pytest.mark.parametrize("metric", [psnr, ssim, quality])
def test_images_that_do_not_fit_each_other_are_refused(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\)"):
        metric(torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)|\(B, C, H, W\)"):
        metric(torch.rand(3, 16, 16), torch.rand(3, 16, 16))


def test_luma_refuses_four_channels() -> None:
    with pytest.raises(ValueError, match="luma needs"):
        luma(torch.rand(1, 4, 8, 8))
