"""Measures the output of a network on the packed images.

``evaluate``, each run of an ablation, and the trials of a sweep use these functions.
"""

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
from components.equivariance.layers.spec import named_layers, requested_fields
from components.evaluation.conventions import quality_by_convention
from components.evaluation.protocol import Case, Method, Row, cases, measure
from components.inference.tiles import restore
from components.tasks import Task
from pipeline.config.sections import Evaluate
from pipeline.paths import TEST_PACKS
from pipeline.training_job import TrainingJob

Draw = tuple[Entry, np.ndarray, np.ndarray]
MAX_SCENES = 32
"""Largest number of scenes for which the equivariance error is measured and comparison images are made."""

EQUIVARIANCE, OUTPUT_ERROR = "equivariance", "output_error"
"""Group and metric of the rows that hold the equivariance error of the output, one row for each scene."""


def measure_rows(job: TrainingJob, network: nn.Module) -> list[dict[str, Any]]:
    """One row for each test image, for each of its quarter turns, and for each out-of-distribution image.

    A row is ``{"group", "condition", "image", "scene"}`` as in ``components.evaluation.protocol``, with the task's
    metrics of the network's output by name. Rows of group "equivariance" follow, one for the first image of each
    scene: "output_error" is the relative error of the output under quarter turns.

    Args:
        job: its packs are measured, with its ``evaluate`` params.
        network: trained, on any device; its training or evaluation mode is restored.

    Raises:
        ValueError: the output of the network is not finite; a pack is damaged.
    """
    test, others = evaluation_packs(job.packed)
    was_training = network.training
    network.eval()
    try:
        methods: dict[str, Method] = {
            "": lambda inputs: _finite(restored_by(network, job.task, inputs, job.params.evaluate))
        }
        rows = [measure(case, methods, job.task.compute_metrics) for case in cases(test, others, job.task.pairs)]
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
    """Relative errors under quarter turns: the mean over the first validation image of each scene.

    0 means exactly equivariant, 1.41 unrelated. The group is always C4, also if the penalty uses another group, so that
    trials can be compared. The network can be on any device; its training or evaluation mode is restored.

    Returns:
        "equivariance_error" is the error of the output, which can be an objective of a sweep. "layer_error" is the mean
        over the layers; it is absent if no layer was measured.
    """
    draws = first_draws(Pack(job.packed / "val"), job.task)
    found = [_errors(network, inputs) for _, inputs, _ in draws]
    layers = [error for errors in found for name, error in errors.items() if name != "output"]
    output = float(np.mean([errors["output"] for errors in found]))
    return {"equivariance_error": output} | ({"layer_error": float(np.mean(layers))} if layers else {})


def layer_names(job: TrainingJob) -> list[str]:
    """The layers of ``equivariance.layers`` that the job's penalty can penalise, in order of registration.

    ``layers: each`` in a search space stands for these layers, in a sweep and in an ablation.

    Raises:
        ValueError: layers or layer weights match no layer, or none can be penalised.
    """
    network = job.network()
    try:
        requested = requested_fields(named_layers(network), job.layers_of(network))
        regularizer = job.regularizer(network)
    except ValueError as error:
        raise ValueError(f"equivariance.{error}") from error
    return [name for name in requested if regularizer is None or name not in regularizer.skipped]


def evaluation_packs(packed: Path) -> tuple[Pack, dict[str, Pack]]:
    """The test pack, and the out-of-distribution packs by name."""
    folders = sorted(file.parent for file in (packed / TEST_PACKS).glob("*/index.json"))
    return Pack(packed / "test"), {folder.name: Pack(folder) for folder in folders}


def first_draws(pack: Pack, task: Task) -> list[Draw]:
    """The first pair of every scene, for at most ``MAX_SCENES`` scenes."""
    first: dict[str, int] = {}
    for index, entry in enumerate(pack.entries):
        first.setdefault(entry.scene, index)
    return list(task.pairs(pack, list(first.values())[:MAX_SCENES]))


def restored_by(network: nn.Module, task: Task, inputs: np.ndarray, settings: Evaluate) -> np.ndarray:
    """The output of a network for one image.

    Args:
        network: in evaluation mode, on any device.
        task: decides whether the output is an image or the scores of classes.
        inputs: image ``(C, H, W)``.
        settings: tiles and self-ensemble.

    Returns:
        The restored image, or the class scores.
    """
    image = torch.from_numpy(np.array(inputs, order="C")).to(_device(network))
    if task.is_classification:
        with torch.inference_mode():
            scores: np.ndarray = network(image[None])[0].cpu().numpy()
        return scores
    restored = restore(
        network, image, tile=settings.tile, overlap=settings.overlap, self_ensemble=settings.self_ensemble
    )
    return restored.cpu().numpy()


def measured(
    test: Pack, others: Mapping[str, Pack], methods: Mapping[str, Method], task: Task, num_workers: int
) -> Iterator[Row]:
    """Measures all cases in parallel threads, and yields the rows in the order of the cases.

    Args:
        test: the test pack.
        others: the out-of-distribution packs by name.
        methods: name -> method that is measured on every case.
        task: computes the metrics.
        num_workers: number of threads.
    """
    conventions = quality_by_convention if task.has_conventions else None

    def row(case: Case) -> Row:
        return measure(case, methods, task.compute_metrics, conventions)

    with ThreadPoolExecutor(num_workers) as pool:
        yield from _side_by_side(pool, row, cases(test, others, task.pairs), 2 * num_workers)


def equivariance_by_layer(network: nn.Module, draws: Sequence[Draw]) -> dict[str, float]:
    """Relative residual of every layer and of the output: the root mean square over ``draws``, under quarter turns."""
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
    """``map`` in order, with at most ``ahead + 1`` items submitted and not yet yielded."""
    waiting: deque[Future[Row]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
