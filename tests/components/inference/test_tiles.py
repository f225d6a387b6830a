"""Tiles give the image that one pass gives, wherever the network sees no further than half their overlap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.inference.tiles import restore, tile_spans
from components.networks import build_network
from tests.components.networks import small

pytestmark = pytest.mark.unit

SIZES = [(200, 333), (97, 101), (256, 64), (65, 65), (1, 300), (64, 64), (30, 20)]


def convolutional(radius: int, channels: int = 3) -> nn.Module:
    """A random network that sees ``radius`` pixels around each."""
    torch.manual_seed(0)
    inner = [layer for _ in range(radius - 1) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())]
    network = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), *inner, nn.Conv2d(8, channels, 1))
    for parameter in network.parameters():
        parameter.data.mul_(2)
    return network.double().eval()


def block_means(images: Tensor) -> Tensor:
    """Each pixel minus the mean of its block of the grid of 16 x 16: what four poolings see at the most."""
    means = F.avg_pool2d(images, 16, ceil_mode=True)
    height, width = images.shape[-2:]
    return images - means.repeat_interleave(16, -2).repeat_interleave(16, -1)[..., :height, :width]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (80, 32), (48, 32)])
def test_tiles_equal_one_pass_of_a_network_with_a_radius_of_half_the_overlap(
    size: tuple[int, int], tile: int, overlap: int
) -> None:
    network, image = convolutional(overlap // 2), torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        whole = network(image[None])[0]
    torch.testing.assert_close(restore(network, image, tile=tile, overlap=overlap), whole, rtol=0, atol=1e-12)


def test_a_network_that_sees_further_shows_the_tiles() -> None:
    """The test above would see a wrong cut: two pixels more of radius make a difference."""
    network, image = convolutional(10), torch.rand(3, 200, 200, dtype=torch.float64)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (restore(network, image, tile=64, overlap=16) - whole).abs().max() > 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_tiles_keep_the_grid_of_four_poolings(size: tuple[int, int]) -> None:
    image = torch.rand(1, *size)
    torch.testing.assert_close(restore(block_means, image, tile=64, overlap=32), block_means(image[None])[0])


def test_tiles_equal_one_pass_of_the_unet_at_sizes_that_its_poolings_divide() -> None:
    torch.manual_seed(0)
    network = build_network("unet", width=8, depth=3, norm="none").eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    image = torch.rand(3, 236, 180)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.1
    torch.testing.assert_close(restore(network, image, tile=128, overlap=64), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "offset"),
    [*(("dncnn", offset) for offset in range(16)), *(("unet", offset) for offset in range(0, 16, 4))],
)
def test_no_network_shows_a_seam_at_any_offset_of_the_size_that_its_poolings_divide(name: str, offset: int) -> None:
    torch.manual_seed(0)
    settings = {"depth": 6} if name == "dncnn" else {"depth": 3}
    network = build_network(name, width=8, norm="none", **settings).eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    image = torch.rand(3, 160 + offset, 144 + (offset + 4) % 16)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.05
    for batch in (1, 3):
        tiled = restore(network, image, tile=112, overlap=64, batch=batch)
        torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("offset", range(16))
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prenet", {"stages": 2}),
        ("redcnn", {}),
        ("rcdnet", {"form": "simple", "stages": 2}),
        ("swinir", {"window": 8}),
    ],
)
def test_no_published_network_shows_a_seam_at_any_offset(name: str, settings: dict[str, Any], offset: int) -> None:
    """They see 26, 20, 29 and 15 pixels around each.

    Windows of a side that divides 16 lie in a tile as in the image.
    """
    network = small.random(name, **settings).float()
    image = torch.rand(int(network.in_channels), 130 + offset, 117 + (offset + 5) % 16)  # type: ignore[arg-type]
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.05
    tiled = restore(network, image, tile=112, overlap=64)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize(("stages", "blocks"), [(3, 1), (2, 2)])
def test_an_unrolled_dictionary_sees_further_with_every_stage(
    stages: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RCDNet: (8 + 4 T) S + 4 T + 1 pixels to each side, which is 425 as published; by the gradient of one pixel."""
    radius = (8 + 4 * blocks) * stages + 4 * blocks + 1
    network = small.random("rcdnet", stages=stages, residual_blocks=blocks, form="simple")
    monkeypatch.setattr(F, "relu", lambda values, inplace=False: values)  # it would cut paths of some images
    image = torch.rand(1, 3, 2 * radius + 21, 2 * radius + 21, dtype=torch.float64, requires_grad=True)
    network(image)[0, :, radius + 10, radius + 10].sum().backward()
    assert image.grad is not None
    rows, columns = (image.grad[0].abs().sum((0, axis)).nonzero() for axis in (2, 1))
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (10, 2 * radius + 10)


