"""Images come from their source as they are, with their sums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.fetch import fetch
from pipeline.storage import open_source
from tests.pipeline.conftest import Project

RAW = Path("data/raw")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of four images, one hidden, and a text."""
    folder = tmp_path / "photographs"
    (folder / "holiday").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for number, name in enumerate(("b.png", "a.JPG", "holiday/c d.webp", ".thumbnails/e.png", ".f.png")):
        image = Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8))
        image.save(folder / name)
    (folder / "notes.txt").write_text("notes")
    return folder


def test_a_folder_is_copied_byte_by_byte_with_a_manifest_of_sums(project: Project, photographs: Path) -> None:
    fetch(project.params(fetch__source=str(photographs)))
    manifest = json.loads((RAW / "manifest.json").read_text())
    assert manifest["source"] == str(photographs)
    assert [record["name"] for record in manifest["images"]] == ["a.JPG", "b.png", "holiday/c d.webp"]
    for record in manifest["images"]:
        data = (photographs / record["name"]).read_bytes()
        assert (RAW / "images" / record["name"]).read_bytes() == data
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
        assert record["bytes"] == len(data)
    files = {file.relative_to(RAW).as_posix() for file in RAW.rglob("*") if file.is_file()}
    assert files == {"manifest.json", *(f"images/{record['name']}" for record in manifest["images"])}


def test_fetching_again_gives_the_same_bytes_and_forgets_what_is_gone(project: Project, photographs: Path) -> None:
    params = project.params(fetch__source=str(photographs))
    fetch(params)
    first = (RAW / "manifest.json").read_bytes()
    fetch(params)
    assert (RAW / "manifest.json").read_bytes() == first
    (photographs / "b.png").unlink()
    fetch(params)
    assert not (RAW / "images/b.png").exists()
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


def test_the_built_in_photographs_are_those_of_the_packages_and_of_the_shipped_split(project: Project) -> None:
    params = project.params()
    fetch(params)
    names = {Path(record["name"]).stem for record in json.loads((RAW / "manifest.json").read_text())["images"]}
    listed = {name for part in (params.preprocess.splits.train, params.preprocess.splits.val) for name in part}
    listed |= set(params.preprocess.splits.test) - {"motorcycle"}
    assert names == (listed - {"motorcycle"}) | {"motorcycle_left", "motorcycle_right"}
    import skimage.data

    with Image.open(RAW / "images/astronaut.png") as image:
        assert np.array_equal(np.asarray(image), skimage.data.astronaut())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", r"fetch\.source: nowhere: there is no such folder; use 'builtin' or a folder of images"),
        ("s3://bucket/x", r"fetch\.source: s3://bucket/x: 's3' is not supported yet"),
        ("params.yaml", r"fetch\.source: params\.yaml: there is no such folder"),
        ("tune_spaces", r"fetch\.source: tune_spaces: 1 files, none of them an image"),
    ],
)
def test_a_source_without_images_is_refused_and_leaves_what_was_there(
    project: Project, source: str, message: str
) -> None:
    RAW.mkdir(parents=True)
    (RAW / "old").write_text("old")
    with pytest.raises(UserError, match=message):
        fetch(project.params(fetch__source=source))
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert (RAW / "old").read_text() == "old"


def test_an_empty_folder_is_refused(project: Project) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"fetch\.source: empty: 0 files, none of them an image"):
        fetch(project.params(fetch__source="empty"))


def test_a_copy_that_fails_half_way_names_the_file_and_leaves_what_was_there(
    project: Project, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project.params(fetch__source=str(photographs))
    fetch(params)
    before = (RAW / "manifest.json").read_bytes()
    (photographs / "z.png").write_bytes(b"new")
    import shutil

    copy = shutil.copyfile

    def fails_at_the_last(source: Path, target: Path) -> None:
        if source.name == "z.png":
            target.write_bytes(b"ne")
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", fails_at_the_last)
    with pytest.raises(UserError, match=r"z\.png: cannot be copied \(No space left on device\)"):
        fetch(params)
    assert (RAW / "manifest.json").read_bytes() == before
    assert [file.name for file in Path("data").iterdir()] == ["raw"]


def test_an_output_that_cannot_be_written_is_named(project: Project, photographs: Path) -> None:
    Path("data").write_text("a file where a folder belongs")
    with pytest.raises(UserError, match=r"data/raw: cannot be written"):
        fetch(project.params(fetch__source=str(photographs)))
    assert Path("data").read_text() == "a file where a folder belongs"


def test_a_home_folder_may_be_written_with_a_tilde(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photographs.parent))
    assert open_source("~/photographs").names() == ["a.JPG", "b.png", "holiday/c d.webp"]
