"""A copy of the repository with small params, in which real stages are run as a user runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline.config.schema import Params, load_params
from pipeline.config.values import set_value
from tests.messages import note

ROOT = Path(__file__).parents[2]

SMALL = {
    "preprocess.crop": 64,
    "preprocess.realizations": {"train": 1, "val": 1, "test": 2},
    "network.name": "dncnn",
    "network.width": 8,
    "network.depth": 4,
    "equivariance.warmup_steps": 5,
    "train.steps": 40,
    "train.batch_size": 8,
    "train.patch_size": 24,
    "train.warmup_steps": 5,
    "train.report_every": 5,
    "train.validate_every": 10,
    "train.checkpoint_every": 10,
    "train.num_workers": 2,
    "tune.trials": 2,
    "tune.steps": 8,
    "tune.grace_steps": 2,
    "evaluate.comparison_images": 1,
}


class Workspace:
    """A folder with the project's files, its own git repository, and the means to run commands in it."""

    def __init__(self, folder: Path, changes: dict[str, Any] | None = None, packed: Path | None = None) -> None:
        """``changes`` to the small params; ``packed``: a folder whose data and results are taken over."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in listed.stdout.decode().split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith("tests/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        (folder / "dvc.lock").unlink(missing_ok=True)
        for made in ("data", "results"):
            if packed is not None:
                # Links will do: stages replace files, they do not write into them.
                shutil.copytree(packed / made, folder / made, copy_function=os.link)
        self.set({**SMALL, **(changes or {})})
        for command in (
            "git init -q -b main",
            "git add -A",
            "git commit -qm test",
        ):
            subprocess.run(command.split(), cwd=folder, check=True, env=self.environment())

    def set(self, changes: dict[str, Any]) -> None:
        """Changes dotted keys of params.yaml."""
        path = self.folder / "params.yaml"
        values = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            set_value(values, key, value)
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def environment(self) -> dict[str, str]:
        """The caller's, with this Python's commands first, and no store but its own."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW_", "DVC_", "RAY_", "PYTHONPATH"))
            or name in ("RAY_TMPDIR", "RAY_worker_niceness")
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        return environment | {
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@localhost",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@localhost",
        }

    def here(self, monkeypatch: pytest.MonkeyPatch) -> Params:
        """Makes the folder the working directory of this process, for stages that run in it; gives its params."""
        monkeypatch.chdir(self.folder)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # MLflow leaves them behind
            monkeypatch.delenv(name, raising=False)
        return load_params()

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Starts a command in a session of its own, as a terminal does, with more variables in its environment."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, expect: int = 0, **variables: str) -> str:
        """Runs a command, gives what it printed, and insists on its exit code."""
        process = self.start(*command, **variables)
        output, _ = process.communicate(timeout=540)
        assert process.returncode == expect, f"{' '.join(command)}: exit code {process.returncode}\n{output}"
        if expect:
            note(f"exit code {expect}: {output}")
        return output


def descendants(pid: int) -> list[psutil.Process]:
    """All processes of a command's session: Ray's daemons may outlive their parent, not their session's mark."""
    return [process for process in psutil.process_iter() if _belongs(process, pid)]


def _belongs(process: psutil.Process, pid: int) -> bool:
    try:
        return process.pid == pid or any(parent.pid == pid for parent in process.parents())
    except psutil.Error:
        return False


def wait_for(condition: Callable[[], bool], seconds: float, process: subprocess.Popen[str] | None = None) -> None:
    """Until it is so; fails at once, with what it printed, if a process that is to bring it about has ended."""
    end = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            assert process.stdout
            raise AssertionError(f"it ended: {process.stdout.read()}")
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
