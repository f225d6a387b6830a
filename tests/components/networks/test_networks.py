"""Networks keep the image size, count the parameters they should and export with dynamic sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from components.networks import NETWORKS, build_network


def away_from_identity(network: nn.Module) -> nn.Module:
    """New networks are the identity: gives the last layer values, in place."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=0.1)
    return network


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (40, 9), (5, 64)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_any_size_keeps_it(name: str, size: tuple[int, int], channels: int) -> None:
    network = build_network(name, channels=channels, width=8, depth=3)
    images = torch.rand(2, channels, *size)
    assert network(images).shape == images.shape


@pytest.mark.parametrize(("channels", "depth", "published"), [(1, 17, 555_137), (3, 20, 668_227)])
def test_dncnn_has_the_published_parameter_count(channels: int, depth: int, published: int) -> None:
    """DnCNN-S (grey, 17 layers) and CDnCNN-B (colour, 20), as released: with the normalisation merged into it."""
    network = build_network("dncnn", channels=channels, width=64, depth=depth, norm="none")
    assert sum(p.numel() for p in network.parameters()) == published


def test_unet_doubles_its_channels_at_every_resolution() -> None:
    network = build_network("unet", channels=1, width=64, depth=5, norm="none")
    widths = [64, 128, 256, 512, 1024]

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return inputs * outputs * kernel * kernel + outputs

    down = sum(conv(i, o) + conv(o, o) for i, o in zip([1, *widths[:-1]], widths, strict=True))
    up = sum(conv(2 * w, w) + conv(2 * w, w) + conv(w, w) for w in widths[:-1])
    assert sum(p.numel() for p in network.parameters()) == down + up + conv(64, 1, 1)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_new_network_is_the_identity_and_can_leave_it(name: str) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    network = build_network(name, width=16, depth=3)
    torch.testing.assert_close(network(images), images)
    (network(images) - images.square()).square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert sum(float(gradient.norm()) for gradient in gradients) > 0


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_an_exported_network_gives_the_same_image_at_another_size(name: str) -> None:
    network = away_from_identity(build_network(name, width=8, depth=3)).eval()
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(network, (torch.rand(2, 3, 32, 48),), dynamic_shapes=(dynamic,)).module()
    images = torch.rand(1, 3, 37, 51)
    with torch.inference_mode():
        torch.testing.assert_close(exported(images), network(images))


def test_unet_keeps_pixels_in_their_place_at_odd_sizes() -> None:
    """Far from the border that differs, an odd image and its even part are restored alike."""
    torch.manual_seed(0)
    network = away_from_identity(build_network("unet", width=8, depth=3)).eval()
    images = torch.rand(1, 3, 101, 99)
    with torch.inference_mode():
        whole, part = network(images), network(images[..., :100, :96])
    torch.testing.assert_close(whole[..., :60, :60], part[..., :60, :60])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_impossible_settings_are_refused_with_their_values(name: str) -> None:
    with pytest.raises(ValueError, match=r"depth >= 2.*got 1"):
        build_network(name, depth=1)
    with pytest.raises(ValueError, match="norm 'layer' is unknown"):
        build_network(name, depth=3, norm="layer")


def test_an_unknown_network_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="dncnn, unet"):
        build_network("restormer")
