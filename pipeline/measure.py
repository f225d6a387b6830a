"""What a network gives on the packed images: measured for ``evaluate``, for each run of an ablation, and in sweeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from components.data.packs import Entry, Pack
from components.equivariance import equivariance_error
from components.equivariance.layers import named_layers
from components.evaluation.protocol import Case, Method, Row, cases, measure
from components.evaluation.restoration import restore
from components.tasks import Task
from pipeline.job import TrainingJob
from pipeline.packing import TEST_PACKS
from pipeline.params import Evaluate

Draw = tuple[Entry, np.ndarray, np.ndarray]
MOST_TURNED = 32
"""Scenes of which the equivariance error is measured, and pictures made."""

EQUIVARIANCE, OUTPUT_ERROR = "equivariance", "output_error"
"""The group of rows, and their figure, that say how equivariant the output is, scene by scene."""


def measure_rows(job: TrainingJob, network: nn.Module) -> list[dict[str, Any]]:
    """One row for each test image, each of its quarter turns, and each image out of distribution.

    ``{"group", "condition", "image", "scene"}`` as in ``components.evaluation.protocol``, and the task's figures of the
    network's output by name. Then a row of group "equivariance" for the first image of each scene, with the relative
    error of the output under quarter turns, "output_error".

    Args:
        job: whose packs are measured, as its ``evaluate`` params say.
        network: trained, on any device; left in the mode that it is in.

    Raises:
        ValueError: the network gives values that are not finite; a damaged pack.
    """
    test, others = evaluation_packs(job.packed)
    was_training = network.training
    network.eval()
    try:
        methods: dict[str, Method] = {
            "": lambda inputs: _finite(restored_by(network, job.task, inputs, job.params.evaluate))
        }
        rows = [measure(case, methods, job.task.quality) for case in cases(test, others, job.task.pairs)]
        errors = [
            {
                "group": EQUIVARIANCE,
                "condition": "output",
                "image": entry.name,
                "scene": entry.scene,
                OUTPUT_ERROR: error,
            }
            for entry, error in _output_errors(network, first_draws(test, job.task))
        ]
    finally:
        network.train(was_training)
    return [
        {"group": row.group, "condition": row.condition, "image": row.image, "scene": row.scene, **row.scores[""]}
        for row in rows
    ] + errors


def validation_errors(job: TrainingJob, network: nn.Module) -> dict[str, float]:
    """Relative errors under quarter turns, the mean over the first validation image of each scene.

    0 is exact, 1.41 unrelated. The group is always C4, whatever the penalty compares, so that trials can be compared.
    The network is on any device, and left in the mode that it is in.

    Returns:
        "equivariance_error", of the output, which may be an objective of a sweep, and "layer_error", the mean over the
        layers, where there are any.
    """
    draws = first_draws(Pack(job.packed / "val"), job.task)
    found = [_errors(network, inputs) for _, inputs, _ in draws]
    layers = [error for errors in found for name, error in errors.items() if name != "output"]
    output = float(np.mean([errors["output"] for errors in found]))
    return {"equivariance_error": output} | ({"layer_error": float(np.mean(layers))} if layers else {})


def layer_names(job: TrainingJob) -> list[str]:
    """The layers that the job's penalty can reach, in order of registration: what ``layers: each`` of a space means."""
    network = job.network()
    regularizer = job.regularizer(network)
    return [name for name in named_layers(network) if regularizer is None or name not in regularizer.skipped]


def evaluation_packs(packed: Path) -> tuple[Pack, dict[str, Pack]]:
    """The test pack, and those of the other degradations by name."""
    folders = sorted(file.parent for file in (packed / TEST_PACKS).glob("*/index.json"))
    return Pack(packed / "test"), {folder.name: Pack(folder) for folder in folders}


def first_draws(pack: Pack, task: Task) -> list[Draw]:
    """The first pair of every scene, of so many scenes at most."""
    first: dict[str, int] = {}
    for index, entry in enumerate(pack.entries):
        first.setdefault(entry.scene, index)
    return list(task.pairs(pack, list(first.values())[:MOST_TURNED]))


def restored_by(network: nn.Module, task: Task, inputs: np.ndarray, settings: Evaluate) -> np.ndarray:
    """What a network in evaluation mode makes of one image: an image, or scores of classes."""
    image = torch.from_numpy(np.array(inputs, order="C")).to(_device(network))
    if task.reads == "labelled":
        with torch.inference_mode():
            scores: np.ndarray = network(image[None])[0].cpu().numpy()
        return scores
    return restore(network, image, tile=settings.tile, overlap=settings.overlap).cpu().numpy()


def measured(
    test: Pack, others: Mapping[str, Pack], methods: Mapping[str, Method], task: Task, num_workers: int
) -> Iterator[Row]:
    """Every case, measured side by side in threads, in order."""

    def row(case: Case) -> Row:
        return measure(case, methods, task.quality)

    with ThreadPoolExecutor(num_workers) as pool:
        yield from _side_by_side(pool, row, cases(test, others, task.pairs), 2 * num_workers)


def equivariance_by_layer(network: nn.Module, draws: Sequence[Draw]) -> dict[str, float]:
    """Relative residual of every layer and of the output, over the draws and all turns."""
    squares: dict[str, list[float]] = {}
    for _, inputs, _ in draws:
        for name, error in _errors(network, inputs).items():
            squares.setdefault(name, []).append(error**2)
    return {name: float(np.sqrt(np.mean(values))) for name, values in squares.items()}


def _output_errors(network: nn.Module, draws: Sequence[Draw]) -> list[tuple[Entry, float]]:
    return [(entry, _errors(network, inputs)["output"]) for entry, inputs, _ in draws]


def _errors(network: nn.Module, inputs: np.ndarray) -> dict[str, float]:
    return equivariance_error(network, torch.from_numpy(np.array(inputs, order="C"))[None].to(_device(network)))


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _finite(output: np.ndarray) -> np.ndarray:
    if not np.isfinite(output).all():
        raise ValueError("the network gives values that are not finite for a test image")
    return output


def _side_by_side(
    pool: ThreadPoolExecutor, function: Callable[[Case], Row], items: Iterable[Case], ahead: int
) -> Iterator[Row]:
    """``map`` in order, with only so many items in memory at a time."""
    waiting: deque[Future[Row]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
