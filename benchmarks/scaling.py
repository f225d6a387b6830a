"""Images a second for 1 and 2 workers on this machine, and on paper what 8, 64 and 512 GPUs would make of it.

    python -m benchmarks.scaling [--rounds 5] [--steps 12]

Measured: the default training step (U-Net, penalty as in params.yaml) in processes of one thread each that average
their gradients by gloo over loopback, for the same global batch (strong) and for the same images a worker (weak);
rounds of 1 and 2 workers alternate, medians. Efficiency is images a second of 2 workers / (2 x those of 1 worker).

On paper: floating-point operations a step (counted by torch) and the bytes of an all-reduce (counted), on GPUs and
links whose figures are assumptions, printed with the result. The two efficiencies are those without and with all of the
communication hidden behind the backward pass. Nothing of that part was run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from components.data.randomness import Stream, torch_generator
from components.training.worker import Worker
from pipeline.config.schema import check_params
from pipeline.config.values import read_values, set_value
from pipeline.training_job import TrainingJob

ROOT = Path(__file__).parents[1]
# Assumptions of the model on paper: an H100 in bf16 at a third of its peak; NVLink within a node of 8; 400 Gbit/s a GPU
# between nodes; microseconds a hop.
GPU_FLOPS, UTILISATION = 989e12, 0.33
NODE_GPUS, NODE_BYTES, NETWORK_BYTES = 8, 450e9, 50e9
NODE_LATENCY, NETWORK_LATENCY = 3e-6, 10e-6
IMAGES_A_GPU = 32


def job_of(**changes: Any) -> TrainingJob:
    """The default job with changed params (``__`` for a dot); packs are not read."""
    values = read_values(ROOT / "params.yaml")
    for key, value in {"network__norm": "none", **changes}.items():
        set_value(values, key.replace("__", "."), value)
    return TrainingJob(check_params(values, "params"), Path("/nonexistent"))


class Drawn:
    """A training batch in memory: what the data cost is measured in benchmarks/data.py."""

    def __init__(self, side: int) -> None:
        self.side = side

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(len(indices), 3, self.side, self.side, generator=torch_generator(0, Stream.TURN, step))
        return images, images


def measure(rank: int, world: int, batch_size: int, steps: int, folder: str) -> None:
    """Runs in each process: rank 0 writes the images a second of all steps but the first third."""
    from components.training.global_batch import count_pairs, worker_batch
    from components.training.loop import TrainingCallbacks, train

    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet-{world}-{batch_size}", rank=rank, world_size=world)
    job = job_of(train__batch_size=batch_size, train__steps=steps, train__report_every=1, train__validate_every=10**6)
    worker, chosen = Worker.current(), job.params.equivariance
    state = job.state(worker)
    clocks: list[float] = []
    num_pairs = count_pairs(batch_size, chosen.pairing, chosen.pair_fraction)
    train(
        state,
        Drawn(job.params.train.patch_size),
        worker_batch(batch_size, chosen.pairing, num_pairs, rank, world),
        job.regularizer(state.network),
        job.settings(),
        worker,
        TrainingCallbacks(
            lambda step, metrics: clocks.append(time.perf_counter()), lambda state, metrics: None, lambda network: {}
        ),
    )
    if rank == 0:
        first = steps // 3
        seconds = (clocks[-1] - clocks[first]) / (len(clocks) - 1 - first)
        Path(folder, "rate").write_text(str(batch_size / seconds))
    if world > 1:
        dist.destroy_process_group()


def rate(world: int, batch_size: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (world, batch_size, steps, folder), world)
        return float(Path(folder, "rate").read_text())


def seconds_of_all_reduce(num_bytes: int, gpus: int) -> float:
    """A ring within each node and one across the nodes, each GPU with a share of the bytes (hierarchical)."""
    within = min(gpus, NODE_GPUS)
    nodes = math.ceil(gpus / NODE_GPUS)
    seconds = 2 * (within - 1) * (NODE_LATENCY + num_bytes / within / NODE_BYTES)
    if nodes > 1:
        seconds += 2 * (nodes - 1) * (NETWORK_LATENCY + num_bytes / within / nodes / NETWORK_BYTES)
    return seconds


def on_paper(width: int, side: int) -> dict[str, Any]:
    """The default step at a width and patch size."""
    job = job_of(network__width=width, train__patch_size=side)
    network = job.network()
    images = torch.rand(1, 3, side, side)
    counter = FlopCounterMode(display=False)
    with counter:
        network(images).square().mean().backward()
    flops = counter.get_total_flops()
    num_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    compute = IMAGES_A_GPU * flops / (GPU_FLOPS * UTILISATION)
    expected = {}
    for gpus in (8, 64, 512):
        reduce = seconds_of_all_reduce(num_bytes, gpus)
        expected[str(gpus)] = {
            "images_per_step": gpus * IMAGES_A_GPU,
            "all_reduce_ms": round(1e3 * reduce, 3),
            "efficiency_nothing_hidden": round(compute / (compute + reduce), 3),
            "efficiency_all_hidden": round(compute / max(compute, reduce), 3),
        }
    return {
        "figure": "on paper, nothing run",
        "width": width,
        "patch": side,
        "gflop_per_image": round(flops / 1e9, 2),
        "all_reduce_mb": round(num_bytes / 1e6, 2),
        "compute_ms": round(1e3 * compute, 3),
        "assumed": {
            "flops": GPU_FLOPS,
            "utilisation": UTILISATION,
            "images_per_gpu": IMAGES_A_GPU,
            "bytes_per_s_within_8": NODE_BYTES,
            "bytes_per_s_between": NETWORK_BYTES,
            "latency_s": [NODE_LATENCY, NETWORK_LATENCY],
        },
        "gpus": expected,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    os.environ.update(TORCH_CPP_LOG_LEVEL="ERROR", PYTHONWARNINGS="ignore")  # of the processes started below
    for kind in ("strong", "weak"):
        batch_of_two = arguments.batch_size * (2 if kind == "weak" else 1)
        pairs = [
            (rate(1, arguments.batch_size, arguments.steps), rate(2, batch_of_two, arguments.steps))
            for _ in range(arguments.rounds)
        ]
        ratios = [two / (2 * one) for one, two in pairs]
        record = {
            "figure": f"2 workers of one thread beside 1, {kind} scaling",
            "batch_size": [arguments.batch_size, batch_of_two],
            "images_per_second": [round(statistics.median(column), 1) for column in zip(*pairs, strict=True)],
            "efficiency": round(statistics.median(ratios), 3),
            "efficiency_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "rounds": arguments.rounds,
        }
        print(json.dumps(record), flush=True)
    for width, side in ((24, 48), (96, 128)):
        print(json.dumps(on_paper(width, side)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
