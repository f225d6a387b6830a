"""A stage's output appears whole or not at all."""

from __future__ import annotations

import resource
import signal
import socket
from pathlib import Path

import pytest

from pipeline.errors import UserError, described
from pipeline.paths import copied_from, existing, find_input, replaced_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """results/x with a file in it."""
    folder = tmp_path / "results" / "x"
    folder.mkdir(parents=True)
    (folder / "old").write_text("old")
    return folder


def _untouched(output: Path) -> bool:
    return (output / "old").read_text() == "old" and [file.name for file in output.parent.iterdir()] == ["x"]


def test_a_folder_takes_the_place_of_the_old_one_when_the_block_ends(output: Path) -> None:
    with replaced_folder(output) as new:
        assert list(new.iterdir()) == []
        (new / "a").write_text("a")
        assert (output / "old").exists()
    assert [file.name for file in output.iterdir()] == ["a"]
    assert [file.name for file in output.parent.iterdir()] == ["x"]
    assert output.stat().st_mode & 0o777 == 0o755


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "a" / "b") as new:
        (new / "c").write_text("c")
    assert (tmp_path / "a" / "b" / "c").read_text() == "c"


def _fail(output: Path, error: BaseException) -> None:
    with replaced_folder(output) as new:
        (new / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_in_the_block_comes_through_and_leaves_the_old_folder(output: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _fail(output, error)
    assert _untouched(output)


def test_a_full_disk_is_one_line_and_leaves_the_old_folder(output: Path) -> None:
    with pytest.raises(UserError, match=r"results/x: cannot be written \(No space left on device\)"):
        _fail(output, OSError(28, "No space left on device"))
    assert _untouched(output)


def test_what_is_about_no_file_of_the_folder_is_not_blamed_on_it(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="the line is dead"):
        _fail(output, ConnectionError("the line is dead"))
    with pytest.raises(FileNotFoundError) as caught, replaced_folder(output):
        (tmp_path / "elsewhere" / "file").write_text("")
    assert described(caught.value) == f"{tmp_path}/elsewhere/file: No such file or directory"
    with (
        pytest.raises(OSError, match="AF_UNIX path too long"),
        replaced_folder(output),
        socket.socket(socket.AF_UNIX) as it,
    ):
        it.bind(str(tmp_path / ("x" * 120)))
    assert _untouched(output)


def test_what_is_about_a_file_of_the_folder_is_said_of_the_folder(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output.parents[1])  # stages name it relative to the project
    refused = pytest.raises(UserError, match=r"^results/x: cannot be written \(Is a directory\)$")
    with refused, replaced_folder(Path("results/x")) as new:
        new.write_text("")
    assert _untouched(output)


def test_a_file_that_may_not_grow_is_a_full_disk_without_a_name(output: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(UserError) as caught, replaced_folder(output) as new:
            (new / "large").write_bytes(bytes(1 << 20))
    finally:
        signal.signal(signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == f"{output}: cannot be written (File too large); make room there, or in TMPDIR"
    assert _untouched(output)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device"), "No space left on device; make room here, and in TMPDIR"),
        (OSError(28, "No space left on device", b"/a/b"), "/a/b: No space left on device; make room there"),
        (
            PermissionError(13, "Permission denied", "/home/me/.cache/x"),
            "/home/me/.cache/x: Permission denied; set HOME to a folder that can be written",
        ),
        (PermissionError(13, "Permission denied", "/home/me/data/x"), "/home/me/data/x: Permission denied"),
        (PermissionError(13, "Permission denied", "/home/me"), "/home/me: Permission denied"),
        (
            OSError("AF_UNIX path too long"),
            "AF_UNIX path too long; set TMPDIR to another folder that can be written, with a short path as /tmp",
        ),
        (OSError(9, "Bad file descriptor", 3), "Bad file descriptor"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_of_the_system_is_told_with_its_path_first_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: OSError, told: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert described(error) == told


def test_a_swap_that_fails_puts_the_old_folder_back(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def fails_for_the_new(source: Path, target: Path) -> Path:
        if target == output and (source / "new").exists():
            raise OSError(5, "Input/output error")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", fails_for_the_new)
    with pytest.raises(UserError, match="Input/output error"), replaced_folder(output) as new:
        (new / "new").write_text("new")
    assert _untouched(output)


def test_a_file_where_the_folder_belongs_gives_way(output: Path) -> None:
    path = output.parent / "y"
    path.write_text("a file")
    with replaced_folder(path) as new:
        (new / "a").write_text("a")
    assert (path / "a").exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["x", "y"]


def test_a_place_below_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(UserError, match=r"file/x: cannot be written \((Not a directory|File exists)\)")
    with refused, replaced_folder(tmp_path / "file" / "x"):
        pass


def test_what_is_not_there_yet_says_which_stage_makes_it(tmp_path: Path) -> None:
    assert existing(tmp_path, "train") == tmp_path
    with pytest.raises(UserError, match=r"model: not there yet; run 'eqreg train' or 'dvc repro' first"):
        existing(tmp_path / "model", "train")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy that DVC made of ``tmp_path / "checkout"``, with tracked.png in both."""
    folder = tmp_path / "checkout/.dvc/tmp/exps/standalone/tmpx1y2"
    folder.mkdir(parents=True)
    for name in ("checkout/photos/a.png", "checkout/tracked.png", "beside/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (folder / "tracked.png").touch()
    monkeypatch.chdir(folder)
    return folder


def test_a_copy_that_dvc_makes_knows_its_checkout(copy: Path, tmp_path: Path) -> None:
    assert copied_from(copy) == copied_from(copy / "components") == tmp_path / "checkout"
    assert copied_from(tmp_path / "checkout") is None


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("photos", "{checkout}/photos"),
        ("../beside", "{checkout}/../beside"),
        ("tracked.png", "tracked.png"),
        ("{checkout}/photos", "{checkout}/photos"),
        ("nowhere", "nowhere"),
        ("https://host//a.zip", "https://host//a.zip"),
        ("builtin", "builtin"),
    ],
)
def test_a_relative_path_that_a_copy_lacks_is_that_of_its_checkout(
    copy: Path, tmp_path: Path, path: str, found: str
) -> None:
    checkout = tmp_path / "checkout"
    assert find_input(path.format(checkout=checkout)) == found.format(checkout=checkout)


def test_a_relative_path_in_a_checkout_is_as_it_is(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "checkout")
    assert (find_input("photos"), find_input("nowhere")) == ("photos", "nowhere")
