"""The history of a running training, which editors and ``dvc plots`` draw while it grows.

``results/train`` is replaced when a training has ended, and holds the previous result until then. The reports of the
running training are therefore in a folder of its own, ``results/live``, with a dvc.yaml that defines their plots. The
folder is removed when the training has ended; ``results/train/history.csv`` then holds everything. After a failure it
stays until the next training.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import yaml

from pipeline.paths import LIVE

_COLUMNS = ("task_loss", "val_score", "learning_rate", "gradient_norm", "penalty", "lambda", "weight", "gradient_ratio")
_REASON = """\
# eqreg train writes this file, and removes it when the training has ended. It shows as untracked in git meanwhile: DVC
# passes over a dvc.yaml that git ignores. In the dvc.yaml of the project, plots of a history that is not there would
# make each `dvc plots show` say "DVC failed to load some plots", whenever no training runs.
"""
_PLOTS = {"training now": "task_loss", "validation score now": "val_score"}


class LiveHistory:
    """Appends a row for each report. A file that cannot be written ends the writing, and not the training.

    Args:
        file: the file; None to write nothing.
    """

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._write(["step", *_COLUMNS])

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a report."""
        self._write([step, *(metrics.get(column, "") for column in _COLUMNS)])

    def _write(self, row: list[Any]) -> None:
        if self._file is None:
            return
        try:
            csv.writer(self._file).writerow(row)
            self._file.flush()
        except OSError:
            self._file = None


@contextmanager
def live_history() -> Iterator[LiveHistory]:
    """Gives a history in a new folder ``results/live`` to the block, and removes the folder if the block succeeds."""
    file = _new_file()
    try:
        yield LiveHistory(file)
    finally:
        if file:
            with suppress(OSError):
                file.close()
    shutil.rmtree(LIVE, ignore_errors=True)


def _new_file() -> TextIO | None:
    """Makes the folder with its dvc.yaml, and opens the file; None if they cannot be written."""
    plots = [{name: {"x": "step", "y": {"history.csv": [column]}}} for name, column in _PLOTS.items()]
    try:
        shutil.rmtree(LIVE, ignore_errors=True)
        LIVE.mkdir(parents=True)
        (LIVE / "dvc.yaml").write_text(_REASON + yaml.safe_dump({"plots": plots}, sort_keys=False))
        return (LIVE / "history.csv").open("w", newline="")
    except OSError:
        return None
