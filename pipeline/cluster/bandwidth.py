"""How fast two workers exchange gradients: an all-reduce between two processes, as training does it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from statistics import median

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.meeting import join, meet_on, open_store

MIB = 32
ROUNDS = 5


@dataclass(frozen=True)
class Link:
    """Attributes: ids of two nodes, which may be one; MB/s that each sends the other, or 0 and why it cannot."""

    nodes: tuple[str, str]
    speed: float
    problem: str = ""


class _End:
    """One of two processes. An actor: its methods run in turn on its node."""

    def prepare(self, address: str, interface: str) -> int:
        """Sets the interface; opens a store for the two to meet, at the node's address alone, and gives its port."""
        meet_on(interface)
        chosen, known = os.environ.get("GLOO_SOCKET_IFNAME"), [name for _, name in socket.if_nameindex()]
        if chosen is None:
            raise ValueError(f"no network interface has its address {address} (there are {', '.join(known)})")
        if chosen not in known:
            raise ValueError(f"no network interface is called {chosen} (there are {', '.join(known)})")
        return open_store()[1]

    def measure(self, rank: int, host: str, port: int, timeout: float) -> float:
        """MB/s sent by this process: the median of several rounds after a first."""
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        join("gloo", host, port, rank, 2, timedelta(seconds=timeout))
        numbers = torch.ones(MIB << 18)  # of 4 bytes each
        seconds = []
        for _ in range(1 + ROUNDS):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(numbers)
            seconds.append(time.perf_counter() - start)
        if not bool((numbers == 2.0 ** (1 + ROUNDS)).all()):
            raise ValueError("the sum that arrives is wrong")
        # In an all-reduce of two, each sends as many bytes as there are.
        return MIB * (1 << 20) / 1e6 / median(seconds[1:])


def measure_links(nodes: Sequence[tuple[str, str]], interface: str, timeout: float) -> list[Link]:
    """Measures neighbours in pairs, all pairs at once, so that every node takes part; a lone node with itself.

    Args:
        nodes: (id, address) of each.
        interface: ``cluster.interface``.
        timeout: seconds for the start of the processes, and again for the exchange.
    """
    pairs = [(nodes[number], nodes[number + 1]) for number in range(0, len(nodes) - 1, 2)]
    if len(nodes) % 2:
        pairs.append((nodes[-1], nodes[0]))
    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(lambda pair: _measure(pair[0], pair[1], interface, timeout), pairs))


def _measure(first: tuple[str, str], second: tuple[str, str], interface: str, timeout: float) -> Link:
    nodes = (first[0], second[0])
    ends = [
        ray.remote(_End)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in nodes
    ]
    try:
        prepared = [end.prepare.remote(node[1], interface) for end, node in zip(ends, (first, second), strict=True)]
        port, _ = ray.get(prepared, timeout=timeout)
        running = [end.measure.remote(rank, first[1], port, timeout) for rank, end in enumerate(ends)]
        return Link(nodes, min(ray.get(running, timeout=timeout)))
    except ray.exceptions.GetTimeoutError:
        return Link(nodes, 0.0, f"not done within {timeout:.0f} s")
    except ray.exceptions.RayTaskError as error:
        is_ours = isinstance(error.cause, ValueError)
        return Link(nodes, 0.0, str(error.cause) if is_ours else f"they do not meet ({type(error.cause).__name__})")
    except ray.exceptions.RayError as error:
        return Link(nodes, 0.0, f"their processes are lost ({type(error).__name__})")
    finally:
        for end in ends:
            ray.kill(end)
