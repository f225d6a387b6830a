"""What made a result: commit, changes, data and params."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.schema import load_params
from pipeline.provenance.lineage import committed_text, data_hash, main_checkout, project_files, trace
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process


def _git(*arguments: str, folder: Path | None = None) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def committed(project: Project) -> Project:
    """A project in git with some code and a pack, nothing changed since the commit."""
    for name in ("components/part.py", "pipeline/stage.py", "README.md"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("1\n")
    Path(".gitignore").write_text("/data/\n__pycache__/\n")
    Path("data/packed/train").mkdir(parents=True)
    Path("data/packed/train/index.json").write_text("{}")
    _git("init", "-q", "-b", "main")
    _git("add", "-A")
    _git("commit", "-qm", "test")
    return project


def test_a_clean_checkout_has_the_commit_and_is_not_dirty(committed: Project) -> None:
    params = load_params()
    lineage = trace(params.hash)
    assert lineage.commit == _git("rev-parse", "HEAD")
    assert (lineage.dirty, lineage.difference) == (False, "")
    assert lineage.params == params.hash
    assert lineage.tags() == {
        "eqreg.lineage": lineage.id,
        "eqreg.git_commit": lineage.commit,
        "eqreg.git_dirty": "false",
        "eqreg.data_hash": lineage.data,
        "eqreg.params_hash": params.hash,
    }


def _write(name: str, text: str = "2\n") -> Callable[[], object]:
    def change() -> None:
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_text(text)

    return change


DIRTYING = {
    "modified": _write("components/part.py"),
    "deleted": lambda: Path("pipeline/stage.py").unlink(),
    "untracked": _write("pipeline/new.py"),
    "untracked with a name that git quotes": _write("components/grün ü.py"),
    "untracked space": _write("tune_spaces/mine.yaml"),
    "staged": lambda: (Path("pipeline/stage.py").write_text("3\n"), _git("add", "-A")),
    "params": lambda: Path("params.yaml").write_text(Path("params.yaml").read_text() + "# a note\n"),
    "dvc.yaml": _write("dvc.yaml"),
}


@pytest.mark.parametrize("change", DIRTYING)
def test_code_params_or_spaces_that_differ_from_the_commit_are_dirty(committed: Project, change: str) -> None:
    before = trace(load_params().hash)
    DIRTYING[change]()
    after = trace(load_params().hash)
    assert after.dirty
    assert after.tags()["eqreg.git_dirty"] == "true"
    assert after.commit == before.commit
    assert after.id != before.id


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "data/raw/x", "components/__pycache__/part.pyc"])
def test_files_that_make_no_result_are_not_dirty(committed: Project, name: str) -> None:
    before = trace(load_params().hash)
    _write(name)()
    assert trace(load_params().hash) == before


def test_two_different_changes_are_two_lineages_and_the_same_change_is_one(committed: Project) -> None:
    ids = []
    for text in ("2\n", "3\n", "2\n"):
        Path("components/part.py").write_text(text)
        ids.append(trace(load_params().hash).id)
    assert ids[0] == ids[2] != ids[1]
    untracked = []
    for text in ("2\n", "3\n"):
        Path("components/new.py").write_text(text)
        untracked.append(trace(load_params().hash).id)
    assert len({*ids, *untracked}) == 4


def test_data_and_params_are_part_of_the_lineage(committed: Project) -> None:
    before = trace(load_params().hash)
    Path("data/packed/train/index.json").write_text('{"sha256": "1"}')
    other_data = trace(load_params().hash)
    assert (other_data.params, other_data.difference) == (before.params, before.difference)
    assert other_data.data != before.data
    assert other_data.id != before.id
    other_params = trace(committed.params(seed=5).hash)
    assert other_params.params != before.params


def test_the_data_hash_is_over_names_and_indexes_in_order(tmp_path: Path) -> None:
    for name in ("val", "train", "out_of_distribution/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "index.json").write_text(name)
        (tmp_path / name / "images.safetensors").write_text("pixels, whose sum is in the index")
    text = "".join(f"{name}/index.json{name}" for name in ("out_of_distribution/x", "train", "val"))
    assert data_hash(tmp_path) == hashlib.sha256(text.encode()).hexdigest()[:12]
    (tmp_path / "val").rename(tmp_path / "test")
    assert data_hash(tmp_path) != hashlib.sha256(text.encode()).hexdigest()[:12]


def test_outside_git_there_is_no_commit_and_nothing_is_known_as_clean(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    lineage = trace(load_params().hash)
    assert (lineage.commit, lineage.dirty) == ("none", None)
    assert lineage.tags()["eqreg.git_dirty"] == "unknown"
    assert committed_text(Path("params.yaml")) is None
    assert project_files() == []
    assert capsys.readouterr() == ("", "")


def test_without_a_commit_the_lineage_follows_the_code_itself(project: Project) -> None:
    _write("components/part.py", "1\n")()
    before = trace(load_params().hash)
    _write("components/__pycache__/part.pyc")()
    _write("README.md")()
    assert trace(load_params().hash) == before
    _git("init", "-q")  # no commit yet, staged or not
    assert trace(load_params().hash) == before
    _git("add", "-A")
    assert trace(load_params().hash) == before
    _write("components/part.py", "2\n")()
    changed = trace(load_params().hash)
    assert (changed.commit, changed.dirty) == ("none", None)
    assert changed.id != before.id


def _owned_by_another() -> None:
    """Git's own switch of its tests; a container that mounts a user's folder has it so."""
    os.environ["GIT_TEST_ASSUME_DIFFERENT_OWNER"] = "1"


UNREADABLE: dict[str, tuple[Callable[[], object], str, str]] = {
    "another user's": (
        _owned_by_another,
        "detected dubious ownership in repository at '{folder}'",
        "git config --global --add safe.directory {folder}",
    ),
    "a broken index": (
        lambda: Path(".git/index").write_bytes(b"x"),
        ".git/index: index file smaller than expected",
        "mend what 'git status' says",
    ),
    "no objects": (
        lambda: [shutil.rmtree(folder) for folder in Path(".git/objects").iterdir()],
        "bad object HEAD",
        "mend what 'git status' says",
    ),
    "a worktree whose checkout is gone": (
        lambda: (shutil.rmtree(".git"), Path(".git").write_text("gitdir: /nowhere\n")),
        "not a git repository: /nowhere",
        "mend what 'git status' says",
    ),
    "no git": (lambda: os.environ.update(PATH=""), "git: No such file or directory", "install git"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_repository_that_git_does_not_read_is_never_called_clean_and_its_remedy_is_told_once(
    committed: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    break_it, reason, remedy = UNREADABLE[case]
    break_it()
    before = trace(load_params().hash)
    assert before.tags()["eqreg.git_commit"] == "unknown"
    assert before.tags()["eqreg.git_dirty"] == "unknown"
    _write("components/part.py", "changed\n")()
    assert trace(load_params().hash).id != before.id
    assert committed_text(Path("components/part.py")) in (None, "1\n")  # a broken index hides no commit
    assert main_checkout(Path()) == committed.folder
    lines = capsys.readouterr().err.splitlines()
    assert len(set(lines[::2])) == len(lines) / 2
    assert lines[:2] == [
        f"warning: git does not read this repository ({reason.format(folder=committed.folder)}): results are tagged "
        "with an unknown commit",
        f"to have them tagged with theirs: {remedy.format(folder=committed.folder)}",
    ]


def test_gits_own_remedy_brings_the_commit_back(committed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    known = trace(load_params().hash)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert trace(load_params().hash).commit == "unknown"
    monkeypatch.setenv("HOME", str(committed.folder.parent))
    subprocess.run(f"git config --global --add safe.directory {committed.folder}", shell=True, check=True)
    assert trace(load_params().hash) == known


def test_the_committed_text_is_that_of_the_commit(committed: Project) -> None:
    Path("components/part.py").write_text("changed\n")
    assert committed_text(Path("components/part.py")) == "1\n"
    assert committed_text(Path("components/new.py")) is None


def test_an_ordinary_checkout_is_its_own(committed: Project) -> None:
    assert main_checkout(committed.folder) == committed.folder
    (committed.folder / "sub").mkdir()
    assert main_checkout(committed.folder / "sub") == committed.folder / "sub"


def test_a_folder_outside_git_is_its_own(project: Project) -> None:
    assert main_checkout(project.folder) == project.folder


def test_a_worktree_belongs_to_its_main_checkout(committed: Project, tmp_path: Path) -> None:
    _git("worktree", "add", "-q", str(tmp_path / "beside"))
    assert main_checkout(tmp_path / "beside") == committed.folder
    assert main_checkout(tmp_path / "beside" / "components") == committed.folder / "components"


def test_dvcs_copy_for_an_experiment_belongs_to_its_main_checkout(committed: Project, tmp_path: Path) -> None:
    copy = committed.folder / ".dvc/tmp/exps/standalone/tmpx1y2"
    copy.parent.mkdir(parents=True)
    _git("clone", "-q", str(committed.folder), str(copy))
    assert main_checkout(copy) == committed.folder
    _git("worktree", "add", "-q", str(tmp_path / "beside"))
    in_worktree = tmp_path / "beside/.dvc/tmp/exps/tmpz"
    in_worktree.mkdir(parents=True)
    assert main_checkout(in_worktree) == committed.folder


def test_a_relative_folder_is_resolved(committed: Project) -> None:
    assert main_checkout(Path()) == committed.folder
