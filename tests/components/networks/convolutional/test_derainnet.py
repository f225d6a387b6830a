"""DerainNet: its guided filter, its borders, and what its fingerprint cannot say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.equivariance import diagnose
from components.networks.convolutional.derainnet import guided_filter
from tests.components.networks.small import random, stack

pytestmark = pytest.mark.unit


def by_least_squares(image: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """The guided filter of ``(C, H, W)`` by its definition: in each window a ridge regression of the image on itself.

    The map A x + c minimises the mean square of A x + c - x, plus epsilon times the square of A.
    """
    channels, height, width = image.shape
    maps, counts = np.zeros((height, width, channels, channels + 1)), np.zeros((height, width, 1, 1))
    for row in range(height):
        for column in range(width):
            window = (
                slice(max(0, row - radius), row + radius + 1),
                slice(max(0, column - radius), column + radius + 1),
            )
            pixels = image[:, window[0], window[1]].reshape(channels, -1).T  # (N, C)
            lines = np.concatenate((pixels, np.ones((len(pixels), 1))), axis=1)  # (N, C + 1)
            ridge = len(pixels) * epsilon * np.diag([1.0] * channels + [0.0])
            found = np.linalg.solve(lines.T @ lines + ridge, lines.T @ pixels).T  # (C, C + 1)
            maps[window] += found
            counts[window] += 1
    maps /= counts
    lines = np.concatenate((image, np.ones((1, height, width))))  # (C + 1, H, W)
    return np.einsum("yxcd,dyx->cyx", maps, lines)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (3, 4), (9, 7)])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize(("radius", "epsilon"), [(2, 0.01), (15, 1.0)])
def test_the_guided_filter_is_a_ridge_regression_in_each_window(
    size: tuple[int, int], channels: int, radius: int, epsilon: float
) -> None:
    image = np.random.default_rng(0).random((channels, *size))
    found = guided_filter(torch.from_numpy(image)[None], radius, epsilon)[0].numpy()
    np.testing.assert_allclose(found, by_least_squares(image, radius, epsilon), rtol=0, atol=1e-12)


def test_a_filter_with_a_small_epsilon_keeps_the_image_and_one_with_a_large_one_takes_means_of_means() -> None:
    image = torch.rand(1, 3, 12, 9, dtype=torch.float64)
    torch.testing.assert_close(guided_filter(image, 2, 1e-12), image, rtol=0, atol=1e-7)
    ones = torch.ones(1, 1, 12, 9, dtype=torch.float64)
    kernel = torch.ones(1, 1, 5, 5, dtype=torch.float64)

    def mean(maps: torch.Tensor) -> torch.Tensor:
        sums = torch.nn.functional.conv2d(maps.transpose(0, 1), kernel, padding=2).transpose(0, 1)
        return sums / torch.nn.functional.conv2d(ones, kernel, padding=2)

    torch.testing.assert_close(guided_filter(image, 2, 1e12), mean(mean(image)), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (20, 13)])
def test_the_layers_see_the_detail_of_a_reflected_image_and_the_base_is_added(size: tuple[int, int]) -> None:
    network = random("derainnet")
    image = stack(network, *size)
    wide = np.pad(image.numpy(), [(0, 0), (0, 0), (10, 10), (10, 10)], mode="reflect")
    base = torch.from_numpy(by_least_squares(wide[0], 15, 1.0))[None]
    detail = network.model(torch.from_numpy(wide) - base)  # type: ignore[operator]
    assert detail.shape[-2:] == (size[0] + 12, size[1] + 12)
    expected = detail[..., 6 : 6 + size[0], 6 : 6 + size[1]] + base[..., 10 : 10 + size[0], 10 : 10 + size[1]]
    torch.testing.assert_close(network(image), expected, rtol=0, atol=1e-11)


def test_nothing_in_it_forbids_equivariance_and_nothing_is_said_to() -> None:
    """Its means go along the rows and then along the columns: together they are square."""
    network = random("derainnet")
    for size in ((24, 24), (15, 22)):
        found = diagnose(network, stack(network, *size))
        assert found.can_be_exact
        assert found.findings == ()
        assert not any(layer.incompatibilities for layer in found.layers)
