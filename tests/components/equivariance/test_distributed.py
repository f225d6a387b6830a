"""Whole pairs on every worker give the gradient of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.equivariance import EquivarianceRegularizer
from tests.components.equivariance.exact import plain_network, random_images

NUM_WORKERS = 2
NUM_PAIRS = 4
PENALTIES = ["rotation", "channel", "rotation+channel", "regular"]


def _gradients(penalty: str, images: Tensor, num_pairs: int, is_distributed: bool) -> list[Tensor]:
    """Those of a step with a task loss and the penalty, on images whose first `num_pairs` are to be paired."""
    inner = plain_network()
    regularizer = EquivarianceRegularizer(inner, penalty=penalty)  # type: ignore[arg-type]
    network: nn.Module = DistributedDataParallel(inner) if is_distributed else inner
    for _ in range(2):  # DDP rearranges its buckets after the first step
        inner.zero_grad()
        batch = regularizer.pair(images, 0.5 * images, turns=3, shift=2, num_pairs=num_pairs)
        task = (network(batch.inputs) - batch.targets).square().mean()
        (task + 0.3 * regularizer.penalty()).backward()
    return [parameter.grad for parameter in inner.parameters() if parameter.grad is not None]


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=NUM_WORKERS)
    images = random_images(NUM_PAIRS + 4, 3, 6, 6)
    paired, singles = images[:NUM_PAIRS], images[NUM_PAIRS:]
    own = torch.cat((paired.chunk(NUM_WORKERS)[rank], singles.chunk(NUM_WORKERS)[rank]))
    gradients = {penalty: _gradients(penalty, own, NUM_PAIRS // NUM_WORKERS, True) for penalty in PENALTIES}
    torch.save(gradients, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed_gradients(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(_worker, (str(folder),), NUM_WORKERS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_WORKERS)]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_whole_pairs_on_each_of_two_workers_give_the_gradient_of_one_process(
    penalty: str, distributed_gradients: list[dict[str, list[Tensor]]]
) -> None:
    expected = _gradients(penalty, random_images(NUM_PAIRS + 4, 3, 6, 6), NUM_PAIRS, False)
    for gradients in distributed_gradients:
        for gradient, reference in zip(gradients[penalty], expected, strict=True):
            assert torch.allclose(gradient, reference, rtol=1e-9, atol=1e-14)
