"""What tests of training look at: the weights to the byte, MLflow's history, the checkpoints there are."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from pathlib import Path

import psutil
from safetensors import safe_open

from tests.pipeline.cluster.hosts import is_training
from tests.pipeline.workspace import Workspace, descendants


def weights(workspace: Workspace) -> str:
    """A hash of every tensor of the trained model, to the byte."""
    digest = hashlib.sha256()
    with safe_open(workspace.folder / "results/train/model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).numpy().tobytes())
    return digest.hexdigest()


def history(workspace: Workspace, metric: str = "train/task_loss") -> list[tuple[int, float]]:
    """(step, value) of every entry of a metric that MLflow has, trials aside."""
    try:
        with sqlite3.connect(f"file:{workspace.folder / 'mlflow.db'}?mode=ro", uri=True, timeout=30) as database:
            query = "select step, value from metrics where key = ? order by step, timestamp"
            return [(step, value) for step, value in database.execute(query, (metric,))]
    except sqlite3.OperationalError:  # no database or no tables yet
        return []


def reported(workspace: Workspace) -> int:
    """The last step that MLflow knows of."""
    return max((step for step, _ in history(workspace)), default=0)


def saved(workspace: Workspace) -> list[int]:
    """The steps of all checkpoints in the project's folder."""
    files = (workspace.folder / ".eqreg/train").glob("*/step-*.pt")
    return sorted(int(re.findall(r"step-(\d+)", file.name)[0]) for file in files)


def forget(workspace: Workspace) -> None:
    """As if nothing had been trained. The database stays: an MLflow of this process has it open."""
    path = workspace.folder / "mlflow.db"
    if path.exists():
        with sqlite3.connect(path, timeout=30) as database:
            tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
            for table in tables:
                if any(column[1] == "run_uuid" for column in database.execute(f'pragma table_info("{table}")')):
                    database.execute(f'delete from "{table}"')
    for folder in (".eqreg", "results/train"):
        shutil.rmtree(workspace.folder / folder, ignore_errors=True)


def workers_of(pid: int) -> list[psutil.Process]:
    """The training processes that a command has started on this machine."""
    return [process for process in descendants(pid) if is_training(process)]


def damage(file: Path) -> None:
    """Flips a bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
