"""The process group of the workers, and the network interface that torch.distributed uses on each node.

Ray's controller imports this module. Only the functions that workers run may therefore import torch
(``pipeline.cluster.controller`` says why).
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

from pipeline.compat import TrainingFramework

if TYPE_CHECKING:
    from torch.distributed import TCPStore

_SHUTDOWN_TIMEOUT = 30  # seconds; Ray's default
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class ProcessGroupConfig(BackendConfig):
    """The configuration of the process group of a run; it replaces Ray's ``TorchConfig``.

    Attributes:
        backend: backend of torch.distributed.
        interface: name of a network interface, or "auto": that of each node's address, see ``use_interface``.
        timeout_s: seconds after which an operation of the process group fails.
    """

    backend: str = "gloo"
    interface: str = "auto"
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[ProcessGroupBackend]:
        """The class that sets the process group up."""
        return ProcessGroupBackend

    @property
    def train_func_context(self) -> type[AbstractContextManager[None]]:
        """The context of the training in a worker: that of Ray's ``TorchConfig``, which chooses the GPU."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    @property
    def framework(self) -> TrainingFramework:
        """The framework that the workers use."""
        return TrainingFramework.TORCH


class ProcessGroupBackend(Backend):
    """Sets the network interface of every worker, then makes the process group.

    Without the interface, gloo would connect on 127.0.0.1.
    """

    share_cuda_visible_devices = True  # each worker sees all GPUs of the workers on its node: NCCL needs it

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Makes the process group: rank 0 opens the store, then all workers join."""
        worker_group.execute(use_interface, backend_config.interface)
        worker_group.execute(name_ranks)
        host, port = worker_group.execute_single(0, open_store)
        size, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, backend_config.backend, host, port, rank, size, timeout)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Ends the process group on the workers that still answer."""
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(leave), timeout=_SHUTDOWN_TIMEOUT)


_stores: list[TCPStore] = []  # kept until this process ends


def open_store() -> tuple[str, int]:
    """Opens the store of a process group, which listens on this node's address only.

    By default, torch's store listens on all addresses.

    Returns:
        Address and port of the store.
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
    """Makes this process a member of the process group.

    Args:
        backend: backend of torch.distributed.
        host: address of the store.
        port: port of the store.
        rank: of this process.
        size: number of processes in the group.
        timeout: after which an operation of the group fails.
    """
    import torch.distributed as dist

    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def name_ranks() -> None:
    """Sets RANK, LOCAL_RANK and the related environment variables of this worker, which libraries read."""
    from pipeline.compat import set_rank_variables

    set_rank_variables()


def leave() -> None:
    """Destroys this process's process group, and frees the GPU memory that torch has cached."""
    from pipeline.compat import shut_down_torch

    shut_down_torch(destroy_process_group=True)


def use_interface(interface: str) -> None:
    """Sets the network interface of this process, unless the user has set it in the environment.

    Args:
        interface: name of the interface; "auto" for the interface of the node's address in Ray.
    """
    name = interface if interface != "auto" else interface_of(ray.util.get_node_ip_address())
    if name:
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has this IP address; None if no interface has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family in (socket.AF_INET, socket.AF_INET6) and each.address == address for each in addresses):
            return name
    return None
