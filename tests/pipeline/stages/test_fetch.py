"""Images come from their source as they are, with their sums."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.open import open_source
from pipeline.stages.fetch import changes_at_source, fetch
from tests.pipeline.conftest import ROOT, Project

pytestmark = pytest.mark.process

RAW = Path("data/raw")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of five images, two of them hidden, and a text."""
    folder = tmp_path / "photographs"
    (folder / "holiday").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for number, name in enumerate(("b.png", "a.JPG", "holiday/c d.webp", ".thumbnails/e.png", ".f.png")):
        image = Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8))
        image.save(folder / name)
    (folder / "notes.md").write_text("notes")
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
        ("nowhere", r"fetch\.source: nowhere: there is no such folder; use 'builtin', a folder, an archive, s3://"),
        ("gs://bucket/x", r"fetch\.source: gs://bucket/x: 'gs' is not supported; use builtin, a path, s3://"),
        ("params.yaml", r"fetch\.source: params\.yaml: neither a folder nor an archive nor a file of a known kind"),
        ("notes", r"fetch\.source: notes: 3 files \(2 \.yaml, 1 \.toml\), none of a known kind: images, \.npy"),
    ],
)
def test_a_source_without_images_is_refused_and_leaves_what_was_there(
    project: Project, source: str, message: str
) -> None:
    RAW.mkdir(parents=True)
    (RAW / "old").write_text("old")
    Path("notes").mkdir()
    for name in ("a.yaml", "b.yaml", "c.toml"):
        (Path("notes") / name).write_text("words")
    with pytest.raises(UserError, match=message):
        fetch(project.params(fetch__source=source))
    assert [file.name for file in Path("data").iterdir()] == ["raw"]
    assert (RAW / "old").read_text() == "old"


def test_an_empty_folder_is_refused(project: Project) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"fetch\.source: empty: 0 files, none of a known kind"):
        fetch(project.params(fetch__source="empty"))


def test_every_kind_of_data_is_taken_and_the_rest_is_counted(
    project: Project, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = bytes(128) + b"DICM"
    kinds = {"a.npz": b"z", "b.MAT": b"m", "c.dcm": b"d", "d.h5": b"h", "list.csv": b"c", "scans/IM0001": scan}
    kinds |= {"scans/1.2.840.10008": scan, "cifar/data_batch_1": b"p", "cifar/batches.meta": b"p", "cifar/test": b"p"}
    others = {"a.py": b"p", "LICENSE": b"l", "scans/NOTES": b"n", "in.tar.gz": b"t", "b.py": b""}
    for name, data in (kinds | others).items():
        (photographs / name).parent.mkdir(exist_ok=True)
        (photographs / name).write_bytes(data)
    fetch(project.params(fetch__source=str(photographs)))
    names = {record["name"] for record in json.loads((RAW / "manifest.json").read_text())["images"]}
    assert names == {"a.JPG", "b.png", "holiday/c d.webp", *kinds}
    output = capsys.readouterr().out
    for count in ("2 .py", "2 no suffix", "1 .gz", "1 .md"):
        assert count in output


def test_links_are_followed_once_each_and_what_is_left_out_is_counted(
    project: Project, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photographs.parent / "linked"
    source.mkdir()
    (source / "target").symlink_to(photographs, target_is_directory=True)
    (source / "again").symlink_to(photographs / "holiday", target_is_directory=True)
    (photographs / "loop").symlink_to(source, target_is_directory=True)
    (source / "one.png").symlink_to(photographs / "b.png")
    (source / "lost.png").symlink_to(photographs / "gone.png")
    (source / "self.png").symlink_to("self.png")
    os.mkfifo(source / "pipe.png")
    fetch(project.params(fetch__source=str(source)))
    names = [record["name"] for record in json.loads((RAW / "manifest.json").read_text())["images"]]
    assert names == ["again/c d.webp", "one.png", "target/a.JPG", "target/b.png"]
    assert (RAW / "images/one.png").read_bytes() == (photographs / "b.png").read_bytes()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("not taken from"))
    for part in (
        "1 .md",
        "1 hidden",
        "2 broken links (lost.png, self.png)",
        "2 links to folders taken already (target/holiday, target/loop)",
        "1 hidden folders (target/.thumbnails)",
        "1 neither files nor folders (pipe.png)",
    ):
        assert part in line
    assert changes_at_source(project.params()) == []


def test_a_folder_of_broken_links_is_refused_with_their_names(project: Project) -> None:
    Path("source").mkdir()
    Path("source/a.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"source: 0 files \(1 broken links \(a\.png\)\), none of a known kind"):
        fetch(project.params(fetch__source="source"))


def test_a_folder_has_its_own_path_where_a_link_leads_to_it_too(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z/1.png").write_bytes(b"")
    (tmp_path / "a").symlink_to("z", target_is_directory=True)
    tree = read_tree(tmp_path)
    assert (tree.files, tree.repeated) == (["z/1.png"], ["a"])


def test_sums_that_lie_beside_the_files_are_checked(project: Project, photographs: Path) -> None:
    digest = hashlib.sha256((photographs / "a.JPG").read_bytes()).hexdigest()
    (photographs / "SHA256SUMS").write_text(f"# of today\n{digest}  a.JPG\n")
    params = project.params(fetch__source=str(photographs))
    fetch(params)
    (photographs / "a.JPG").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"a\.JPG: the bytes that arrived are not those recorded"):
        fetch(params)
    (photographs / "SHA256SUMS").write_text("what is this\n")
    with pytest.raises(UserError, match=r"SHA256SUMS, line 1: expected a SHA-256 and a name"):
        fetch(params)


def test_a_changed_folder_is_noticed(project: Project, photographs: Path) -> None:
    params = project.params(fetch__source=str(photographs))
    fetch(params)
    assert changes_at_source(params) == []
    (photographs / "a.JPG").touch()
    assert changes_at_source(params) == []
    data = bytearray((photographs / "b.png").read_bytes())
    data[-1] ^= 1
    (photographs / "b.png").write_bytes(data)
    (photographs / "a.JPG").rename(photographs / "z.JPG")
    assert changes_at_source(params) == ["changed: b.png", "new: z.JPG", "gone: a.JPG"]


def test_the_command_compares_without_fetching(project: Project, photographs: Path) -> None:
    project.set({"fetch.source": str(photographs)})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.cli", "fetch", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run()[0] == 0
    assert run("--check") == (0, "data/raw is what its sources hold\n")
    (photographs / "b.png").unlink()
    before = (RAW / "manifest.json").read_bytes()
    code, output = run("--check")
    assert code == 2
    assert output.startswith("error: data/raw is not what its sources hold now: gone: b.png\n")
    assert (RAW / "manifest.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_named(project: Project, photographs: Path) -> None:
    Path("data").write_text("a file where a folder belongs")
    with pytest.raises(UserError, match=r"data/raw: cannot be written"):
        fetch(project.params(fetch__source=str(photographs)))
    assert Path("data").read_text() == "a file where a folder belongs"


def test_a_home_folder_may_be_written_with_a_tilde(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photographs.parent))
    names = [item.name for item in open_source("~/photographs").listing().objects]
    assert names == ["a.JPG", "b.png", "holiday/c d.webp"]
