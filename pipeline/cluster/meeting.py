"""Where workers meet: the network interface on which torch.distributed of each node listens and connects.

Ray's controller imports this, and so only the functions that workers run import torch (``pipeline.cluster.controller``
says why).
"""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_SHUTDOWN_TIMEOUT = 30  # seconds; Ray's own
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class MeetingConfig(BackendConfig):
    """How the workers of a run reach each other, in place of Ray's ``TorchConfig``.

    Attributes:
        backend: of torch.distributed.
        interface: its name, or "auto": each node's own, see ``meet_on``.
        timeout_s: seconds after which an operation of the group fails.
    """

    backend: str = "gloo"
    interface: str = "auto"
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[MeetingBackend]:
        return MeetingBackend

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """Of the training in a worker; Ray's own chooses the GPU."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class MeetingBackend(Backend):
    """Tells every worker its interface before the process group is made; gloo would else meet on 127.0.0.1."""

    share_cuda_visible_devices = True  # of the workers on one node: NCCL needs it

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        worker_group.execute(meet_on, backend_config.interface)
        worker_group.execute(name_ranks)
        host, port = worker_group.execute_single(0, open_store)
        size, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, backend_config.backend, host, port, rank, size, timeout)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        """The group is left, as far as its members still answer."""
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(leave), timeout=_SHUTDOWN_TIMEOUT)


_stores: list[TCPStore] = []  # of this process, for as long as it lives


def open_store() -> tuple[str, int]:
    """Opens the store of a process group at this node's address, and at no other: torch's own listens on all of them.

    Returns:
        Address and port.
    """
    from torch.distributed import TCPStore

    host = ray.util.get_node_ip_address()
    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    _stores.append(
        TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=False
        )
    )
    return host, port


def join(backend: str, host: str, port: int, rank: int, size: int, timeout: timedelta) -> None:
    """Makes this process a member of the group whose store is there."""
    import torch.distributed as dist

    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def name_ranks() -> None:
    """Sets RANK, LOCAL_RANK and the like of this worker, which libraries read."""
    from ray.train.torch.config import _set_torch_distributed_env_vars

    _set_torch_distributed_env_vars()


def leave() -> None:
    """Ends this process's membership, and frees what its GPU has cached."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=True)


def meet_on(interface: str) -> None:
    """Sets this process's interface: as given, else that of the node's address in Ray; the user's own setting wins."""
    name = interface if interface != "auto" else interface_of(ray.util.get_node_ip_address())
    if name:
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)


def interface_of(address: str) -> str | None:
    """The interface of this machine that has an IP address; None if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family in (socket.AF_INET, socket.AF_INET6) and each.address == address for each in addresses):
            return name
    return None
