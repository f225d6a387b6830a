"""A worker's memory format: every network takes it, and computes the same in it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from components.equivariance import PenaltyWeight
from components.members import NETWORKS
from components.training.state import TrainingState
from components.training.worker import Worker
from tests.components.networks.small import OWN, SMALL, random, stack
from tests.components.training.runs import settings

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class WorkerInChannelsLast(Worker):
    """Arranges its network as a worker with a GPU does, on the CPU."""

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_is_trained_in_the_memory_format_of_its_worker(name: str) -> None:
    network = random(name, **OWN.get(name, {}))
    images = torch.rand(1, 3, 24, 24, dtype=torch.float64) if name in OWN else stack(network)
    with torch.no_grad():
        expected = network(images)
    worker = WorkerInChannelsLast(0, 1, torch.device("cpu"))
    state = TrainingState(network, PenaltyWeight(0.0), settings(), worker)
    for module in (state.network, state.averaged.module):
        assert module.state_dict().keys() == network.state_dict().keys()
        layouts = [
            value.is_contiguous(memory_format=torch.channels_last) for value in module.parameters() if value.ndim == 4
        ]
        assert all(layouts)
        with torch.no_grad():
            found = module(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected)


def test_networks_with_parameters_of_five_axes_are_among_them() -> None:
    axes = {name: {value.ndim for value in random(name, **OWN.get(name, {})).parameters()} for name in (*SMALL, *OWN)}
    assert {name for name, found in axes.items() if 5 in found} == {
        *("c4_dncnn", "c4_unet", "d4_dncnn", "d4_unet", "rcdnet")
    }
