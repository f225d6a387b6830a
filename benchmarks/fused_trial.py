"""What the compiled passes of the regulariser (`components.equivariance.autograd.fused`) save, beside torch's own.

Three runs of the same network take turns in one process: a plain step, the step with the penalty and the compiled
passes, and the step with the penalty and torch's operations. In each round each run takes four steps, the first not
timed. "fused" and "torch" are ratios to the plain step, "torch_over_fused" is the ratio of the two; all are medians
over rounds, with quartiles. Memory is that of `benchmarks/overhead.py`, as a ratio to the plain step.

The compiled passes stay if a budget is missed without them, or if a step takes over 3 % longer without them.

    python benchmarks/fused_trial.py [--rounds 15] [--network dncnn dncnn17 unet]

Prints one JSON line a network, layout and case. Ratios are of this machine; run it with the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.overhead import NETWORKS, Case, Run, cases, keep_freed_memory, peak_memory, timed
from components.equivariance.autograd import fused

BUDGETS = {"default of params.yaml": (1.05, 1.10), "all layers, k = B/4": (1.12, 1.30)}
"""Case -> bounds of time and memory, as ratios to the plain step."""


def with_torch(step: Callable[[], None]) -> Callable[[], None]:
    """The step without the compiled passes."""

    def run() -> None:
        with mock.patch.object(fused, "_library", return_value=None):
            step()

    return run


def measure(network: str, layout: str, case: Case, rounds: int) -> dict[str, Any]:
    """The figures of one case on one network in one memory layout."""
    plain, compiled, own = (Run(each, network, layout) for each in (Case("plain"), case, case))
    steps = {"plain": plain.step, "fused": compiled.step, "torch": with_torch(own.step)}
    for step in steps.values():
        for _ in range(2):
            step()
    memory = {name: peak_memory(step) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for round_ in range(rounds):
        for name in names[round_ % 3 :] + names[: round_ % 3]:
            steps[name]()  # not timed: the caches are still those of another run
            seconds[name].append(statistics.median(timed(steps[name]) for _ in range(3)))
    row: dict[str, Any] = {
        "benchmark": "fused_trial",
        "network": network,
        "layout": layout,
        "case": case.name,
        "time_bound": BUDGETS[case.name][0],
        "memory_bound": BUDGETS[case.name][1],
    }
    for key, name, other in (
        ("fused", "fused", "plain"),
        ("torch", "torch", "plain"),
        ("torch_over_fused", "torch", "fused"),
    ):
        ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        row[key] = round(statistics.median(ratios), 4)
        row[f"{key}_quartiles"] = [round(low, 4), round(high, 4)]
    row |= {f"memory_{name}": round(memory[name] / memory["plain"], 4) for name in ("fused", "torch")}
    return row | {"rounds": rounds, "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--layout", nargs="*", default=["contiguous", "channels_last"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if not fused.is_available():
        raise SystemExit("there is no C compiler: nothing to compare")
    for network in arguments.network:
        for layout in arguments.layout:
            for case in cases():
                if case.name in BUDGETS:
                    print(json.dumps(measure(network, layout, case, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
