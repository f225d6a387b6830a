"""What the regulariser costs: time and memory of a training step as ratios to the plain step, and what cheapness buys.

Every case is one training step (pairing, forward, penalty, backward, AdamW) with the same number of images as the
plain step beside it, except "append", which trains on twice as many. In each round both take four steps, the first
not timed; each ratio is that of the medians of one round, and the median over rounds is given with its quartiles.
The case "as eqreg train runs it, reports included" times the training loop itself (drawing, clipping, average of the
weights, one report in 25 steps), with the penalty of params.yaml and without: a round is 25 steps of each. Its bound
is 1.05. "cpu_time" is the same ratio of processor seconds, for a machine that others use too; "report_step" is the
processor time of a step that reports / that of the next one, which does not.
Memory is the peak of what torch's CPU allocator holds within a step, over what it holds before; not of the first
step, which keeps more. "noise" is the variance of the penalty's gradient over batches, turns, and choices of layers
and fields, relative to that of all layers with k = B/2. (The default of params.yaml weights and caps its layers
otherwise than the rest, so its noise is that of another, smaller gradient.)

By default glibc hands freed memory back to the kernel in every step and gets it again page by page, which costs a plain
step some per cent and the regulariser, which allocates more often, more. ``--malloc keep`` (as `make run` trains) tells
it to keep it, ``--malloc default`` does not; the ratios are always to a plain step under the same setting.

Where there is a C compiler the regulariser's passes over the maps are compiled
(`components.equivariance.autograd.fused`); ``EQREG_FUSED=0`` in the environment measures torch's operations instead.

    python benchmarks/overhead.py [--malloc keep] [--rounds 9] [--draws 20] [--network dncnn unet dncnn17]

Prints one JSON line a case, then a table. Ratios are of this machine; run it with the machine otherwise idle.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from components.equivariance import EquivarianceRegularizer, PenaltyWeight
from components.equivariance.autograd.fused import is_available
from components.networks import build_network
from components.training.global_batch import count_pairs, worker_batch
from components.training.loop import TrainingCallbacks, train
from components.training.losses import MeanSquaredError
from components.training.optimizers import AdamW
from components.training.schedules import Cosine
from components.training.settings import TrainingSettings
from components.training.state import TrainingState
from components.training.worker import Worker
from pipeline.config.schema import load_params

# name -> (settings of the network, images a step, side of a patch)
NETWORKS: dict[str, tuple[dict[str, Any], int, int]] = {
    "dncnn": ({"name": "dncnn", "width": 48, "depth": 10, "norm": "none"}, 16, 40),
    "dncnn17": ({"name": "dncnn", "width": 64, "depth": 17, "norm": "none"}, 16, 40),
    "unet": ({"name": "unet", "width": 24, "depth": 3, "norm": "batch"}, 8, 48),
    **{
        f"{settings['name']} as published": (settings, 4, 64)
        for settings in (
            {"name": "dncnn"},
            {"name": "prenet"},
            {"name": "redcnn", "in_channels": 3, "out_channels": 3},
            {"name": "acdnet", "maps": 8, "dual_channels": 35},
            {"name": "nafnet"},
            {"name": "restormer", "hidden_multiple": 4},
            {"name": "swinir"},
        )
    },
    "swinir of 2 groups of 2": ({"name": "swinir", "groups": 2, "depth": 2}, 4, 64),
}
WEIGHT = 0.01
REPORTS, REPORT_EVERY, REPORTS_BOUND = "as eqreg train runs it, reports included", 25, 1.05


@dataclass(frozen=True)
class Case:
    """A way to train a step; no options at all is the plain one."""

    name: str
    options: dict[str, Any] | None = None
    is_detached: bool = False
    is_evaluation: bool = False
    has_noise: bool = field(default=False)


REFERENCE = Case("all layers, k = B/2", {"pair_fraction": 0.5}, has_noise=True)


def cases() -> list[Case]:
    """All that is measured beside the plain step."""
    return [
        Case("default of params.yaml", default_options(), has_noise=True),
        REFERENCE,
        Case("all layers, k = B/4", {"pair_fraction": 0.25}, has_noise=True),
        Case("all layers, k = B/8", {"pair_fraction": 0.125}, has_noise=True),
        Case("fifth of the layers, k = B/4", {"pair_fraction": 0.25, "sample_layers": 0.2}, has_noise=True),
        Case("third of the fields, k = B/4", {"pair_fraction": 0.25, "sample_fields": 0.33}, has_noise=True),
        Case("channel, k = B/4", {"penalty": "channel"}),
        Case("projection, no pairs", {"penalty": "projection", "pairing": "none"}),
        Case("append, k = B", {"pairing": "append", "pair_fraction": 1.0}),
        Case("detached", {}, is_detached=True),
        Case("evaluation", {}, is_evaluation=True),
        Case("default, a tenth of the layers", {**default_options(), "sample_layers": 0.1}),
    ]


def default_options() -> dict[str, Any]:
    """The options of params.yaml that a regulariser takes."""
    return vars(load_params().equivariance.config)


@cache
def photographs() -> list[np.ndarray]:
    """The photographs of scikit-learn, ``(H, W, 3)`` uint8."""
    images: list[np.ndarray] = load_sample_images().images
    return images


def patches(count: int, side: int, generator: np.random.Generator) -> Tensor:
    """Random crops of photographs, ``(count, 3, side, side)`` in [0, 1]."""
    images = photographs()
    crops = []
    for _ in range(count):
        image = images[generator.integers(len(images))]
        top, left = (int(generator.integers(size - side)) for size in image.shape[:2])
        crops.append(image[top : top + side, left : left + side].transpose(2, 0, 1) / np.float32(255))
    return torch.from_numpy(np.stack(crops).astype(np.float32))


class Run:
    """One case on one network: ``step()`` trains (or evaluates) one step."""

    def __init__(self, case: Case, network: str, layout: str) -> None:
        settings, self.num_images, self.side = NETWORKS[network]
        torch.manual_seed(0)
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.case = case
        self.network = build_network(**settings).to(memory_format=memory_format)  # type: ignore[call-overload]
        if not self.network.needs:
            nn.init.normal_(
                list(self.network.parameters())[-2], std=0.01
            )  # not the identity: gradients reach every layer
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        clean = patches(self.num_images, self.side, np.random.default_rng(0)).to(memory_format=memory_format)
        self.clean = clean[:, : int(self.network.out_channels)]
        self.degraded = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        self.generator = torch.Generator().manual_seed(2)
        self.regularizer = None
        if case.options is not None:
            self.regularizer = EquivarianceRegularizer(self.network, **case.options)
        if case.is_detached and self.regularizer:
            self.step(penalises=True)
            self.regularizer.detach()
            self.regularizer = None
        self.network.train(not case.is_evaluation)

    def step(self, penalises: bool = True) -> None:
        if self.case.is_evaluation:
            with torch.inference_mode():
                self.network(self.degraded)
            return
        inputs, targets = self.degraded, self.clean
        if self.regularizer:
            batch = self.regularizer.pair(inputs, targets, generator=self.generator)
            inputs, targets = batch.inputs, batch.targets
        outputs = self.network(inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = torch.stack([F.mse_loss(output, targets) for output in outputs]).mean()
        if self.regularizer and penalises:
            loss = loss + WEIGHT * self.regularizer.penalty()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def peak_memory(step: Callable[[], None]) -> int:
    """The most bytes that torch's CPU allocator holds within a step, over what it holds before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def timed(step: Callable[[], None]) -> float:
    """Seconds of a step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def gradient_noise(case: Case, network: str, layout: str, draws: int, trained_steps: int = 20) -> float:
    """Variance of the penalty's gradient over draws of images, turns and layers, on a network trained a little."""
    run = Run(case, network, layout)
    plain = Run(Case("plain"), network, layout)
    for _ in range(trained_steps):
        plain.step()
    run.network.load_state_dict(plain.network.state_dict())
    assert run.regularizer is not None
    source = np.random.default_rng(3)
    gradients = []
    parameters = list(run.network.parameters())
    for draw in range(draws + 1):
        clean = patches(run.num_images, run.side, source)
        degraded = clean + 0.1 * torch.randn(clean.shape, generator=run.generator)
        batch = run.regularizer.pair(degraded, clean, generator=run.generator)
        output = run.network(batch.inputs)
        # Beside a task loss, as in training: a capped gradient exists only there.
        loss = F.mse_loss(output, batch.targets)
        penalty = run.regularizer.penalty()
        task = torch.autograd.grad(loss, parameters, retain_graph=True)
        both = torch.autograd.grad(loss + WEIGHT * penalty, parameters)
        if draw:  # the first step draws layers in another way
            gradients.append(torch.cat([(b - t).flatten() for b, t in zip(both, task, strict=True)]) / WEIGHT)
    return float(torch.stack(gradients).double().var(dim=0).sum())


