"""A folder with the shipped params.yaml in it, in which a test runs stages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster.session import ray_session
from pipeline.config.schema import Params, load_params
from pipeline.config.values import read_values, set_value
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from pipeline.stages.tune import tune
from pipeline.tracking.store import Store
from tests.pipeline.workspace import SMALL

ROOT = Path(__file__).parents[2]


class Project:
    """The working directory of a test: params.yaml and tune_spaces as they are shipped, nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
        shutil.copytree(ROOT / "tune_spaces", folder / "tune_spaces")

    def set(self, changes: Mapping[str, Any]) -> None:
        """Changes dotted keys of params.yaml."""
        values = read_values(self.folder / "params.yaml")
        for key, value in changes.items():
            set_value(values, key, value)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def params(self, **changes: Any) -> Params:
        """The checked params after changes, whose keys have __ for a dot."""
        self.set({key.replace("__", "."): value for key, value in changes.items()})
        return load_params()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in a folder of its own, outside git, which is the working directory; MLflow's is beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    _forget_addresses(monkeypatch)
    return Project(folder)


def _forget_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's, and those that MLflow leaves in the environment for its own subprocesses."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/raw and data/packed of the built-in photographs under the small params, and an empty sweep.

    To be copied, as ``Workspace`` does; nothing writes here.
    """
    folder = tmp_path_factory.mktemp("packed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Project(folder).set({**SMALL, "tune.trials": 0})
        params = load_params()
        for stage in (fetch, preprocess, tune):
            stage(params)
    return folder


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """A Ray in this process, which stages that run here use as theirs: ``ray_session`` finds it.

    For whatever does not test how Ray is started, killed or stopped, nor who can reach it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_TMPDIR", raising=False)
        with ray_session(load_params(ROOT / "params.yaml").cluster, dashboard=True):
            yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables in SQLite without a run; making them takes seconds, copying them does not."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Store("none", f"sqlite:///{path}").client.search_experiments()
    return path


@pytest.fixture
def store(project: Project, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The default store of the project: real, and empty."""
    shutil.copyfile(empty_database, project.folder / "mlflow.db")
    _forget_addresses(monkeypatch)
    return Store("denoise")
