"""The figures agree with scikit-image, torchmetrics and arithmetic, for every size and kind of image and every task."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import accuracy_score
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from components.evaluation.metrics import (
    PSNR_CAP,
    as_saved,
    crop_border,
    inpainting_quality,
    jpeg_quality,
    luma,
    masked_psnr,
    masked_ssim,
    metal_artifact_quality,
    psnr,
    psnr_b,
    quality,
    ssim,
    super_resolution_quality,
    top1,
)

pytestmark = pytest.mark.unit

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


def compressed(clean: Tensor, strength: int = 10) -> Tensor:
    """Through JPEG files of that quality."""
    images = []
    for image in clean:
        levels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels.squeeze()).save(file, "JPEG", quality=strength)
        images.append(torch.from_numpy(np.array(Image.open(file)).reshape(levels.shape)).permute(2, 0, 1) / 255)
    return torch.stack(images)


def looped_psnr_b(image: np.ndarray, reference: np.ndarray) -> float:
    """Yim and Bovik's formula, pixel by pixel, of two (H, W) in 0..255."""
    height, width = image.shape
    sums, numbers = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for row in range(height):
        for column in range(width):
            if column + 1 < width:
                at_edge = (column + 1) / 8 == (column + 1) // 8
                sums[at_edge] += (image[row, column] - image[row, column + 1]) ** 2
                numbers[at_edge] += 1
            if row + 1 < height:
                at_edge = (row + 1) / 8 == (row + 1) // 8
                sums[at_edge] += (image[row, column] - image[row + 1, column]) ** 2
                numbers[at_edge] += 1
    edge, inside = sums[True] / numbers[True], sums[False] / numbers[False]
    eta = math.log2(8) / math.log2(min(height, width)) if edge > inside else 0
    error = sum((image[at] - reference[at]) ** 2 for at in np.ndindex(height, width)) / (height * width)
    return 10 * math.log10(255**2 / (error + eta * (edge - inside)))


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


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (9, 30), (33, 17), (70, 57)])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_b_is_the_formula_of_yim_and_bovik_pixel_by_pixel(channels: int, size: tuple[int, int]) -> None:
    _, clean = photographs(channels, size)
    blocky = compressed(clean)
    expected = [
        looped_psnr_b(255 * luma(image[None].double())[0, 0].numpy(), 255 * luma(truth[None].double())[0, 0].numpy())
        for image, truth in zip(blocky, clean, strict=True)
    ]
    np.testing.assert_allclose(psnr_b(blocky, clean), expected, rtol=1e-9)
    if min(size) >= 24:  # smaller ones happen to show no blocks
        assert (psnr_b(blocky, clean) < psnr(luma(blocky), luma(clean)) - 0.3).all()


def test_psnr_b_of_known_blocks_is_that_of_arithmetic() -> None:
    blocks = torch.zeros(1, 1, 16, 16)
    blocks[..., 8:] = 0.2  # one edge of 16 steps of 0.2 and one of 16 without any; inside there is none
    expected = -10 * math.log10(0.03**2 + math.log2(8) / math.log2(16) * 0.2**2 / 2)
    assert psnr_b(blocks, blocks + 0.03).item() == pytest.approx(expected, abs=1e-5)