def measure(
    network: str, layout: str, rounds: int, draws: int, malloc: str, only: Sequence[str]
) -> list[dict[str, Any]]:
    """The figures of all cases of one network in one memory layout."""
    rows = []
    if (REPORTS in only or not only) and layout == "contiguous":
        rows.append(measure_reports(network, rounds, malloc))
        print(json.dumps(rows[-1]), flush=True)
    for case in cases():
        if case.name in only or not only:
            rows.append(measure_case(case, network, layout, rounds, malloc))
            reference = gradient_noise(REFERENCE, network, layout, draws) if draws and case.has_noise else 0.0
            noise = gradient_noise(case, network, layout, draws) if reference else None
            rows[-1]["noise"] = round(noise / reference, 3) if noise is not None else None
            print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_case(case: Case, network: str, layout: str, rounds: int, malloc: str) -> dict[str, Any]:
    """Time and memory of one case, beside a plain run of its own: nothing else has its memory and its caches."""
    base, run = Run(Case("plain", is_evaluation=case.is_evaluation), network, layout), Run(case, network, layout)
    for each in (base, run):
        for _ in range(2):
            each.step()
    memory = [peak_memory(each.step) for each in (base, run)]
    ratios = []
    for round_ in range(rounds):
        seconds = {}
        for each in (base, run) if round_ % 2 else (run, base):
            each.step()  # not timed: the caches are still those of the other
            seconds[each] = statistics.median(timed(each.step) for _ in range(3))
        ratios.append(seconds[run] / seconds[base])
    low, _, high = statistics.quantiles(ratios, n=4)
    options = case.options or {}
    is_regularised = case.options is not None
    return {
        "benchmark": "overhead",
        "network": network,
        "layout": layout,
        "case": case.name,
        "penalty": options.get("penalty", "regular") if is_regularised else None,
        "pairing": options.get("pairing", "replace") if is_regularised else None,
        "pair_fraction": options.get("pair_fraction", 0.25) if is_regularised else None,
        "layers": options.get("sample_layers") or "all",
        "fields": options.get("sample_fields") or "all",
        "time": round(statistics.median(ratios), 4),
        "time_quartiles": [round(low, 4), round(high, 4)],
        "memory": round(memory[1] / memory[0], 4),
        "rounds": rounds,
        "malloc": malloc,
        "fused": is_available(),
    }


