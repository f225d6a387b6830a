"""What a network costs: parameters and multiply-adds, the same on every machine, and measured time and memory."""

from __future__ import annotations

import copy
import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SIDE = 512
"""Side of the image for which the cost is counted and measured, in pixels of the input: a tile of ``eqreg restore``."""

MEGAPIXEL = 1_000_000
_SMALL = 64
_RUNS = 3
_MOST_SECONDS = 10.0
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class MeasuredCost:
    """Time and memory of a network on one machine, for an image of ``SIDE`` x ``SIDE`` pixels of the input.

    Attributes:
        machine: the processor or the GPU, the number of threads, and the version of torch.
        seconds_per_megapixel: median of three runs, of fewer if they take longer than ten seconds.
        peak_bytes_per_megapixel: growth of the memory during a run, beside the input and the weights; on the CPU that
            of the process. None on a CPU if the system is not Linux.
    """

    machine: str
    seconds_per_megapixel: float
    peak_bytes_per_megapixel: float | None


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters, trainable or not; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_multiply_adds(network: nn.Module) -> float:
    """Return the multiply-adds for a pixel of the input, counted for ``SIDE`` x ``SIDE`` pixels.

    ``torch.utils.flop_counter`` counts those of convolutions, matrix products and attention. Element-wise operations,
    norms and Fourier transforms are not counted. The count is the same on every machine.

    Args:
        network: in evaluation mode, with the attribute ``in_channels``.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:  # on the device "meta" nothing is computed
        copy.deepcopy(network).to("meta")(_image(network, SIDE, torch.device("meta")))
    return float(counter.get_total_flops()) / 2 / SIDE**2


def measure_cost(network: nn.Module) -> MeasuredCost:
    """Measure the time and the memory of a network on the device on which it is.

    Args:
        network: in evaluation mode, with the attribute ``in_channels``.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image, seconds, peaks = _image(network, SIDE, device), [], []

    def run() -> None:
        start = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)

    with torch.inference_mode():
        network(_image(network, _SMALL, device))  # loads libraries
        while len(seconds) < _RUNS and sum(seconds) < _MOST_SECONDS:
            peaks.append(_growth(run, device))
    known = [peak for peak in peaks if peak is not None]
    per_megapixel = MEGAPIXEL / SIDE**2
    return MeasuredCost(
        machine=_machine(device),
        seconds_per_megapixel=statistics.median(seconds) * per_megapixel,
        peak_bytes_per_megapixel=statistics.median(known) * per_megapixel if known else None,
    )


def _image(network: nn.Module, side: int, device: torch.device) -> torch.Tensor:
    """Returns an image ``(1, C, side, side)`` of noise in [0, 1]."""
    shape = (1, int(network.in_channels), side, side)  # type: ignore[arg-type]
    if device.type == "meta":
        return torch.empty(shape, device=device)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _growth(run: Callable[[], None], device: torch.device) -> int | None:
    """Calls ``run``; returns the largest number of bytes by which the memory grew meanwhile."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        # Memory that was freed but not returned to the system would hide what the run needs.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")  # the largest resident size is counted from here on
        resident = _status("VmRSS")
    except (OSError, AttributeError):  # not Linux, or not the C library of GNU
        run()
        return None
    run()
    return max(0, _status("VmHWM") - resident)


def _status(name: str) -> int:
    """Returns an entry of the process's status, in bytes."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _machine(device: torch.device) -> str:
    release = f"torch {str(torch.__version__).split('+')[0]}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {release}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} {'thread' if threads == 1 else 'threads'}, {release}"


def _processor() -> str:
    """Returns the name of the processor; on Linux that of the kernel, because ``platform`` names the kind alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


__all__ = ["MeasuredCost", "count_multiply_adds", "count_parameters", "measure_cost"]