def test_psnr_b_is_psnr_without_blocks() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    edges_inside = torch.zeros(1, 1, 16, 16)
    edges_inside[..., 4:12] = 0.5
    single_block = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for images in (ramp, edges_inside, single_block):
        torch.testing.assert_close(psnr_b(images, images * 0.9), psnr(luma(images), luma(images * 0.9)))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_psnr_b_of_whole_blocks_does_not_change_with_quarter_turns(turns: int) -> None:
    _, clean = photographs(3, (32, 48))
    blocky = compressed(clean)
    turned = [torch.rot90(images, turns, dims=(2, 3)) for images in (blocky, clean)]
    torch.testing.assert_close(psnr_b(*turned), psnr_b(blocky, clean))


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_psnr_is_that_of_scikit_image_for_the_chosen_pixels(channels: int) -> None:
    noisy, clean = photographs(channels, (20, 31))
    mask = torch.rand(2, 1, 20, 31, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = [
        peak_signal_noise_ratio(c[:, m].double().numpy(), n[:, m].double().numpy(), data_range=1)
        for n, c, m in zip(noisy, clean, mask[:, 0], strict=True)
    ]
    broken = torch.where(mask, noisy, torch.nan)
    np.testing.assert_allclose(masked_psnr(broken, clean, mask), expected, rtol=1e-12)
    np.testing.assert_allclose(masked_psnr(noisy, clean, mask.expand_as(noisy)), expected, rtol=1e-12)


def test_masks_that_count_all_pixels_change_nothing() -> None:
    noisy, clean = photographs(3, (20, 31))
    everything = torch.ones(2, 1, 20, 31, dtype=torch.bool)
    torch.testing.assert_close(masked_psnr(noisy, clean, everything), psnr(noisy, clean))
    torch.testing.assert_close(masked_ssim(noisy, clean, everything), ssim(noisy, clean))


def test_masked_ssim_is_that_of_scikit_image_with_the_truth_in_the_other_pixels() -> None:
    noisy, clean = photographs(3, (24, 31))
    mask = torch.ones(2, 1, 24, 31, dtype=torch.bool)
    mask[..., 5:15, 8:20] = False
    patched = noisy.clone()
    patched[..., 5:15, 8:20] = clean[..., 5:15, 8:20]
    expected = [skimage_ssim(image, truth) for image, truth in zip(patched, clean, strict=True)]
    np.testing.assert_allclose(masked_ssim(noisy, clean, mask), expected, rtol=1e-9)
    broken = torch.where(mask, noisy, torch.nan)
    np.testing.assert_allclose(masked_ssim(broken, clean, mask), expected, rtol=1e-9)


@pytest.mark.parametrize("metric", [masked_psnr, masked_ssim])
def test_masks_that_do_not_serve_are_refused(metric: object) -> None:
    assert callable(metric)
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="give a boolean mask"):
        metric(images, images, torch.ones(2, 1, 16, 16))
    with pytest.raises(ValueError, match="give a boolean mask"):
        metric(images, images, torch.ones(2, 2, 16, 16, dtype=torch.bool))
    mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="no pixel of image 1"):
        metric(images, images, mask)


def test_a_border_is_cropped_from_every_side() -> None:
    images = torch.arange(7 * 9).reshape(1, 1, 7, 9)
    np.testing.assert_array_equal(crop_border(images, 2), images.numpy()[:, :, 2:5, 2:7])
    assert torch.equal(crop_border(images, 0), images)
    for pixels in (-1, 4):
        with pytest.raises(ValueError, match=f"a border of {pixels} pixels and images of 7 x 9: use 0 to 3"):
            crop_border(images, pixels)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_super_resolution_is_compared_in_luma_inside_of_the_border(channels: int, scale: int) -> None:
    noisy, clean = photographs(channels, (24, 36))
    noisy[..., :scale, :] = noisy[..., -scale:] = torch.nan  # has no say
    figures = super_resolution_quality(noisy, clean, scale)
    assert set(figures) == {"psnr_y", "ssim_y"}
    for i in range(2):
        files = [(x[i].nan_to_num().clip(0, 1) * 255).round().to(torch.uint8).numpy() for x in (noisy, clean)]
        lumas = [rgb2ycbcr(x, channel_axis=0)[:1] / 255 if channels == 3 else x / 255 for x in files]
        inner, truth = (y[:, scale : 24 - scale, scale : 36 - scale] for y in lumas)
        assert figures["psnr_y"][i].item() == pytest.approx(peak_signal_noise_ratio(truth, inner, data_range=1))
        assert figures["ssim_y"][i].item() == pytest.approx(
            skimage_ssim(torch.from_numpy(inner.copy()), torch.from_numpy(truth.copy())), abs=1e-9
        )


@pytest.mark.parametrize("channels", [1, 3])
def test_inpainting_keeps_what_was_known_and_counts_the_hole_apart(channels: int) -> None:
    noisy, clean = photographs(channels, (32, 40))
    clean = as_saved(clean)
    mask = torch.zeros(2, 1, 32, 40)
    mask[0, :, 3:20, 10:30] = 1
    mask[1, :, ::3] = 1
    inputs = torch.cat([clean * (1 - mask), mask], dim=1)
    figures = inpainting_quality(torch.where(mask > 0, noisy, torch.nan), inputs, clean)
    composite = as_saved(torch.where(mask > 0, noisy, clean))
    torch.testing.assert_close(figures["psnr"], psnr(composite, clean))
    torch.testing.assert_close(figures["ssim"], ssim(composite, clean))
    for i in range(2):
        hole = mask[i, 0] > 0
        pixels = [x[i][:, hole].double().numpy() for x in (clean, composite)]
        assert figures["psnr_hole"][i].item() == pytest.approx(peak_signal_noise_ratio(*pixels, data_range=1))
    shares = mask.double().mean(dim=(1, 2, 3))  # the hole has all of the error
    torch.testing.assert_close(figures["psnr"] - figures["psnr_hole"], -10 * shares.log10())


