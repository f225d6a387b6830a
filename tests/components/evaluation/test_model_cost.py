"""What a network costs, against counts by hand and against memory that a network is known to take."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from components.evaluation.model_cost import SIDE, count_multiply_adds, count_parameters, measure_cost
from components.networks import build_network

pytestmark = pytest.mark.unit


class Holding(nn.Module):
    """Holds a number of copies of its input at a time."""

    in_channels = 3

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, images: Tensor) -> Tensor:
        held = [images + number for number in range(self.copies)]
        return held[-1]


def test_multiply_adds_and_parameters_of_convolutions_are_those_of_the_textbook() -> None:
    network = build_network("dncnn", width=8, depth=4, norm="none").eval()
    weights = 9 * (3 * 8 + 8 * 8 + 8 * 8 + 8 * 3)
    assert count_multiply_adds(network) == weights  # each weight is used once for each pixel
    assert count_parameters(network) == weights + 3 * 8 + 3  # and the biases


def test_a_layer_at_half_the_resolution_costs_a_quarter_for_a_pixel_of_the_input() -> None:
    class Halving(nn.Sequential):
        in_channels = 2

    network = Halving(nn.Conv2d(2, 4, 2, stride=2), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 2, 2, stride=2)).eval()
    assert count_multiply_adds(network) == (2 * 4 * 4 + 4 * 4 + 4 * 2 * 4) / 4


def test_counting_leaves_the_network_where_it_is_and_as_it_is() -> None:
    network = build_network("unet", width=4, depth=2, norm="batch").eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_multiply_adds(network)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_classifier_is_counted_for_a_pixel_of_its_input_too() -> None:
    network = build_network("resnet", width=4, depth=2, norm="none", classes=5).eval()
    assert (
        0
        < count_multiply_adds(network)
        < count_multiply_adds(build_network("resnet", width=8, depth=2, norm="none", classes=5).eval())
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from Linux's /proc")
@pytest.mark.parametrize("copies", [10, 40])
def test_the_peak_memory_is_that_of_the_tensors_that_are_held_at_a_time(copies: int) -> None:
    peak = measure_cost(Holding(copies)).peak_bytes_per_megapixel
    expected = copies * 3 * 4 * 1e6  # float32, three channels
    assert peak is not None
    assert abs(peak - expected) < 0.1 * expected + 8e6, peak / expected


def test_the_time_of_twice_the_work_is_longer_and_the_machine_is_named() -> None:
    short, long = measure_cost(Holding(1)), measure_cost(Holding(60))
    assert 0 < short.seconds_per_megapixel < long.seconds_per_megapixel
    assert f"torch {torch.__version__.split('+')[0]}" in short.machine
    assert "thread" in short.machine
    assert SIDE == 512  # README and pages name it