class NoisyPatches:
    """A sampler of crops with noise, each batch a function of the step."""

    def __init__(self, side: int) -> None:
        self.side = side

    def batch(self, step: int, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        clean = patches(len(indices), self.side, np.random.default_rng(step))
        return clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(step)), clean


class Training:
    """A run of the training loop, with the penalty of params.yaml or without pairs."""

    def __init__(self, network: str, is_plain: bool) -> None:
        settings, self.num_images, side = NETWORKS[network]
        params, self.worker, self.sampler = load_params(), Worker.current(), NoisyPatches(side)
        chosen, values = params.equivariance, params.train.model_dump()
        torch.manual_seed(0)
        model = build_network(**settings)
        nn.init.normal_(list(model.parameters())[-2], std=0.01)  # not the identity: gradients reach every layer
        by_name = {"loss": MeanSquaredError(), "optimizer": AdamW(), "schedule": Cosine()}
        values |= {"seed": 0, **by_name, "report_every": REPORT_EVERY, "validate_every": 10**9}
        values |= {"learning_rate": 1e-4, "checkpoint_every": 10**9}
        self.settings = TrainingSettings(**{name: values[name] for name in TrainingSettings.__dataclass_fields__})
        weight = PenaltyWeight(0.0 if is_plain else chosen.weight, chosen.warmup_steps, unit=chosen.weight_unit)
        self.state = TrainingState(model, weight, self.settings, self.worker)
        self.regularizer = None if is_plain else EquivarianceRegularizer(self.state.network, **default_options())
        pairing = "none" if is_plain else chosen.pairing
        num_pairs = count_pairs(self.num_images, pairing, chosen.pair_fraction)
        self.own_batch = worker_batch(self.num_images, pairing, num_pairs, 0, 1)
        self.reports: list[dict[str, float]] = []

    def seconds(self, steps: int = REPORT_EVERY) -> tuple[float, float]:
        """Trains some more steps, the last of which reports; returns the seconds, and those of all processors."""
        start = time.perf_counter(), time.process_time()
        self._train(replace(self.settings, steps=self.state.step + steps), lambda: None)
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def report_step(self, pairs: int = 10) -> float:
        """Processor time of a step that reports / that of the next step, the median over pairs of them."""
        ends: list[float] = []
        steps = self.state.step + self.state.step % 2 + 2 * pairs + 2
        settings = replace(self.settings, steps=steps, report_every=2, checkpoint_every=1)
        first = self.state.step + 1
        self._train(settings, lambda: ends.append(time.process_time()))
        seconds = {first + number: after - before for number, (before, after) in enumerate(pairwise(ends), 1)}
        reporting = [step for step in seconds if step % 2 == 0 and step + 1 in seconds]
        return statistics.median(seconds[step] / seconds[step + 1] for step in reporting)

    def _train(self, settings: TrainingSettings, after_step: Callable[[], None]) -> None:
        callbacks = TrainingCallbacks(
            lambda step, metrics: self.reports.append(metrics),
            lambda state, metrics: after_step(),
            lambda averaged: {},
        )
        train(self.state, self.sampler, self.own_batch, self.regularizer, settings, self.worker, callbacks)


