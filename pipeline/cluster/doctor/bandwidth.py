"""Measures how fast two workers exchange gradients, with the all-reduce that training uses."""

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

from pipeline.cluster.process_group import join, open_store, use_interface

MIB = 32
ROUNDS = 5


@dataclass(frozen=True)
class Link:
    """The measured link between two nodes.

    Attributes:
        nodes: ids of the two nodes, which may be the same.
        speed: MB/s that each node sends to the other; 0 if they cannot communicate.
        problem: why they cannot communicate; empty if they can.
    """

    nodes: tuple[str, str]
    speed: float
    problem: str = ""


class _End:
    """One of the two processes of a measurement: an actor whose methods run on its node, one after the other."""

    def prepare(self, address: str, interface: str) -> int:
        """Sets the network interface, opens a store that listens on the node's address only, and gives its port."""
        use_interface(interface)
        chosen, known = os.environ.get("GLOO_SOCKET_IFNAME"), [name for _, name in socket.if_nameindex()]
        if chosen is None:
            raise ValueError(f"no network interface has its address {address} (there are {', '.join(known)})")
        if chosen not in known:
            raise ValueError(f"no network interface is called {chosen} (there are {', '.join(known)})")
        return open_store()[1]

    def measure(self, rank: int, host: str, port: int, timeout: float) -> float:
        """MB/s that this process sends: the median of ``ROUNDS`` rounds after a warm-up round."""
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        join("gloo", host, port, rank, 2, timedelta(seconds=timeout))
        numbers = torch.ones(MIB << 18)  # 4 bytes each
        seconds = []
        for _ in range(1 + ROUNDS):
            torch.distributed.barrier()
            start = time.perf_counter()
            torch.distributed.all_reduce(numbers)
            seconds.append(time.perf_counter() - start)
        if not bool((numbers == 2.0 ** (1 + ROUNDS)).all()):
            raise ValueError("the sum that arrives is wrong")
        # In an all-reduce of two processes, each sends as many bytes as the tensor has.
        return MIB * (1 << 20) / 1e6 / median(seconds[1:])


def measure_links(nodes: Sequence[tuple[str, str]], interface: str, timeout: float) -> list[Link]:
    """Measures the links between pairs of neighbouring nodes, all pairs at the same time.

    Every node takes part. A single node is measured with itself.

    Args:
        nodes: (id, address) of each node.
        interface: ``cluster.interface``.
        timeout: seconds for the start of the processes, and again for the measurement.
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
