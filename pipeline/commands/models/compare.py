"""``eqreg models compare``: two registered versions on the present validation images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.table import Table

from components.brief import first_line
from components.evaluation.model_cost import count_multiply_adds, count_parameters
from components.members import TASKS
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError, fault_of_machine
from pipeline.stages.comparison import Validation
from pipeline.tracking.models.loading import load_registered
from pipeline.tracking.models.versions import PREFIX, Record
from pipeline.tracking.store import tracking_uri

if TYPE_CHECKING:
    from torch import nn


def compare(params: Params, first: Record, second: Record) -> None:
    """Prints the mean scores of two versions, and their paired difference with its interval over scenes.

    Args:
        params: their task is that of the versions.
        first: one version.
        second: the other version.

    Raises:
        UserError: a version is of another task, does not load, or does not run on the validation images.
        ValueError: there are no validation images.
    """
    for record in (first, second):
        task = record.name.removeprefix(PREFIX)
        if task in TASKS and task != params.task:
            raise UserError(f"{record.address}: params.yaml has task {params.task}; set task: {task}, and preprocess")
    validation = Validation(params)
    count = len(validation.pack)  # refused here, as no fault of a version
    score = validation.task.score
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", score.title, "equivariance error", "parameters", "multiply-adds a pixel"):
        # titles break between words: on a console of 80 columns nothing is cut off
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    scores = []
    for record in (first, second):
        network = _load(record)
        try:
            scores.append(validation.scores(network))
            error = validation.equivariance_error(network)
        except Exception as fault:  # a network of other channels may raise any exception
            if isinstance(fault, OSError) or fault_of_machine(fault):
                raise
            raise UserError(f"{record.address}: does not run on the validation images ({first_line(fault)})") from fault
        mean = f"{np.mean(scores[-1]):.{score.digits + 1}f}"
        table.add_row(record.address.removeprefix("models:/"), mean, f"{error:.4f}", *_cost(network))
    console.print(table)
    difference = validation.difference(*scores)
    console.print(f"{first.address} minus {second.address}: {validation.shown(difference)}", markup=False)
    scenes = len(set(validation.scenes))
    console.print(
        f"{count} images of {scenes} {'scene: no interval' if scenes == 1 else 'scenes'}; "
        "interval: 95 % of bootstraps over scenes, too narrow with few scenes"
    )


def _load(record: Record) -> nn.Module:
    try:
        return load_registered(record.address, tracking_uri(), "cpu")
    except UserError as error:
        raise UserError(str(error).removeprefix("--model ")) from error


def _cost(network: nn.Module) -> tuple[str, str]:
    """The cost of a network; the program of a version of other code does not say its channels, and is not counted."""
    parameters = f"{count_parameters(network):,}"
    if not hasattr(network, "in_channels"):
        return parameters, "-"
    return parameters, f"{count_multiply_adds(network):,.0f}"


__all__ = ["compare"]
