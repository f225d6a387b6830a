"""Whole pairs on every worker give the gradient of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import plain_network, random_images

pytestmark = pytest.mark.process

NUM_WORKERS = 2
NUM_PAIRS = 4
OPTIONS: dict[str, dict[str, object]] = {
    "rotation": {"penalty": "rotation"},
    "channel": {"penalty": "channel"},
    "rotation+channel": {"penalty": "rotation+channel"},
    "regular": {"penalty": "regular"},
    "projection": {"penalty": "projection"},
    "sampled layers": {"penalty": "regular", "sample_layers": 2},
    "cap": {"penalty": "regular", "max_gradient_ratio": 0.1},
}


def _gradients(options: dict[str, object], images: Tensor, num_pairs: int, is_distributed: bool) -> list[Tensor]:
    """Those of a step with a task loss and the penalty, on images whose first `num_pairs` are to be paired."""
    inner = plain_network()
    regularizer = EquivarianceRegularizer(inner, **options)  # type: ignore[arg-type]
    network: nn.Module = DistributedDataParallel(inner) if is_distributed else inner
    generator = torch.Generator().manual_seed(1)  # the same layers on every worker
    for _ in range(3):  # DDP rearranges its buckets after the first step
        inner.zero_grad()
        batch = regularizer.pair(images, 0.5 * images, generator=generator, num_pairs=num_pairs)
        task = (network(batch.inputs) - batch.targets).square().mean()
        (task + 0.3 * regularizer.penalty()).backward()
    return [parameter.grad for parameter in inner.parameters() if parameter.grad is not None]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=NUM_WORKERS)
    images = random_images(NUM_PAIRS + 4, 3, 6, 6)
    paired, unpaired = images[:NUM_PAIRS], images[NUM_PAIRS:]
    own = torch.cat((paired.chunk(NUM_WORKERS)[rank], unpaired.chunk(NUM_WORKERS)[rank]))
    gradients = {name: _gradients(options, own, NUM_PAIRS // NUM_WORKERS, True) for name, options in OPTIONS.items()}
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed_gradients(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(_worker, (str(folder),), NUM_WORKERS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_WORKERS)]


@pytest.mark.parametrize("name", OPTIONS)
def test_whole_pairs_on_each_of_two_workers_give_the_gradient_of_one_process(
    name: str, distributed_gradients: list[dict[str, list[Tensor]]]
) -> None:
    expected = _gradients(OPTIONS[name], random_images(NUM_PAIRS + 4, 3, 6, 6), NUM_PAIRS, False)
    for gradients in distributed_gradients:
        for gradient, reference in zip(gradients[name], expected, strict=True):
            assert torch.allclose(gradient, reference, rtol=1e-9, atol=1e-14)


def test_the_options_compared_above_make_a_difference() -> None:
    """Else equal gradients would prove nothing."""
    images = random_images(NUM_PAIRS + 4, 3, 6, 6)
    found = {
        name: torch.cat([gradient.flatten() for gradient in _gradients(options, images, NUM_PAIRS, False)])
        for name, options in OPTIONS.items()
    }
    names = list(found)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            assert (found[name] - found[other]).norm() > 1e-3 * found[name].norm(), (name, other)
