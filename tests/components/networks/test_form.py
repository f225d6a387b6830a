"""Networks of one published form find their image in the stack and extend it to a size that they take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from components.networks.form import Extension, crop, extend, extend_to_multiple, surround
from tests.components.networks.small import random

pytestmark = pytest.mark.unit


def test_a_network_leaves_what_it_does_not_need_in_the_stack() -> None:
    parts = torch.rand(1, 3, 30, 30, dtype=torch.float64)
    network = random("redcnn", in_channels=3, inputs=("li", "image", "metal_mask"))
    torch.testing.assert_close(network(parts), network.published(parts[:, 1:2]), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4), (6, 6), (7, 5), (2, 3)])
@pytest.mark.parametrize("least", [1, 6, 9])
def test_cropping_takes_back_what_extending_added(size: tuple[int, int], least: int) -> None:
    images = torch.rand(2, 3, *size)
    extended = extend(images, least)
    assert tuple(extended.shape[-2:]) == tuple(max(side, least) for side in size)
    assert torch.equal(crop(extended, images, least), images)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 4), (8, 8), (16, 9), (2, 3)])
@pytest.mark.parametrize(("multiple", "least"), [(2, 1), (8, 1), (4, 12)])
@pytest.mark.parametrize(("mode", "oracle"), [("zero", "constant"), ("copy", "edge"), ("reflection", "reflect")])
def test_an_extension_to_a_multiple_is_that_of_numpy_and_can_be_cropped(
    size: tuple[int, int], multiple: int, least: int, mode: Extension, oracle: Any
) -> None:
    images = torch.rand(2, 3, *size)
    extended = extend_to_multiple(images, multiple, mode, least)
    sides = [max(multiple * math.ceil(side / multiple), least) for side in size]
    pads = [(0, 0), (0, 0), *((0, after - side) for after, side in zip(sides, size, strict=True))]
    assert np.array_equal(extended.numpy(), np.pad(images.numpy(), pads, mode=oracle))
    assert torch.equal(crop(extended, images, 1), images)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 16), (13, 10), (2, 3)])
@pytest.mark.parametrize(("least", "multiple"), [(1, 4), (8, 4), (16, 8), (5, 3)])
def test_an_extension_around_an_image_to_a_multiple_is_that_of_numpy_and_can_be_cropped(
    size: tuple[int, int], least: int, multiple: int
) -> None:
    images = torch.rand(2, 3, *size)
    missing = [-(-max(side, least) // multiple) * multiple - side for side in size]
    around = [(0, 0), (0, 0), *((each // 2, each - each // 2) for each in missing)]
    extended = extend(images, least, multiple)
    assert torch.equal(extended, torch.from_numpy(np.pad(images.numpy(), around, mode="reflect")))
    assert torch.equal(crop(extended, images, least, multiple), images)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (12, 7)])
@pytest.mark.parametrize("width", [1, 10])
def test_the_surroundings_of_an_image_are_those_of_numpy(size: tuple[int, int], width: int) -> None:
    images = torch.rand(2, 3, *size)
    around = [(0, 0), (0, 0), (width, width), (width, width)]
    assert torch.equal(surround(images, width), torch.from_numpy(np.pad(images.numpy(), around, mode="reflect")))


@pytest.mark.parametrize("side", [4, 6, 9])
def test_extending_by_an_even_number_commutes_with_quarter_turns(side: int) -> None:
    images = torch.rand(1, 2, side, side)
    least = side + 4
    assert torch.equal(extend(images.rot90(1, (2, 3)), least), extend(images, least).rot90(1, (2, 3)))
    assert torch.equal(extend(images.rot90(1, (2, 3)), 1, least), extend(images, 1, least).rot90(1, (2, 3)))
