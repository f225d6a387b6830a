"""Which windows commute with quarter turns: the rule against what exact kernels really do."""

import itertools

import pytest
import torch
from torch import nn

from components.equivariance import pair_scale, regular_residual, relative_mse, rotate, rotation_residual
from components.equivariance.layers.grid import Window
from tests.components.equivariance.exact import convolution, lifting_kernel, random_images, symmetric_kernel

pytestmark = pytest.mark.unit


def _relative_residual(module: nn.Conv2d | nn.ConvTranspose2d, height: int, width: int, element: int) -> float:
    """That of the module with symmetric kernels, which only its grid can spoil."""
    kernel = symmetric_kernel(4, 4, module.kernel_size[0])
    module.weight.data.copy_(kernel)
    images = random_images(1, module.in_channels, height, width)
    original, copy = module(images), module(rotate(images, element))
    return relative_mse(rotation_residual(original, copy, element), pair_scale(original, copy)).sqrt().item()


def _obstacle(module: nn.Conv2d | nn.ConvTranspose2d, height: int, width: int) -> str | None:
    output = module(random_images(1, module.in_channels, height, width))
    return Window.of(module).alignment_incompatibility((height, width), output.shape[-2:])


# kernel, stride, padding, dilation, size of the image
WINDOWS = list(itertools.product([1, 2, 3, 4], [1, 2, 3], [0, 1], [1, 2], [(8, 8), (9, 9), (8, 11)]))


def test_a_convolution_commutes_with_every_turn_exactly_where_the_rule_says() -> None:
    for kernel, stride, padding, dilation, size in WINDOWS:
        module = nn.Conv2d(4, 4, kernel, stride, padding, dilation, bias=False, dtype=torch.float64)
        # What is left over on one axis is seen by the turns 1 or 3, and by 2.
        commutes = all(_relative_residual(module, *size, element) < 1e-12 for element in (1, 2, 3))
        assert commutes == (_obstacle(module, *size) is None), (kernel, stride, padding, dilation, size)


def test_a_transposed_convolution_commutes_with_every_turn_exactly_where_the_rule_says() -> None:
    for kernel, stride, padding, dilation, size in WINDOWS:
        for extra in range(min(2, stride)):
            options = {"output_padding": extra, "bias": False, "dilation": dilation, "dtype": torch.float64}
            module = nn.ConvTranspose2d(4, 4, kernel, stride, padding, **options)  # type: ignore[arg-type]
            commutes = all(_relative_residual(module, *size, element) < 1e-12 for element in (1, 2, 3))
            assert commutes == (extra == 0), (kernel, stride, padding, dilation, size, extra)
            assert commutes == (_obstacle(module, *size) is None)


@pytest.mark.parametrize("element", [1, 2, 3])
def test_stride_two_with_an_odd_kernel_on_an_even_size_scores_one_point_four_with_perfect_weights(
    element: int,
) -> None:
    layer = convolution(lifting_kernel(16, 3), stride=2)
    for size, expected in ((32, 1.4), (31, 0.0)):
        images = random_images(1, 3, size, size)
        original, copy = layer(images), layer(rotate(images, element))
        residual = regular_residual(original, copy, element)
        relative_residual = relative_mse(residual, pair_scale(original, copy)).sqrt().item()
        assert relative_residual == pytest.approx(expected, abs=0.03)
        assert ("mod stride = 1" in (_obstacle(layer, size, size) or "")) == (size == 32)


def test_output_padding_that_only_the_call_asks_for_is_seen() -> None:
    module = nn.ConvTranspose2d(4, 4, 3, 2, 1)
    output = module(torch.zeros(1, 4, 8, 8), output_size=(16, 16))
    assert "output padding 1" in (Window.of(module).alignment_incompatibility((8, 8), output.shape[-2:]) or "")


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_same_padding_commutes_where_it_is_even() -> None:
    for kernel in (2, 3, 4, 5):
        module = nn.Conv2d(4, 4, kernel, padding="same", bias=False, dtype=torch.float64)
        uneven = kernel % 2 == 0
        assert (_relative_residual(module, 8, 9, 1) > 0.1) == uneven
        assert (Window.of(module).incompatibility() is not None) == uneven


@pytest.mark.parametrize(
    ("option", "value"),
    [("kernel_size", (1, 3)), ("stride", (2, 1)), ("padding", (0, 1)), ("dilation", (1, 2))],
)
def test_a_window_that_is_not_square_is_named(option: str, value: tuple[int, int]) -> None:
    module = nn.Conv2d(4, 4, **({"kernel_size": 3} | {option: value}))  # type: ignore[arg-type]
    assert option in (Window.of(module).incompatibility() or "")
