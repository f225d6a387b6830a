"""Where workers meet: the network interface on which torch.distributed of each node listens and connects."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@dataclass
class MeetingConfig(TorchConfig):
    """Ray's configuration of torch.distributed, and the interface: a name, or "auto" (each node's own, see below)."""

    interface: str = "auto"

    @property
    def backend_cls(self) -> type[MeetingBackend]:
        return MeetingBackend


class MeetingBackend(_TorchBackend):
    """Tells every worker its interface before the process group is made; gloo would else meet on 127.0.0.1."""

    def on_start(self, worker_group: Any, backend_config: MeetingConfig) -> None:
        worker_group.execute(meet_on, backend_config.interface)
        worker_group.execute(_set_torch_distributed_env_vars)
        host, port = worker_group.execute_single(0, open_store)
        size, timeout = len(worker_group), timedelta(seconds=backend_config.timeout_s)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, backend_config.backend, host, port, rank, size, timeout)
                for rank in range(size)
            ]
        )


_stores: list[dist.TCPStore] = []  # of this process, for as long as it lives


def open_store() -> tuple[str, int]:
    """Opens the store of a process group at this node's address, and at no other: torch's own listens on all of them.

    Returns:
        Address and port.
    """
    host = ray.util.get_node_ip_address()
    listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listening.getsockname()[1]
    _stores.append(
        dist.TCPStore(
            host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(), use_libuv=False
        )
    )
    return host, port


def join(backend: str, host: str, port: int, rank: int, size: int, timeout: timedelta) -> None:
    """Makes this process a member of the group whose store is there."""
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


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
