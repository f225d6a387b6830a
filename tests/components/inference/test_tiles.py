"""Tiles give the image that one pass gives, wherever the network sees no further than half their overlap."""

from __future__ import annotations

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
@pytest.mark.parametrize(("name", "settings"), [("prenet", {"stages": 2}), ("redcnn", {})])
def test_no_published_network_shows_a_seam_at_any_offset(name: str, settings: dict[str, int], offset: int) -> None:
    """They see 26 and 20 pixels around each."""
    network = small.random(name, **settings).float()
    image = torch.rand(int(network.in_channels), 130 + offset, 117 + (offset + 5) % 16)  # type: ignore[arg-type]
    with torch.no_grad():
        whole = network(image[None])[0]
    assert (whole - image).abs().max() > 0.05
    tiled = restore(network, image, tile=112, overlap=64)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_network_that_weighs_the_whole_image_differs_in_tiles() -> None:
    """ACDNet mixes its kernels for each image: a slice belongs into one tile."""
    network = small.random("acdnet").float()
    scan = small.stack(network, 130, 240)[0].float()
    scan[0, :, 120:] = scan[1, :, 120:]  # artifacts on one side alone
    with torch.no_grad():
        whole = network(scan[None])[0]
    assert torch.equal(restore(network, scan, tile=512, overlap=64), whole)
    assert (restore(network, scan, tile=128, overlap=64) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["nafnet", "restormer"])
def test_attention_between_channels_is_that_of_the_tile(name: str) -> None:
    """Its weights are means and products over all pixels that the network sees."""
    network = small.random(name).float()
    image = torch.rand(3, 64, 128)
    image[:, :, 64:] *= 0.1  # a dark side
    with torch.no_grad():
        whole, half = network(image[None])[0], network(image[None, :, :, :64])[0]
    assert torch.equal(restore(network, image, tile=128, overlap=32), whole)
    tiled = restore(network, image, tile=64, overlap=32)
    assert (tiled - whole).abs().max() > 1e-3
    torch.testing.assert_close(tiled[..., :32], half[..., :32], rtol=0, atol=1e-5)


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
