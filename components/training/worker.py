"""One of the processes that train together: its rank, its device, and the two things it does with the others."""

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
    """Rank 0 of 1 unless torch.distributed has been started, by Ray Train, torchrun or a test."""

    rank: int
    num_workers: int
    device: torch.device

    @classmethod
    def current(cls) -> Worker:
        """This process, on its GPU if there is one."""
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size(), device)
        return cls(0, 1, device)

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network whose backward averages gradients over the workers.

        ``find_unused_parameters`` keeps DDP from rebuilding its buckets after the first step: gradients are then
        summed in one order in every step, and a resumed run repeats an uninterrupted one to the bit.
        """
        if self.num_workers == 1:
            return network
        return DistributedDataParallel(network, find_unused_parameters=True, broadcast_buffers=False)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the workers, the same on each; detached."""
        value = value.detach().clone()
        if self.num_workers > 1:
            distributed.all_reduce(value)
            value /= self.num_workers
        return value

    def accumulating(self, network: nn.Module) -> AbstractContextManager[object]:
        """Backward passes within do not yet average: gradients add up until one outside does."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def from_first(self, data: bytes | None) -> bytes | None:
        """What rank 0 has, on every worker; None where it has nothing."""
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
        """A small value of every worker, in the order of their ranks, on each of them."""
        if self.num_workers == 1:
            return [value]
        values: list[Any] = [None] * self.num_workers
        distributed.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def share_statistics(self, network: nn.Module) -> None:
        """Gives every worker the mean of all workers' buffers: of batch normalisation's running statistics.

        So that workers validate the same network, and one that resumes from rank 0's checkpoint lacks nothing.
        """
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        if self.num_workers > 1 and buffers:
            means = self.mean(torch.cat([buffer.flatten() for buffer in buffers]))
            for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
                buffer.copy_(mean.view_as(buffer))

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 on a GPU, nothing on a CPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last on a GPU, where bf16 convolutions want it; contiguous on a CPU."""
        return torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