@pytest.mark.parametrize("name", ["rcdnet", "dicdnet", "oscnet"])
def test_an_unrolled_dictionary_shows_no_seam_once_tiles_overlap_by_all_that_it_sees(name: str) -> None:
    network = small.random(name, stages=3).float()  # which sees 41 pixels to each side
    image = small.stack(network, 150, 210)[0].float()
    with torch.no_grad():
        whole = network(image[None])[0]
    close = 1e-4 * float(whole.abs().max())
    torch.testing.assert_close(restore(network, image, tile=144, overlap=96), whole, rtol=0, atol=close)
    assert (restore(network, image, tile=96, overlap=16) - whole).abs().max() > 2 * close


def test_a_network_that_weighs_the_whole_image_differs_in_tiles() -> None:
    """ACDNet mixes its kernels for each image: a slice belongs into one tile."""
    network = small.random("acdnet").float()
    scan = small.stack(network, 130, 240)[0].float()
    scan[0, :, 120:] = scan[1, :, 120:]  # artifacts on one side alone
    with torch.no_grad():
        whole = network(scan[None])[0]
    assert torch.equal(restore(network, scan, tile=512, overlap=64), whole)
    assert (restore(network, scan, tile=128, overlap=64) - whole).abs().max() > 1e-4


def difference_in_tiles(network: nn.Module, image: Tensor, tile: int, overlap: int) -> float:
    """The largest change of an image by tiles, relative to its correction."""
    with torch.no_grad():
        whole = network(image[None])[0]
    return float((restore(network, image, tile=tile, overlap=overlap) - whole).abs().max() / (whole - image).std())


def test_the_windows_of_jpeg_lie_elsewhere_in_tiles_than_in_the_image() -> None:
    """Their side is 7, and tiles begin at multiples of 16; an image in one tile has its own windows."""
    network, image = small.random("swinir", window=7), torch.rand(3, 70, 300, dtype=torch.float64)
    assert difference_in_tiles(network, image, tile=512, overlap=64) == 0
    assert difference_in_tiles(network, image, tile=112, overlap=64) > 1e-2
    assert difference_in_tiles(small.random("swinir", window=8), image, tile=112, overlap=64) < 1e-12


@pytest.mark.parametrize(("groups", "overlap"), [(6, 304), (4, 208)])
def test_swinir_at_its_published_depth_needs_an_overlap_of_twice_what_it_sees(groups: int, overlap: int) -> None:
    """151 pixels, in the light network 103."""
    network = small.random("swinir", width=4, heads=1, window=8, groups=groups, depth=6)
    image = torch.rand(3, 16, 2 * overlap, dtype=torch.float64)
    assert difference_in_tiles(network, image, tile=overlap + 16, overlap=overlap) < 1e-12
    assert difference_in_tiles(network, image, tile=overlap + 16, overlap=32) > 1e-6


