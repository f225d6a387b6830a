"""Where workers meet: the network interface on which torch.distributed of each node listens and connects."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

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
        super().on_start(worker_group, backend_config)


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