def measure_reports(network: str, rounds: int, malloc: str) -> dict[str, Any]:
    """Images a second of the training loop without and with the penalty, reports included."""
    plain, penalised = Training(network, is_plain=True), Training(network, is_plain=False)
    for each in (plain, penalised):
        each.seconds(3)
    seconds: dict[Training, list[tuple[float, float]]] = {plain: [], penalised: []}
    for round_ in range(rounds):
        for each in (plain, penalised) if round_ % 2 else (penalised, plain):
            seconds[each].append(each.seconds())
    # (R, 2), a row a round: wall clock and processors
    ratios = np.array(seconds[penalised]) / np.array(seconds[plain])
    assert all("gradient_ratio" in metrics for metrics in penalised.reports)  # the reports are whole
    (low, time_, high), (cpu_low, cpu, cpu_high) = (np.quantile(column, [0.25, 0.5, 0.75]) for column in ratios.T)
    _, num_images, side = NETWORKS[network]
    speeds = [REPORT_EVERY * num_images / statistics.median(wall for wall, _ in seconds[each]) for each in seconds]
    return {
        "benchmark": "overhead_reports",
        "network": network,
        "layout": "contiguous",
        "case": REPORTS,
        "batch_size": num_images,
        "patch_size": side,
        "report_every": REPORT_EVERY,
        "images_per_second": [round(speed, 2) for speed in speeds],
        "time": round(float(time_), 4),
        "time_quartiles": [round(float(low), 4), round(float(high), 4)],
        "cpu_time": round(float(cpu), 4),
        "cpu_time_quartiles": [round(float(cpu_low), 4), round(float(cpu_high), 4)],
        "report_step": round(penalised.report_step(), 4),
        "bound": REPORTS_BOUND,
        "memory": None,
        "noise": None,
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "malloc": malloc,
        "fused": is_available(),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The same as a table: a row a case, a column a network and layout."""
    columns = list(dict.fromkeys((row["network"], row["layout"]) for row in rows))
    table = Table("case", *(f"{network}, {layout}" for network, layout in columns), title="time / memory / noise")
    for case in dict.fromkeys(row["case"] for row in rows):
        cells = []
        for column in columns:
            row = next((r for r in rows if r["case"] == case and (r["network"], r["layout"]) == column), None)
            figures = (
                [f"{row[name]:.3f}" for name in ("time", "memory", "noise") if row[name] is not None] if row else []
            )
            cells.append(" / ".join(figures))
        table.add_row(case, *cells)
    Console(width=130).print(table)


def keep_freed_memory() -> None:
    """What ``MALLOC_MMAP_THRESHOLD_`` and its like do in the environment (see ``pipeline/cluster/session.py``)."""
    for option, value in ((-3, 1 << 29), (-1, 1 << 30), (-2, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        ctypes.CDLL(None).mallopt(option, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--malloc", choices=["keep", "default"], default="keep")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--draws", type=int, default=24, help="for the noise, which is that of the first layout; 0: none"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", nargs="*", default=["dncnn", "unet"], choices=list(NETWORKS))
    parser.add_argument("--case", nargs="*", default=[], help="some of the cases, by name")
    parser.add_argument("--layout", nargs="*", default=["contiguous", "channels_last"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.malloc == "keep":
        keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for network in arguments.network:
        for layout in arguments.layout:
            draws = arguments.draws if layout == arguments.layout[0] else 0  # the same in every layout
            rows += measure(network, layout, arguments.rounds, draws, arguments.malloc, arguments.case)
    show(rows)


if __name__ == "__main__":
    main()