def test_inpainting_counts_errors_of_the_known_pixels_as_they_came() -> None:
    clean = torch.full((1, 1, 16, 16), 0.4)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    figures = inpainting_quality(clean, torch.cat([clean + 0.2, mask], dim=1), clean)
    assert figures["psnr"].item() == pytest.approx(-10 * math.log10(0.2**2 / 2), abs=1e-4)
    assert figures["psnr_hole"].item() == PSNR_CAP


def test_jpeg_restoration_has_the_figures_of_its_files() -> None:
    _, clean = photographs(3, (40, 48))
    clean = as_saved(clean)
    blocky = compressed(clean)
    outputs = blocky + 0.3 / 255  # is saved as the same bytes
    figures = jpeg_quality(outputs, clean)
    assert set(figures) == {"psnr", "ssim", "psnr_b"}
    for key, metric in {"psnr": psnr, "ssim": ssim, "psnr_b": psnr_b}.items():
        torch.testing.assert_close(figures[key], metric(blocky, clean), rtol=1e-6, atol=1e-6)
    assert (figures["psnr_b"] < psnr(luma(blocky), luma(clean))).all()


def test_metal_artifacts_are_measured_in_the_tissue_alone_and_not_rounded() -> None:
    _, clean = photographs(1, (30, 37))
    metal = torch.zeros(2, 1, 30, 37)
    metal[..., 10:16, 12:20] = 1
    inputs = torch.cat([clean, clean, metal], dim=1)
    outputs = torch.where(metal > 0, 7.0, clean + 0.01)
    figures = metal_artifact_quality(outputs, inputs, clean, hounsfield_range=4000)
    np.testing.assert_allclose(figures["psnr"], 40, atol=1e-3)
    np.testing.assert_allclose(figures["rmse"], 40, rtol=1e-4)
    patched = torch.where(metal > 0, clean, clean + 0.01)
    expected = [skimage_ssim(image, truth) for image, truth in zip(patched, clean, strict=True)]
    np.testing.assert_allclose(figures["ssim"], expected, rtol=1e-9)
    assert set(figures) == {"psnr", "ssim", "rmse"}


def test_inputs_that_do_not_fit_the_outputs_are_refused() -> None:
    images = torch.rand(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"give \(2, 2, 16, 16\), the mask last"):
        inpainting_quality(images, images, images)
    with pytest.raises(ValueError, match=r"give \(2, 3, 16, 16\), the mask last"):
        metal_artifact_quality(images, images, images, hounsfield_range=2000)
    with pytest.raises(ValueError, match="no pixel of image 0"):
        inpainting_quality(images, torch.zeros(2, 2, 16, 16), images)
    for span in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="hounsfield_range"):
            metal_artifact_quality(images, torch.zeros(2, 3, 16, 16), images, hounsfield_range=span)


@pytest.mark.parametrize("metric", [psnr_b, jpeg_quality, lambda x, y: super_resolution_quality(x, y, 2)])
def test_figures_of_pairs_refuse_images_that_do_not_fit_each_other(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\)"):
        metric(torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16))


def test_top1_is_the_accuracy_of_scikit_learn() -> None:
    scores = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (50,), generator=torch.Generator().manual_seed(1))
    hits = top1(scores, labels)
    assert hits.shape == (50,)
    assert hits.mean().item() == pytest.approx(accuracy_score(labels, np.argmax(scores.numpy(), axis=1)))
    assert 0 < hits.mean() < 1
    one_broken = scores.clone()
    one_broken[int(hits.argmax()), 0] = torch.nan
    assert top1(one_broken, labels).sum() == hits.sum() - 1


def test_labels_without_a_score_are_refused() -> None:
    with pytest.raises(ValueError, match="one label for each"):
        top1(torch.rand(3, 4), torch.zeros(2, dtype=torch.int64))
    for label in (-1, 4):
        with pytest.raises(ValueError, match=r"use 0\.\.3"):
            top1(torch.rand(1, 4), torch.tensor([label]))
