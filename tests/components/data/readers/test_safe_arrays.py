"""Arrays of strangers are read as they were written, or refused before they cost memory or run anything."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from components.data.readers import safe_arrays
from components.data.readers.safe_arrays import load_h5, load_npy, load_npz, naming_array, naming_file

pytestmark = pytest.mark.unit

VALUES = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def _npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    length = struct.pack("<H", len(text)) if version == b"\x01\x00" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.float64, bool, "<U7", "S3"])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_arrays_come_out_as_they_were_saved(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    np.savez(tmp_path / "a.npz", x=array, other=VALUES)
    np.savez_compressed(tmp_path / "b.npz", x=array.copy(order="F"))
    np.save(tmp_path / "a.npy", array)
    for found in (
        *(load_npz(tmp_path / name, ["x"])["x"] for name in ("a.npz", "b.npz")),
        load_npy(tmp_path / "a.npy"),
    ):
        assert np.array_equal(found, array)
        assert found.dtype == array.dtype


def test_only_what_is_asked_for_is_read_and_what_is_optional_may_be_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=VALUES, y=np.array([{}], dtype=object))
    assert list(load_npz(tmp_path / "a.npz", ["x"], optional=["spacing"])) == ["x"]
    with pytest.raises(ValueError, match=r"a\.npz: not a usable npz file \(no array z; it holds x, y\)"):
        load_npz(tmp_path / "a.npz", ["z"])


def test_a_mapped_array_cannot_be_written_through(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    array = load_npy(tmp_path / "a.npy")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_pickles_are_refused_and_do_not_run(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "a.npz", x=trap)
    np.save(tmp_path / "a.npy", trap)
    (tmp_path / "b.npy").write_bytes(trap.dumps())
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", trap.dumps())
    with pytest.raises(ValueError, match=r"a\.npz: .*x: pickled objects, which are never loaded"):
        load_npz(tmp_path / "a.npz", ["x"])
    with pytest.raises(ValueError, match=r"a\.npy: .*pickled objects"):
        load_npy(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"b\.npy: not a usable npy file"):
        load_npy(tmp_path / "b.npy")
    with pytest.raises(ValueError, match=r"b\.npz: not a usable npz file"):
        load_npz(tmp_path / "b.npz", ["x"])
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize(
    "content",
    [
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000, 10000000)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (101,)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99,)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-100,)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-10, -10)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", bytes(4)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': 100}", bytes(400)),
        _npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (100,)}", bytes(400)),
        _npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (50,)}", bytes(400)),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os').getcwd()}", bytes(400)),
        _npy("(" * 9000, bytes(400)),
        _npy("{'descr': '<f4'}" + " " * 10**6, version=b"\x02\x00"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4), version=b"\x03\x00"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4), version=b"\x09\x00"),
        b"",
        b"\x93NUMPY",
        b"these are my notes",
    ],
)
def test_a_header_that_its_file_does_not_bear_out_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ValueError, match=r"a\.npy: not a usable npy file \(.+\); replace it or take it away"):
        load_npy(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npz: not a usable npz file \(x: .+\); replace it or take it away"):
        load_npz(tmp_path / "a.npz", ["x"])


def test_the_limits_hold_for_the_sum_of_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 60_000, dtype=np.uint8)
    zeros = np.zeros(60_000, dtype=np.uint8)
    np.savez_compressed(tmp_path / "noise.npz", x=noise, y=noise)
    np.savez_compressed(tmp_path / "zeros.npz", x=zeros, y=zeros)
    with h5py.File(tmp_path / "zeros.h5", "w") as file:
        for name in "xy":
            file.create_dataset(name, data=zeros, compression="gzip")
    monkeypatch.setattr(safe_arrays, "FREE_BYTES", 100_000)
    monkeypatch.setattr(safe_arrays, "MAX_BYTES", 200_000)
    assert len(load_npz(tmp_path / "noise.npz", ["x", "y"])) == 2
    assert len(load_npz(tmp_path / "zeros.npz", ["x"])) == 1
    assert len(load_h5(tmp_path / "zeros.h5", ["x"])) == 1
    with pytest.raises(ValueError, match=r"zeros\.npz: .*over 100 to 1: a bomb"):
        load_npz(tmp_path / "zeros.npz", ["x", "y"])
    monkeypatch.setattr(safe_arrays, "MAX_RATIO", 10)
    with pytest.raises(ValueError, match=r"zeros\.h5: .*over 10 to 1: a bomb"):
        load_h5(tmp_path / "zeros.h5", ["x", "y"])
    monkeypatch.setattr(safe_arrays, "MAX_BYTES", 110_000)
    with pytest.raises(ValueError, match=r"noise\.npz: .*the limit is 110000: split the file"):
        load_npz(tmp_path / "noise.npz", ["x", "y"])


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"chunks": (1, 5, 4)}, {"shuffle": True}])
def test_h5_datasets_come_out_as_they_were_saved(tmp_path: Path, options: dict[str, object]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("group/x", data=VALUES, **options)
    assert np.array_equal(load_h5(tmp_path / "a.h5", ["group/x"])["group/x"], VALUES)


def test_an_h5_file_leads_to_no_other_file(tmp_path: Path) -> None:
    secret = VALUES.astype("<f4")
    (tmp_path / "raw").write_bytes(secret.tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = secret
        file["group/x"] = secret
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["own"] = VALUES
        file["external"] = h5py.ExternalLink("other.h5", "x")
        file["folder"] = h5py.ExternalLink("other.h5", "group")
        file["soft"] = h5py.SoftLink("/own")
        file["dangling"] = h5py.SoftLink("/nothing")
        file["loop"] = h5py.SoftLink("/loop")
        layout = h5py.VirtualLayout(shape=VALUES.shape, dtype="<f4")
        layout[...] = h5py.VirtualSource(tmp_path / "other.h5", "x", shape=VALUES.shape)
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset(
            "raw", shape=VALUES.shape, dtype="<f4", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        )
        file["text"] = ["a", "b"]
        file["references"] = np.array([file["own"].ref], dtype=h5py.ref_dtype)
        file.create_group("group")
    with h5py.File(tmp_path / "a.h5") as file:
        assert all(np.array_equal(file[name], secret) for name in ("external", "folder/x", "virtual", "raw"))
    for name, why in {
        "external": "a link to another place",
        "folder/x": "a link to another place",
        "soft": "a link to another place",
        "dangling": "a link to another place",
        "loop": "a link to another place",
        "virtual": "in another file",
        "raw": "in another file",
        "text": "dtype object",
        "references": "dtype object",
        "group": "a group, not a dataset",
        "missing": "not in it; it holds",
        "own/x": "",
    }.items():
        with pytest.raises(ValueError, match=rf"a\.h5: not a usable HDF5 file \({name}: .*{why}"):
            load_h5(tmp_path / "a.h5", ["own", name])


def test_h5_datasets_that_claim_more_than_there_is_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("huge", shape=(2**20, 2**20), dtype="<f8", chunks=(64, 64))
        file.create_dataset("large", shape=(2**15, 2**14), dtype="<u1", chunks=(64, 64))
        file.create_dataset("chunk", shape=(4, 4), dtype="<f8", chunks=(2**13, 2**13), maxshape=(None, None))
    for name, why in {"huge": "the limit is", "large": "a bomb", "chunk": "save it in smaller chunks"}.items():
        with pytest.raises(ValueError, match=rf"a\.h5: .*{why}"):
            load_h5(tmp_path / "a.h5", [name])


def test_damaged_and_missing_files_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=VALUES)
    damaged = bytearray(buffer.getvalue())
    damaged[len(damaged) // 3] ^= 0xFF
    (tmp_path / "damaged.npz").write_bytes(damaged)
    (tmp_path / "notes.npz").write_text("these are my notes")
    (tmp_path / "notes.h5").write_text("these are my notes")
    (tmp_path / "folder").mkdir()
    for load, name, why in (
        (lambda path: load_npz(path, ["x"]), "damaged.npz", "x: "),
        (lambda path: load_npz(path, ["x"]), "notes.npz", "not a zip file"),
        (lambda path: load_h5(path, ["x"]), "notes.h5", "signature not found"),
        (lambda path: load_h5(path, ["x"]), "folder", "not a file"),
        (lambda path: load_npz(path, ["x"]), "folder", "not a file"),
        (load_npy, "folder", "not a file"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: not a usable .*{why}"):
            load(tmp_path / name)
    for load in (load_npy, lambda path: load_npz(path, ["x"]), lambda path: load_h5(path, ["x"])):
        with pytest.raises(ValueError, match="missing: there is no such file"):
            load(tmp_path / "missing")


def test_an_error_without_a_message_is_told_by_its_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^x: EOFError$"), naming_array("x"):
        raise EOFError
    with (
        pytest.raises(ValueError, match=r"/a: not a usable npy file \(EOFError\); "),
        naming_file(tmp_path / "a", "npy file"),
    ):
        raise EOFError
