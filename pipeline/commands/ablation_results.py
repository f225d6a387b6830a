"""Writes the results of an ablation to results/ablate and prints them on the console."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from components.data.packs import Pack
from components.evaluation.ablation.arms import Arm, Column
from components.evaluation.ablation.tables import Conditions, introduction, records, text_tables, weight_records
from components.evaluation.protocol import OUT_OF_DISTRIBUTION, ROTATED, TEST
from components.tasks import Task
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.measurement import EQUIVARIANCE, OUTPUT_ERROR
from pipeline.paths import PACKED


def columns_of(rows: Sequence[Mapping[str, Any]], task: Task) -> list[Column]:
    """Returns the columns of the table.

    They are the score on the test images, on their quarter turns and under each out-of-distribution degradation, and
    the equivariance error of the output.
    """
    key, digits = task.score.key, (task.score.digits, task.score.digits + 1)
    others = dict.fromkeys(row["condition"] for row in rows if row["group"] == OUT_OF_DISTRIBUTION)
    return [
        Column("test", TEST, key, None, *digits),
        Column("test, turned", ROTATED, key, None, *digits),
        *(Column(name, OUT_OF_DISTRIBUTION, key, name, *digits) for name in others),
        Column("output error", EQUIVARIANCE, OUTPUT_ERROR, None, 4, 4),
    ]


def conditions_of(params: Params, images: int, seeds: Sequence[int]) -> Conditions:
    """Returns the conditions that all runs of an ablation share.

    Args:
        params: checked params.
        images: number of images in a training step.
        seeds: seeds of the runs.
    """
    task = params.build_task()
    return Conditions(
        task=params.task,
        steps=params.ablate.steps,
        images=images,
        patch_size=params.train.patch_size if task.trains_on_patches else 0,
        counts_transformed=params.train.task_loss_on_transformed,
        selection_seed=params.seed,
        seeds=seeds,
        num_scenes=len({entry.scene for entry in Pack(PACKED / "test").entries}),
        score=task.score.title,
    )


def write_ablation(folder: Path, arms: Sequence[Arm], columns: Sequence[Column], conditions: Conditions) -> None:
    """Writes table.txt, table.csv, weights.csv and figure.png.

    Args:
        folder: folder for the files.
        arms: arms with the measurements of their runs.
        columns: columns of the table.
        conditions: conditions that all runs share.
    """
    from components.evaluation.ablation.figure import save_arms

    parts = [introduction(arms, conditions), *map(str, text_tables(arms, columns))]
    (folder / "table.txt").write_text("\n\n".join(parts) + "\n")
    for name, found in (("table.csv", records(arms, columns)), ("weights.csv", weight_records(arms))):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]) if found else ["arm", "weight"])
            writer.writeheader()
            writer.writerows(found)
    save_arms(folder / "figure.png", arms, columns)


def print_ablation(arms: Sequence[Arm], columns: Sequence[Column], conditions: Conditions, folder: Path) -> None:
    """Prints the tables on the console.

    Args:
        arms: arms with the measurements of their runs.
        columns: columns of the table.
        conditions: conditions that all runs share.
        folder: folder of the written files, which the output names.
    """
    console.print(introduction(arms, conditions), markup=False, highlight=False)
    for text in text_tables(arms, columns):
        table = Table(title=text.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, cell in enumerate(text.head):
            table.add_column(cell, justify="left" if number == 0 else "right", overflow="fold")
        for row in text.rows:
            table.add_row(*row)
        console.print(table, markup=False)
    console.print(f"tables and a figure in {folder}")
