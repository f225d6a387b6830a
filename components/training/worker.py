"""One of the processes that train together: its rank, its device and the collective operations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Worker:
    """A training process; it is rank 0 of 1 unless Ray Train, torchrun or a test has started torch.distributed.

    Attributes:
        rank: rank of the process.
        num_workers: number of processes that train together.
        device: device of the network and the batches.
    """

    rank: int
    num_workers: int
    device: torch.device

    @classmethod
    def current(cls) -> Worker:
        """Return the worker of this process, on its GPU if there is one."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size(), device)
        return cls(0, 1, device)

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that its backward pass averages the gradients over the workers.

        With ``find_unused_parameters``, DDP does not rebuild its buckets after the first step. Gradients are then
        summed in the same order in every step, so a resumed run gives bit-identical results to an uninterrupted run.
        """
        if self.num_workers == 1:
            return network
        return DistributedDataParallel(network, find_unused_parameters=True, broadcast_buffers=False)

    def mean(self, value: Tensor) -> Tensor:
        """Compute the mean of a tensor over the workers; the result is the same on each worker and detached."""
        value = value.detach().clone()
        if self.num_workers > 1:
            distributed.all_reduce(value)
            value /= self.num_workers
        return value

    def accumulating(self, network: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which backward passes accumulate gradients without averaging over the workers.

        The next backward pass outside the context averages the accumulated gradients.
        """
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def from_first(self, data: bytes | None) -> bytes | None:
        """Broadcast the data of rank 0 to every worker; None if rank 0 has no data."""
        if self.num_workers == 1:
            return data
        size = torch.tensor([-1 if data is None else len(data)], device=self.device)
        distributed.broadcast(size, 0)
        if size.item() < 0:
            return None
        content = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and data:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        distributed.broadcast(content, 0)
        return data if self.rank == 0 else content.cpu().numpy().tobytes()

    def from_all(self, value: Any) -> list[Any]:
        """Gather a small value of every worker on every worker, in the order of ranks."""
        if self.num_workers == 1:
            return [value]
        values: list[Any] = [None] * self.num_workers
        distributed.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def share_statistics(self, network: nn.Module) -> None:
        """Set the buffers of every worker (running statistics of batch normalisation) to their mean over the workers.

        All workers then validate the same network. A run that resumes from the checkpoint of rank 0 has complete
        statistics.
        """
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        if self.num_workers > 1 and buffers:
            means = self.mean(torch.cat([buffer.flatten() for buffer in buffers]))
            for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context: bf16 on a GPU, none on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format: channels_last on a GPU, which suits bf16 convolutions; contiguous on a CPU."""
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format


def arranged(network: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Put the parameters and buffers of a network with four axes into a memory format, and return the network.

    ``Module.to`` does so with five axes, too, and fails: channels_last exists for four alone. Group convolutions and
    RCDNet have parameters with five.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)
    return network