@pytest.mark.parametrize("offset", range(16))
def test_derainnet_shows_no_seam_at_any_offset_with_an_overlap_for_its_filter(offset: int) -> None:
    """It sees 41 pixels around each: 30 by the guided filter."""
    network = small.random("derainnet")
    image = torch.rand(3, 225 + offset, 30, dtype=torch.float64)
    image = image if offset % 2 else image.transpose(1, 2)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.05
    torch.testing.assert_close(restore(network, image, tile=160, overlap=96), whole, rtol=0, atol=1e-12)
    difference = (restore(network, image, tile=96, overlap=64) - whole).abs().max()
    assert 1e-9 < difference < 3e-3 * whole.abs().max()


FBPCONVNET = {"levels": 3, "width": 8}
"""It sees fewer than 32 pixels around each, in blocks of 4."""


@pytest.mark.parametrize("upsampling", ["matconvnet", "pytorch_port", "in_place"])
@pytest.mark.parametrize("offset", range(0, 16, 4))
def test_fbpconvnet_shows_no_seam_at_any_size_that_needs_no_extension(upsampling: str, offset: int) -> None:
    network = small.random("fbpconvnet", upsampling=upsampling, **FBPCONVNET)
    image = torch.rand(1, 160 + offset, 144 + (offset + 4) % 16, dtype=torch.float64)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.05
    tiled = restore(network, image, tile=112, overlap=64)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-10 * float(whole.abs().max()))


@pytest.mark.parametrize("offset", [1, 2, 7, 14, 15])
def test_fbpconvnet_pools_other_blocks_in_tiles_of_an_image_that_needs_an_extension(offset: int) -> None:
    """The image is extended on all sides, so that its blocks begin outside, and those of a tile inside the image do
    not; where no side of more than one pixel is added before, they are the same.
    """
    network = small.random("fbpconvnet", **FBPCONVNET)
    image = torch.rand(1, 160 + offset, 160 + offset, dtype=torch.float64)
    with torch.no_grad():
        whole = network(image[None])[0]
    missing = -offset % 4
    difference = (restore(network, image, tile=112, overlap=64) - whole).abs().max() / whole.abs().max()
    assert (difference > 1e-4) == (missing // 2 > 0)


def test_a_network_that_cuts_the_image_into_patches_differs_in_tiles() -> None:
    """MPRNet ends its patches in the middle of what it gets, and weighs channels over each: one tile holds an image."""
    network = small.random("mprnet").float()
    image = torch.rand(3, 130, 240)
    with torch.no_grad():
        whole = network(image[None])[0]
    assert torch.equal(restore(network, image, tile=512, overlap=64), whole)
    assert (restore(network, image, tile=128, overlap=64) - whole).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(300, 177), (64, 65), (129, 1000)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 48), (64, 16), (128, 0)])
