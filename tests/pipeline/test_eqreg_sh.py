"""The stages run with the Python that eqreg is installed in: activated or not, in a copy that DVC makes, in a worktree.

The path of the checkout has a space.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.pipeline.workspace import Workspace

pytestmark = pytest.mark.process
TOOLS = ("sh", "git", "cat", "sed", "uname", "basename")
MISSING = (
    "error: eqreg is installed neither in the PATH's Python nor in .venv: run 'make run', which makes .venv, or "
    "activate the environment that it is installed in\n"
)


def link_environment(folder: Path) -> None:
    """A virtual environment with the packages of this Python's."""
    folder.mkdir(parents=True)
    for name in ("bin", "lib", "pyvenv.cfg"):
        if (Path(sys.prefix) / name).exists():
            (folder / name).symlink_to(Path(sys.prefix) / name)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a ``.venv``, as ``make run`` leaves it."""
    made = Workspace(tmp_path_factory.mktemp("parent") / "check out")
    link_environment(made.folder / ".venv")
    return made


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the PATH, with what the script and DVC call, and without any Python."""
    folder = tmp_path_factory.mktemp("programs")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a Python without packages, called python and python3."""
    folder = tmp_path_factory.mktemp("other")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin"


def run(
    command: list[str | Path], folder: Path, *path: Path, expect: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in ``folder`` with this PATH, and insists on its exit code."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "PYTHON", "EQREG"))
    }
    for name in ("MLFLOW_TRACKING_URI", "VIRTUAL_ENV"):
        environment.pop(name, None)
    environment |= {"PATH": os.pathsep.join(map(str, path)), "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def python_of(folder: Path, *path: Path, **variables: str) -> Path:
    """The virtual environment in which a stage of the checkout runs."""
    said = run(["sh", "pipeline/eqreg.sh", "--version"], folder, *path, **variables).stdout.strip()
    assert said.endswith(f", code in {folder}"), said
    return Path(said.removesuffix(f", code in {folder}").partition(" in ")[2])


def test_without_any_python_on_the_path_the_checkouts_own_is_taken(workspace: Workspace, programs: Path) -> None:
    assert python_of(workspace.folder, programs) == workspace.folder / ".venv"


def test_a_python_on_the_path_without_eqreg_is_passed_over(
    workspace: Workspace, programs: Path, other_python: Path
) -> None:
    left_by_pip = workspace.folder / "eqreg.egg-info"  # which makes eqreg look installed to a Python started here
    left_by_pip.mkdir()
    (left_by_pip / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: eqreg\nVersion: 9\n")
    try:
        assert python_of(workspace.folder, other_python, programs) == workspace.folder / ".venv"
        assert python_of(workspace.folder, other_python, programs, PYTHONPATH=".") == workspace.folder / ".venv"
    finally:
        shutil.rmtree(left_by_pip)


def test_an_environment_that_is_activated_comes_before_the_checkouts_own(
    workspace: Workspace, programs: Path, tmp_path: Path
) -> None:
    link_environment(tmp_path / "of the user")
    assert python_of(workspace.folder, tmp_path / "of the user/bin", programs) == tmp_path / "of the user"


def test_a_python_that_is_named_comes_first(workspace: Workspace, programs: Path, tmp_path: Path) -> None:
    link_environment(tmp_path / "named")
    named = str(tmp_path / "named/bin/python")
    assert python_of(workspace.folder, Path(sys.prefix) / "bin", programs, EQREG_PYTHON=named) == tmp_path / "named"


def test_a_worktree_takes_the_environment_of_its_main_checkout(
    workspace: Workspace, programs: Path, tmp_path: Path
) -> None:
    run(["git", "worktree", "add", "-q", "--detach", tmp_path / "beside"], workspace.folder, programs)
    assert python_of(tmp_path / "beside", programs) == workspace.folder / ".venv"
    link_environment(tmp_path / "beside/.venv")
    assert python_of(tmp_path / "beside", programs) == tmp_path / "beside/.venv"


@pytest.mark.parametrize("has_git", [True, False])
def test_where_eqreg_is_installed_nowhere_it_is_said_what_to_do(
    programs: Path, other_python: Path, tmp_path: Path, has_git: bool
) -> None:
    bare = Workspace(tmp_path / "bare").folder
    (tmp_path / "sh").symlink_to(programs / "sh")
    said = run(["sh", "pipeline/eqreg.sh", "fetch"], bare, other_python, programs if has_git else tmp_path, expect=2)
    assert (said.stdout, said.stderr) == ("", MISSING)


def test_dvc_by_its_path_runs_stages_in_a_checkout_with_any_letters_in_its_path(programs: Path, tmp_path: Path) -> None:
    """And without a Python on the PATH."""
    folder = Workspace(tmp_path / "Größe, 形 & 'a#b'?c").folder
    link_environment(folder / ".venv")
    run([".venv/bin/dvc", "repro", "preprocess"], folder, programs)
    indexes = [folder / "data/packed" / part / "index.json" for part in ("train", "val", "test")]
    assert all(index.stat().st_size > 100 for index in indexes)
    command = ["-c", "from pipeline.tracking.store import Store; print(Store('denoise').begin('run', {}, {}))"]
    run([".venv/bin/python", *command], folder, programs)
    assert (folder / "mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_copy_that_dvc_makes_finds_the_environment_and_the_relative_folder_of_the_checkout(
    workspace: Workspace, programs: Path, other_python: Path
) -> None:
    photos = workspace.folder / "data/mine"  # git and DVC leave it alone: the copy has no such folder
    photos.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / f"{name}.png")
    variables = {name: value for name, value in workspace.environment().items() if name.startswith("GIT_")}
    command = [".venv/bin/dvc", "exp", "run", "--temp", "-S", "fetch.source=data/mine", "--single-item", "fetch"]
    said = run([*command], workspace.folder, other_python, programs, **variables)
    assert "3 files (0.0 MB) of 'data/mine' in data/raw/images" in said.stdout, said.stderr


def test_a_queued_experiment_finds_the_environment_and_the_relative_folder_of_the_checkout(
    workspace: Workspace, programs: Path, other_python: Path, tmp_path: Path
) -> None:
    """``dvc queue start`` calls ``dvc`` by its name, so the PATH has that, and nothing else of the environment."""
    photos = workspace.folder / "data/queued"
    photos.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "a.png")
    (tmp_path / "dvc").symlink_to(workspace.folder / ".venv/bin/dvc")
    variables = {name: value for name, value in workspace.environment().items() if name.startswith("GIT_")}

    def dvc(*arguments: str) -> str:
        return run(["dvc", *arguments], workspace.folder, tmp_path, other_python, programs, **variables).stdout

    dvc("exp", "run", "--queue", "--name", "queued", "-S", "fetch.source=data/queued", "--single-item", "fetch")
    dvc("queue", "start")
    end = time.monotonic() + 300
    while not (ended := re.search(r"queued .*(Success|Failed)", dvc("queue", "status"))):
        assert time.monotonic() < end, "the queue does not end"
    assert ended[1] == "Success", dvc("queue", "logs", "queued")
    assert "1 files (0.0 MB) of 'data/queued' in data/raw/images" in dvc("queue", "logs", "queued")


def test_a_job_on_a_cluster_runs_its_stages_with_its_own_python(
    workspace: Workspace, programs: Path, other_python: Path, tmp_path: Path
) -> None:
    upload = tmp_path / "upload"
    for name in ("components", "pipeline", "tune_spaces", ".dvc/config", ".dvcignore", "params.yaml", "dvc.yaml"):
        (upload / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (workspace.folder / name).is_dir() else shutil.copy
        copy(workspace.folder / name, upload / name)
    stages = yaml.safe_load((upload / "dvc.yaml").read_text())["stages"]
    (upload / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"fetch": stages["fetch"]}}))
    link_environment(tmp_path / "of the node")
    python = tmp_path / "of the node/bin/python"
    command = [python, "-m", "pipeline.cluster.jobs.entry_point", tmp_path / "folder", "repro"]
    run([*command], upload, other_python, programs)
    assert (tmp_path / "folder/data/raw/manifest.json").exists()
