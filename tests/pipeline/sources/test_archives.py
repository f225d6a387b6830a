"""zip and tar files give their files, or are refused by name; nothing is ever written outside the folder."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.sources.archives import Limits, Member, archive_kind, unpack
from pipeline.stages.fetch import changes_at_source, fetch
from tests.pipeline.conftest import Project
from tests.pipeline.services import RAW, check_raw, files_below, manifest, settings

pytestmark = pytest.mark.unit

LIMITS = Limits(num_bytes=1 << 30)
CONTENTS = {
    "a.png": random.Random(0).randbytes(3000),
    "sub/b.npz": random.Random(1).randbytes(20_000),
    "sub/c d/e.csv": b"x,y\n" * 50,
    "sub/empty.txt": b"",
}
TAR_MODES = {"tar": "w:", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
ALL = ["zip", *TAR_MODES]


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, contents: dict[str, bytes], mode: str = "w:") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write(folder: Path, suffix: str, contents: dict[str, bytes] = CONTENTS) -> Path:
    path = folder / f"set.{suffix}"
    return write_zip(path, contents) if suffix == "zip" else write_tar(path, contents, TAR_MODES[suffix])


def unpacked(path: Path, folder: Path, limits: Limits = LIMITS) -> list[Member]:
    kind = archive_kind(path, path.name)
    assert kind is not None
    folder.mkdir()
    return unpack(path, kind, folder, limits, path.name)[0]


def refusal(path: Path, folder: Path, limits: Limits = LIMITS) -> str:
    """The message with which an archive is refused; nothing lies anywhere but in the folder for its files."""
    outside = set(files_below(folder.parent))
    kind = archive_kind(path, path.name) or ("zip" if path.suffix == ".zip" else "tar")
    folder.mkdir()
    with pytest.raises(UserError) as caught:
        unpack(path, kind, folder, limits, path.name)
    assert not [entry for entry in folder.rglob("*") if entry.is_symlink()]
    now = {name for name in files_below(folder.parent) if not name.startswith(f"{folder.name}/")}
    assert now == outside
    message = str(caught.value)
    assert message.startswith(path.name)
    assert message.count("\n") < 2
    return message


@pytest.mark.parametrize("suffix", ALL)
def test_every_file_comes_out_as_it_went_in(tmp_path: Path, suffix: str) -> None:
    members = unpacked(write(tmp_path, suffix), tmp_path / "out")
    assert files_below(tmp_path / "out") == CONTENTS
    assert members == [Member(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in sorted(CONTENTS.items())]


@pytest.mark.parametrize("suffix", ALL)
def test_an_archive_is_a_source(project: Project, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"./f.png": b"f", ".hidden/g.png": b"g", "__MACOSX/._a.png": b"m", "README.md": b"r", "in.zip": b"PK\3\4"}
    path = write(project.folder, suffix, CONTENTS | extra)
    fetch(settings(path.name))
    check_raw(CONTENTS | {"f.png": b"f"})
    assert manifest()["images_archive"] == {
        "name": path.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert "not taken" in (output := capsys.readouterr().out)
    assert "1 .md" in output
    assert "1 .zip" in output
    assert changes_at_source(settings(path.name)) == []
    write(project.folder, suffix, {"a.png": b"other"})
    assert changes_at_source(settings(path.name)) == [f"changed: {path.name}"]


def test_files_by_other_programs_are_read(tmp_path: Path) -> None:
    """With folder entries, modes and a leading ./ as tar and zip of a shell write them."""
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in (".", "./sub", "./sub/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        info = tarfile.TarInfo("./sub/" + "ü" * 60 + ".png")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"a"))
    unpacked(path, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"sub/" + "ü" * 60 + ".png": b"a"}
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.mkdir("sub")
        zipped.writestr("sub/a.png", b"a")
    unpacked(path, tmp_path / "zip-out")
    assert files_below(tmp_path / "zip-out") == {"sub/a.png": b"a"}


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("share", [number / 20 for number in range(20)])
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path, suffix)
    data = path.read_bytes()
    end = len(data)
    if suffix == "tar":  # what follows the end mark is padding that nothing needs
        end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    path.write_bytes(data[: int(share * end)])
    assert "damaged or cut off" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("blocks", range(0, 12))
def test_a_tar_that_ends_between_two_members_is_refused(tmp_path: Path, blocks: int) -> None:
    path = write_tar(tmp_path / "set.tar", {f"{number}.png": b"x" for number in range(6)})
    path.write_bytes(path.read_bytes()[: 512 * blocks])
    assert "damaged or cut off" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("seed", range(8))
def test_altered_bytes_are_refused_or_change_nothing(tmp_path: Path, suffix: str, seed: int) -> None:
    path = write(tmp_path, suffix)
    data = bytearray(path.read_bytes())
    draw = random.Random(seed)
    for _ in range(3):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    folder = tmp_path / "out"
    folder.mkdir()
    kind = "zip" if suffix == "zip" else archive_kind(path, path.name)
    if kind is None:
        return  # the first bytes were hit: no archive any more
    with contextlib.suppress(UserError):
        unpack(path, kind, folder, LIMITS, "set")
        assert set(files_below(folder).values()) <= set(CONTENTS.values())
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", path.name}


ESCAPES = {
    "../out.png": "leads out of its folder",
    "../../../../../../tmp/out.png": "leads out of its folder",
    "sub/../../out.png": "leads out of its folder",
    "./../out.png": "leads out of its folder",
    "/out.png": "absolute path",
    "//out.png": "absolute path",
    "C:/out.png": "path of Windows",
    "C:out.png": "path of Windows",
    "..\\out.png": "path of Windows",
    "\\\\server\\out.png": "path of Windows",
    "sub//out.png": "empty parts",
    "sub/./out.png": "empty parts",
    "a\nb.png": "control characters",
    f"{'x' * 300}.png": "too long",
}


@pytest.mark.parametrize(("name", "reason"), ESCAPES.items())
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, suffix: str, name: str, reason: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = write(place, suffix, {"good.png": b"g", name: b"bad"})
    assert reason in refusal(path, place / "out")
    assert not (tmp_path / "out.png").exists()


def test_a_zip_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"aaaa.png#.txt": b"x"})
    path.write_bytes(path.read_bytes().replace(b"aaaa.png#", b"aaaa.png\0"))
    assert "control characters" in refusal(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "neither a plain file nor a folder"),
        (tarfile.BLKTYPE, "neither a plain file nor a folder"),
        (tarfile.FIFOTYPE, "neither a plain file nor a folder"),
        (tarfile.CONTTYPE, ""),
        (tarfile.GNUTYPE_SPARSE, "neither a plain file nor a folder"),
    ],
)
@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", "good.png"])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, type_: bytes, reason: str, target: str) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w:") as archive:
        info = tarfile.TarInfo("good.png")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"g"))
        info = tarfile.TarInfo("special.png")
        info.type, info.linkname = type_, target
        archive.addfile(info)
    if not reason:  # an old word for a plain file
        unpacked(path, tmp_path / "out")
        assert files_below(tmp_path / "out") == {"good.png": b"g", "special.png": b""}
        return
    message = refusal(path, tmp_path / "out")
    assert "special.png" in message
    assert reason in message


@pytest.mark.parametrize(
    ("mode", "reason"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device"), (stat.S_IFIFO, "a device or pipe")]
)
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int, reason: str) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", b"g")
        info = zipfile.ZipInfo("special.png")
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    message = refusal(path, tmp_path / "out")
    assert "special.png" in message
    assert reason in message
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png", "a.png"], "a.png: comes twice"),
        (["a.png", "./a.png"], "a.png: comes twice"),
        (["a.png", "a.png/b.png"], "a.png: is both a file and a folder"),
        (["a.png/b.png", "a.png"], "a.png: is both a file and a folder"),
    ],
)
def test_names_that_collide_are_refused(tmp_path: Path, suffix: str, names: list[str], reason: str) -> None:
    path = tmp_path / f"set.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
    else:
        with tarfile.open(path, "w:") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name))
    assert reason in refusal(path, tmp_path / "out")


@pytest.mark.parametrize("suffix", ALL)
def test_more_than_the_limit_is_refused_before_the_disk_is_full(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, {f"{number}.png": random.Random(number).randbytes(100_000) for number in range(10)})
    message = refusal(path, tmp_path / "out", Limits(num_bytes=500_000))
    assert "GiB; raise fetch.max_gib" in message
    assert sum(map(len, files_below(tmp_path / "out").values())) <= 500_000


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_bomb_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, {"bomb.npy": bytes(30_000_000)})
    assert path.stat().st_size < 60_000
    limits = Limits(num_bytes=1 << 40, free_bytes=1 << 20)
    assert "bomb.npy: unpacks to more than 250 times its size" in refusal(path, tmp_path / "out", limits).replace(
        "set." + suffix + ": unpacks", "bomb.npy: unpacks"
    )


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"bomb.npy": bytes(3_000_000)})
    true, said = (3_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(true, said))
    assert "damaged or cut off at bomb.npy" in refusal(path, tmp_path / "out")
    assert sum(map(len, files_below(tmp_path / "out").values())) <= 1000


def test_a_tar_with_an_endless_header_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "set.tar.gz"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20))
    assert "a header of 8589934592 bytes" in refusal(path, tmp_path / "out")


def test_more_members_than_the_limit_are_refused(tmp_path: Path) -> None:
    limits = Limits(num_bytes=1 << 30, num_members=5)
    for suffix in ("zip", "tar"):
        path = write(tmp_path, suffix, {f"{number}.png": b"" for number in range(6)})
        assert "more than 5 members" in refusal(path, tmp_path / f"out-{suffix}", limits)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {"a.png": b"a"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's own header
    data[data.index(b"PK\1\2") + 8] |= 1  # and in the directory
    path.write_bytes(data)
    assert "a.png: needs a password" in refusal(path, tmp_path / "out")


def test_an_archive_without_data_is_refused(tmp_path: Path) -> None:
    for suffix in ("zip", "tar"):
        path = write(tmp_path, suffix, {"README.md": b"r", "x.py": b"p"})
        assert "no file of a known kind in it (1 .md, 1 .py)" in refusal(path, tmp_path / f"out-{suffix}")


@pytest.mark.parametrize("make", [write_zip, write_tar])
def test_a_refused_archive_leaves_data_raw_as_it_was(
    project: Project, make: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    good = make(project.folder / "good", {"a.png": b"a"})
    bad = make(project.folder / "bad", {"a.png": b"b", "../c.png": b"c"})
    fetch(settings(str(good)))
    before = files_below(RAW)
    with pytest.raises(UserError, match="leads out of its folder"):
        fetch(settings(str(bad)))
    assert files_below(RAW) == before
    assert sorted(entry.name for entry in RAW.parent.iterdir()) == ["raw"]


def test_an_npz_is_a_file_and_no_archive(project: Project) -> None:
    write_zip(project.folder / "a.npz", {"x.npy": b"x"})
    fetch(settings("a.npz"))
    check_raw({"a.npz": (project.folder / "a.npz").read_bytes()})