def test_every_pixel_lies_half_the_overlap_from_the_inner_edges_of_its_tile(
    size: tuple[int, int], tile: int, overlap: int
) -> None:
    def distance_to_the_edges(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = torch.arange(height), torch.arange(width)
        down, right = torch.minimum(rows, height - 1 - rows), torch.minimum(columns, width - 1 - columns)
        return torch.minimum(down[:, None], right[None, :]).expand_as(images).to(images)

    shown = restore(distance_to_the_edges, torch.rand(2, *size), tile=tile, overlap=overlap)
    to_border = distance_to_the_edges(torch.zeros(1, 2, *size))[0]
    assert (shown >= to_border.clamp(max=overlap // 2)).all()


@pytest.mark.parametrize("size", [*range(1, 200), 511, 512, 513, 1000])
def test_tiles_are_aligned_within_bounds_and_cover_each_pixel_once(size: int) -> None:
    spans = tile_spans(size, tile=64, overlap=32)
    kept = [pixel for span in spans for pixel in range(span.keep_start, span.keep_stop)]
    assert kept == list(range(size))
    for span in spans:
        assert span.start % 16 == 0
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= size
        assert span.stop - span.start <= 64
        assert size < 64 or span.stop - span.start > 64 - 16


def test_memory_is_bounded_by_the_tile_and_small_images_take_one_pass() -> None:
    shapes = []

    def watch(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        return images

    assert restore(watch, torch.rand(3, 90, 512), tile=512).shape == (3, 90, 512)
    assert shapes == [(1, 3, 90, 512)]
    shapes.clear()
    restore(watch, torch.rand(1, 700, 1300), tile=256, overlap=32)
    assert all(height <= 256 and width <= 256 for _, _, height, width in shapes)


@pytest.mark.parametrize("size", [(40, 40), (70, 100)])
def test_the_self_ensemble_is_the_mean_over_the_quarter_turns(size: tuple[int, int]) -> None:
    network, image = convolutional(3), torch.rand(3, *size, dtype=torch.float64)
    with torch.no_grad():
        turned = [network(image.rot90(n, (1, 2))[None])[0].rot90(-n, (1, 2)) for n in range(4)]
    ensemble = restore(network, image, tile=64, overlap=16, self_ensemble=4)
    torch.testing.assert_close(ensemble, torch.stack(turned).mean(dim=0), rtol=0, atol=1e-12)
    assert (ensemble - turned[0]).abs().max() > 1e-3


def test_the_self_ensemble_turns_with_the_image() -> None:
    network, image = convolutional(12), torch.rand(3, 75, 130, dtype=torch.float64)
    one = restore(network, image, tile=64, overlap=16, self_ensemble=4).rot90(1, (1, 2))
    other = restore(network, image.rot90(1, (1, 2)), tile=64, overlap=16, self_ensemble=4)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("self_ensemble", [1, 4])
def test_the_result_has_the_dtype_of_the_image_and_may_be_changed(dtype: torch.dtype, self_ensemble: int) -> None:
    image = torch.rand(3, 100, 70, dtype=dtype)
    restored = restore(lambda x: x.half() * 2, image, tile=64, overlap=16, self_ensemble=self_ensemble)
    torch.testing.assert_close(restored, image.half().to(dtype) * 2)
    assert restored.dtype == dtype
    restored.clamp_(0, 1)


def test_the_network_runs_without_gradients() -> None:
    seen = []
    network = convolutional(1)
    restored = restore(
        lambda x: seen.append(torch.is_inference_mode_enabled()) or network(x), torch.rand(3, 8, 8).double()
    )
    assert seen == [True]
    assert not restored.requires_grad


@pytest.mark.parametrize(("tile", "overlap"), [(100, 32), (64, 20), (64, 64), (64, -16), (0, 0)])
def test_tiles_that_do_not_fit_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="multiples of 16, with 0 <= overlap < tile: use 512 and 64"):
        restore(lambda x: x, torch.rand(3, 90, 90), tile=tile, overlap=overlap)


@pytest.mark.parametrize(
    "image", [torch.rand(1, 3, 9, 9), torch.rand(3, 0, 9), torch.zeros(3, 9, 9, dtype=torch.uint8)]
)
def test_what_is_no_image_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one float image \(C, H, W\)"):
        restore(lambda x: x, image)


def test_a_network_that_changes_the_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must keep the shape"):
        restore(lambda x: x[..., 1:, :], torch.rand(3, 20, 20))


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (3, 20, 20), (1, 3, 1, 20, 20)])
def test_a_network_that_gives_no_images_is_refused_with_the_shape_that_it_must_give(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must give \(B, C, h, w\), one image for each") as caught:
        restore(lambda x: torch.rand(shape), torch.rand(3, 20, 20))
    assert f"gives {shape} for (1, 3, 20, 20)" in str(caught.value)


def test_a_network_that_would_use_batch_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"'1' is in training mode: call network.eval\(\)"):
        restore(network, torch.rand(3, 20, 20))
    assert restore(network.eval(), torch.rand(3, 20, 20)).shape == (3, 20, 20)
