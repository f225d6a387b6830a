"""What DVC tracks is read from its remote: a folder, or the real S3 server, with DVC's own command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.stages.fetch import changes_at_source, fetch
from tests.pipeline.conftest import Project
from tests.pipeline.services import Bucket, check_raw, files_below, manifest, settings

pytestmark = pytest.mark.process

WHO = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
CONTENTS = {"a.png": b"a", "sub/b.npz": b"bb"}


def run(command: str, folder: Path, expect: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    environment |= {
        f"GIT_{who}_{what}": "test@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    environment |= {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two folders of `repository`, made once."""
    parent = tmp_path_factory.mktemp("pushed")
    folder = parent / "repository"
    write(folder / "photos", CONTENTS | {"README.md": b"r"})
    for command in (
        "git init -q -b main", "dvc init -q", "dvc remote add -q -d store ../store", "dvc add -q photos",
        "git add -A", "git commit -qm one", "git tag v1", "dvc push -q",
    ):  # fmt: skip
        run(command, folder)
    write(folder / "photos", {"a.png": b"A"})
    for command in ("dvc add -q photos", "git commit -qam two", "dvc push -q"):
        run(command, folder)
    shutil.rmtree(folder / "photos")
    shutil.rmtree(folder / ".dvc/cache")
    return parent


@pytest.fixture
def repository(pushed: Path, tmp_path: Path) -> Path:
    """A repository whose photos lie in a remote, in two versions: v1 has CONTENTS, in the newest a.png is another."""
    shutil.copytree(pushed / "store", tmp_path / "store")
    return Path(shutil.copytree(pushed / "repository", tmp_path / "repository"))


def test_a_tracked_folder_of_another_repository_comes_from_its_remote(project: Project, repository: Path) -> None:
    params = settings(f"dvc:{repository}#photos")
    fetch(params)
    check_raw(CONTENTS | {"a.png": b"A"})
    assert manifest()["images"][0]["etag"] == "7fc56270e7a70fa81a5935b72eacbe29"  # MD5 of "A"
    assert changes_at_source(params) == []
    assert not (repository / "photos").exists()


def test_a_relative_repository_is_the_checkouts_also_in_a_copy_that_dvc_makes(
    project: Project, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = project.folder / ".dvc/tmp/exps/standalone/tmpx1y2"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    fetch(settings(f"dvc:../{repository.name}#photos@v1"))
    check_raw(CONTENTS)


def test_a_revision_may_be_named(project: Project, repository: Path) -> None:
    fetch(settings(f"dvc:{repository}#photos@v1"))
    check_raw(CONTENTS)


def test_one_tracked_file_may_be_named(project: Project, repository: Path) -> None:
    fetch(settings(f"dvc:{repository}#photos/sub/b.npz@v1"))
    check_raw({"b.npz": b"bb"})


def test_what_the_project_itself_tracks_needs_no_repository(
    project: Project, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    fetch(settings("dvc:photos"))
    check_raw(CONTENTS | {"a.png": b"A"})


def test_a_change_in_the_repository_is_noticed(project: Project, repository: Path) -> None:
    params = settings(f"dvc:{repository}#photos")
    fetch(params)
    run("dvc pull -q", repository)
    write(repository / "photos", {"a.png": b"newer", "c.png": b"c"})
    run("dvc add -q photos", repository)
    assert changes_at_source(params) == ["changed: a.png", "new: c.png"]


def test_a_plain_path_that_is_not_checked_out_names_the_remedy(repository: Path, project: Project) -> None:
    for path in ("photos", "photos/sub"):
        with pytest.raises(UserError, match=rf"DVC tracks it: run 'dvc pull {repository}/photos' first"):
            fetch(settings(str(repository / path)))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("dvc:{repository}#nothing", r"neither DVC nor git tracks 'nothing' there"),
        ("dvc:{repository}#photos@v9", r"no such revision"),
        ("dvc:{missing}#photos", r"no repository of DVC"),
        ("dvc:photos", r"no repository of DVC"),
        ("dvc:", r"use dvc:PATH, dvc:REPOSITORY#PATH or dvc:REPOSITORY#PATH@REVISION"),
        ("dvc:#photos", r"use dvc:PATH, dvc:REPOSITORY#PATH"),
        ("dvc:{repository}#../photos", r"use dvc:PATH, dvc:REPOSITORY#PATH"),
    ],
)
def test_wrong_addresses_are_named(project: Project, repository: Path, address: str, message: str) -> None:
    address = address.format(repository=repository, missing=project.folder / "missing")
    with pytest.raises(UserError, match=message):
        fetch(settings(address))


def test_a_repository_that_does_not_answer_is_not_said_to_be_missing(project: Project, closed_port: int) -> None:
    with pytest.raises(UserError) as caught:
        fetch(settings(f"dvc:http://127.0.0.1:{closed_port}/x.git#photos"))
    assert str(caught.value).endswith(
        ": the repository cannot be cloned; look at REPOSITORY, your rights there and the network"
    )


@pytest.mark.usefixtures("quick")
def test_what_was_never_pushed_is_named(project: Project, repository: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(UserError, match=r"dvc push"):
        fetch(settings(f"dvc:{repository}#photos"))


def test_data_goes_to_an_s3_remote_and_comes_back(project: Project, bucket: Bucket) -> None:
    """push, clone, pull: as docs/how-to/s3.md says it; credentials come from the environment alone."""
    first, second = project.folder / "first", project.folder / "second"
    write(first / "data/raw", CONTENTS)
    for command in (
        "git init -q -b main", "dvc init -q", f"dvc remote add -q -d store s3://{bucket.name}/dvc",
        f"dvc remote modify -q store endpointurl {bucket.endpoint}", "dvc add -q data/raw", "git add -A",
        "git commit -qm data",
    ):  # fmt: skip
        run(command, first)
    assert "3 files pushed" in run("dvc push", first)
    run(f"git clone -q {first} {second}", project.folder)
    assert not (second / "data/raw").exists()
    run("dvc pull", second)
    assert files_below(second / "data/raw") == CONTENTS
    fetch(settings(f"dvc:{first}#data/raw"))
    check_raw(CONTENTS)
    texts = [data for folder in (first, second) for data in files_below(folder).values()]
    assert not any(bucket.secret.encode() in text or bucket.key.encode() in text for text in texts)


def test_dvc_refuses_a_wrong_secret(project: Project, bucket: Bucket, aws: pytest.MonkeyPatch) -> None:
    folder = project.folder / "first"
    write(folder / "data/raw", CONTENTS)
    for command in (
        "git init -q -b main", "dvc init -q", f"dvc remote add -q -d store s3://{bucket.name}/dvc",
        f"dvc remote modify -q store endpointurl {bucket.endpoint}", "dvc add -q data/raw",
    ):  # fmt: skip
        run(command, folder)
    aws.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    output = run("dvc push", folder, expect=255)
    assert "a-wrong-secret" not in output
