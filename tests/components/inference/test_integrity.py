"""One altered byte of a version's files is noticed and named."""

from __future__ import annotations

import py_compile
from collections.abc import Callable
from pathlib import Path

import pytest

from components.inference.integrity import LIST, check_files, write_files

pytestmark = pytest.mark.unit

DESCRIPTION = "artifact_path: file:///a\nflavors:\n  pytorch:\n    model_data: data\nmodel_id: m-1\nprompts: null\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model.pt2").write_bytes(b"weights")
    (tmp_path / "MLmodel").write_text(DESCRIPTION)
    return tmp_path


def _compiled(folder: Path, mode: py_compile.PycInvalidationMode) -> None:
    source, cache = folder / "elsewhere.py", folder / "data/__pycache__/a.cpython-311.pyc"
    source.write_text("print('other code')")
    py_compile.compile(str(source), str(cache), invalidation_mode=mode)
    source.unlink()


def test_files_as_they_were_pass(folder: Path) -> None:
    digest = write_files(folder)
    check_files(folder, digest)
    check_files(folder)
    (folder / "registered_model_meta").write_text("MLflow writes this when the model is loaded")
    (folder / "MLmodel").write_text(DESCRIPTION.replace("file:///a", "s3://b").replace("m-1", "m-2"))
    (folder / "data/__pycache__").mkdir()
    _compiled(folder, py_compile.PycInvalidationMode.TIMESTAMP)  # as Python does when the code is imported
    check_files(folder, digest)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: _flip(folder / "data/model.pt2"), r"data/model\.pt2 was altered after registration"),
        (lambda folder: (folder / "data/model.pt2").unlink(), r"data/model\.pt2 is missing"),
        (lambda folder: (folder / "data/more.py").write_text(""), r"data/more\.py was added after registration"),
        (
            lambda folder: (folder / "MLmodel").write_text(DESCRIPTION.replace("data: data", "data: elsewhere")),
            "MLmodel was altered",
        ),
        (lambda folder: (folder / LIST).unlink(), f"{LIST} is missing"),
        (lambda folder: _flip(folder / LIST), f"{LIST} is not the one that was written at registration"),
        (
            lambda folder: _compiled(folder, py_compile.PycInvalidationMode.UNCHECKED_HASH),
            r"data/__pycache__/a\.cpython-311\.pyc was added after registration",
        ),
    ],
)
def test_what_is_not_as_it_was_is_named(folder: Path, change: Callable[[Path], object], message: str) -> None:
    digest = write_files(folder)
    change(folder)
    with pytest.raises(ValueError, match=message):
        check_files(folder, digest)


def test_a_list_that_was_replaced_with_the_files_is_noticed_by_its_sum_alone(folder: Path) -> None:
    digest = write_files(folder)
    _flip(folder / "data/model.pt2")
    write_files(folder)
    check_files(folder)
    with pytest.raises(ValueError, match="is not the one that was written at registration"):
        check_files(folder, digest)
