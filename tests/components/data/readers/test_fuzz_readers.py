"""No file of a stranger makes a reader hang, run something, fill the memory or fail without naming the file.

Each reader gets, in a process of its own, a good file cut short, with damaged bytes, in another format's clothes, and
files made to hurt. Every one must be read or refused with a ValueError that names it, quickly and in little memory.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from components.data.readers.ct_slices import read_ct, read_metal_pairs
from components.data.readers.images import image_size, read_image
from components.data.readers.labelled import read_labelled
from components.data.readers.safe_arrays import FREE_BYTES, load_h5, load_npy, load_npz
from tests.components.data.readers.test_ct_slices import write_dicom, write_metal_case

pytestmark = pytest.mark.process

MOST_MEMORY = 300 * 2**20  # bytes above what a good file takes
MOST_SECONDS = 3.0  # a file
ADDRESS_SPACE = 6 * 2**30  # a reader that takes more is stopped before the machine suffers
NUM_CUTS, NUM_FLIPS = 20, 100

READERS: dict[str, Callable[[Path], Any]] = {
    "image": lambda path: read_image(path),
    "grey image": lambda path: read_image(path, "grey"),
    "size": lambda path: image_size(path),
    "npy": lambda path: load_npy(path).sum(),
    "npz": lambda path: load_npz(path, ["hu"]),
    "h5": lambda path: load_h5(path, ["x"]),
    "ct": lambda path: list(read_ct(path)),
    "metal": lambda path: list(read_metal_pairs(path)),
    "labelled": lambda path: read_labelled(path),
}


def _saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def _tar(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, size: int | None = None, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content) if size is None else size, kind, link
    blocks = member.tobuf() + content + bytes(-len(content) % 512) + bytes(1024)
    return gzip.compress(blocks, compresslevel=1)


SMOOTH = np.add.outer(np.arange(24), 3 * np.arange(32)).astype(np.uint8)
COLOUR = np.stack([SMOOTH, SMOOTH.T.reshape(24, 32), 255 - SMOOTH], axis=-1)
DEEP = COLOUR.astype(np.uint16) * 257 + 3
HU = SMOOTH.astype(np.int16) - 1000

# What a good file holds, by the name under which its reader meets it (name, within a folder, of a file).
GOOD: dict[str, bytes] = {
    "a.png": _saved(lambda file: Image.fromarray(COLOUR).save(file, "png")),
    "a.jpg": _saved(lambda file: Image.fromarray(COLOUR).save(file, "jpeg")),
    "a.webp": _saved(lambda file: Image.fromarray(COLOUR).save(file, "webp")),
    "a.bmp": _saved(lambda file: Image.fromarray(COLOUR).save(file, "bmp")),
    "a.tif": _saved(lambda file: Image.fromarray(COLOUR).save(file, "tiff", compression="tiff_deflate")),
    "b.tif": _saved(lambda file: tifffile.imwrite(file, DEEP, photometric="rgb")),
    "c.tif": _saved(lambda file: tifffile.imwrite(file, DEEP[..., 0], compression="zlib")),
    "a.npy": _saved(lambda file: np.save(file, HU)),
    "a.npz": _saved(lambda file: np.savez(file, hu=HU, x=COLOUR[None], y=np.array([0]))),
    "b.npz": _saved(lambda file: np.savez_compressed(file, hu=HU, x=COLOUR[None], y=np.array([0]))),
    "train.bin": bytes(3074 * 2),
    "c.tar.gz": _tar("cifar-100-binary/train.bin", bytes(3074 * 2)),
}
# Reader -> the good files that it is tried with; "train.bin" is given by its folder.
TRIED = {
    "image": ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "b.tif", "c.tif"],
    "grey image": ["b.tif"],
    "size": ["a.png", "a.jpg", "a.webp", "a.tif"],
    "npy": ["a.npy"],
    "npz": ["a.npz", "b.npz"],
    "h5": ["a.h5"],
    "ct": ["b.npz", "a.npy", "a.dcm"],
    "metal": ["gt.h5", "0.h5"],
    "labelled": ["b.npz", "train.bin", "c.tar.gz"],
}


def main(reader: str, list_of_paths: Path) -> None:
    """Reads every path of a list and prints, as JSON, what came of each, and how far the memory rose."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    good, *paths = json.loads(list_of_paths.read_text())
    READERS[reader](Path(good))
    before = _peak_memory()
    outcomes = []
    for path in paths:
        start = time.perf_counter()
        try:
            READERS[reader](Path(path))
            error, message = "", ""
        except Exception as raised:
            error, message = type(raised).__name__, str(raised)
        outcomes.append([path, error, message, time.perf_counter() - start])
    print(json.dumps({"outcomes": outcomes, "rise": _peak_memory() - before}))


def _peak_memory() -> int:
    """In bytes, of this process since it began (getrusage would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _check(reader: str, good: Path, paths: list[Path], folder: Path) -> dict[str, str]:
    """Path -> the message of its refusal, "" where it was read."""
    (folder / "list.json").write_text(json.dumps([str(path) for path in (good, *paths)]))
    command = [
        sys.executable,
        "-m",
        "tests.components.data.readers.test_fuzz_readers",
        reader,
        str(folder / "list.json"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[4])
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout)
    for path, error, message, seconds in result["outcomes"]:
        assert error in ("", "ValueError"), (path, error, message)
        assert not error or path in message, (path, message)
        assert len(message) < 1000, (path, len(message))
        assert seconds < MOST_SECONDS, (path, seconds)
    assert result["rise"] < MOST_MEMORY
    return {path: message for path, _, message, _ in result["outcomes"]}


def _damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Cut short at places all over the file, and with one to three bytes changed, half of them among the first 512."""
    for cut in np.linspace(0, len(content) - 1, NUM_CUTS).astype(int):
        yield content[:cut]
    random = np.random.default_rng(seed)
    for number in range(NUM_FLIPS):
        changed = bytearray(content)
        for place in random.integers(0, min(len(content), 512) if number % 2 else len(content), 1 + number % 3):
            changed[place] ^= int(random.integers(1, 256))
        yield bytes(changed)


def _good_files(folder: Path) -> dict[str, bytes]:
    write_dicom(folder / "a.dcm", HU)
    write_metal_case(folder)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("x", data=COLOUR, chunks=(8, 8, 3), compression="gzip")
    made = {"a.dcm": folder / "a.dcm", "a.h5": folder / "a.h5"}
    made |= {path.name: path for path in (folder / "train_640geo").rglob("*.h5")}
    return GOOD | {name: path.read_bytes() for name, path in made.items()}


def _placed(folder: Path, name: str, content: bytes, good: dict[str, bytes]) -> Path:
    """Writes the content where its reader looks for it; what is given to the reader."""
    folder.mkdir(parents=True)
    if name in ("gt.h5", "0.h5"):
        place = folder / "train_640geo" / "000195_02_02" / "202"
        place.mkdir(parents=True)
        for other in ("gt.h5", "0.h5"):
            (place / other).write_bytes(good[other])
        (place / name).write_bytes(content)
        return folder
    (folder / name).write_bytes(content)
    return folder if name == "train.bin" else folder / name


@pytest.mark.parametrize("reader", READERS)
def test_damaged_and_disguised_files_are_read_or_refused_by_name(tmp_path: Path, reader: str) -> None:
    good = _good_files(tmp_path)
    first = _placed(tmp_path / "good", TRIED[reader][0], good[TRIED[reader][0]], good)
    paths = []
    for name in TRIED[reader]:
        contents = [*_damaged(good[name], seed=len(good[name])), b"these are my notes\n", bytes(5000), *good.values()]
        for number, content in enumerate(contents):
            paths.append(_placed(tmp_path / name.replace(".", "_") / str(number), name, content, good))
    refused = _check(reader, first, paths, tmp_path)
    assert sum(message != "" for message in refused.values()) > len(paths) / 4


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def _png(width: int, height: int, *others: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = [header, *others, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _tiff(width: int, height: int, compression: int, data: bytes, count: int = 1) -> bytes:
    """One grey strip; ``count`` is how many bits a sample the tag claims to list."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, count, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def _npy(shape: str, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def _zip_of_zeros(name: str, shape: str, size: int) -> bytes:
    """About 1 MB that inflates to ``size`` bytes behind a proper header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}.npy", "w") as member:
            member.write(_npy(shape))
            for _ in range(size // 2**20):
                member.write(bytes(2**20))
        archive.writestr("y.npy", _saved(lambda file: np.save(file, np.zeros(1, dtype=int))))
    return buffer.getvalue()


def _zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def _image_bombs() -> dict[str, bytes]:
    return {
        "wide.png": _png(2**31 - 1, 2**31 - 1),
        "large.png": _png(8192, 8192),  # at the limit, and next to nothing in it
        "text.png": _png(8, 8, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 1))),
        "exif.png": _png(8, 8, (b"eXIf", b"MM\0*\xff\xff\xff\xff")),
        "large.tif": _tiff(8192, 8192, 8, zlib.compress(bytes(1000))),
        "wide.tif": _tiff(2**31 - 1, 2**31 - 1, 1, b"x"),
        "zeros.tif": _tiff(8192, 8193, 8, zlib.compress(bytes(8192 * 8193), 1)),
        "counts.tif": _tiff(8, 8, 1, bytes(64), count=2**31),
        "loop.tif": _tiff(8, 8, 1, bytes(64))[:-4] + struct.pack("<I", 72),  # its next page is itself
        "wide.bmp": b"BM" + struct.pack("<IIIIiiHH", 100, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(40),
        "a.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(sprung) (w) file\n",
        "script.jpg": b"%PDF-1.4\n",
    }


def _array_bombs(trap: bytes) -> dict[str, bytes]:
    huge = _npy("(1000000, 1000000, 1000)", "'<f8'")
    return {
        "zeros.npz": _zip_of_zeros("hu", f"({FREE_BYTES + 2**20},)", FREE_BYTES + 2**20),
        "claims.npz": _zip_of(hu=huge + bytes(100), x=huge, y=huge),
        "overflows.npz": _zip_of(hu=_npy(f"({2**63}, 2)"), x=_npy(f"({2**63}, 2)")),
        "pickled.npz": _zip_of(hu=trap, x=trap, y=trap),
        "traversal.npz": _zip_of(**{"../../hu": _npy("(0,)"), "/etc/x": _npy("(0,)")}),
        "deep.npz": _zip_of(hu=_npy("(" * 5000), x=_npy("(" * 5000)),
        "claims.npy": huge + bytes(100),
        "pickled.npy": trap,
    }


def _archive_bombs() -> dict[str, bytes]:
    return {
        "zeros.tar.gz": _tar("train.bin", bytes(100 * 2**20)),
        "claims.tar.gz": _tar("train.bin", b"x", size=8 * 2**30 - 1),
        "link.tar.gz": _tar("train.bin", b"", tarfile.SYMTYPE, link="/etc/passwd"),
        "hard.tar.gz": _tar("train.bin", b"", tarfile.LNKTYPE, link="train.bin"),
        "pax.tar.gz": _tar("train.bin", b"30 GNU.sparse.size=999999999999\n", tarfile.XHDTYPE, size=8 * 2**30 - 1),
        "sparse.tar.gz": _tar("train.bin", b"", tarfile.GNUTYPE_SPARSE, size=2**32),
        "traversal.tar.gz": _tar("../../../../train.bin", b"notes"),
        "fifo.tar.gz": _tar("train.bin", b"", tarfile.FIFOTYPE),
    }


def _write_h5_bombs(folder: Path) -> None:
    """Each is made to hurt under all the names that are asked for."""
    for name in ("x", "ma_CT", "LI_CT"):
        with h5py.File(folder / "huge.h5", "a") as file:
            file.create_dataset(name, shape=(2**20, 2**20), dtype="<f8", chunks=(64, 64))
        with h5py.File(folder / "filled.h5", "a") as file:
            shape = (2**14, 2**14 + 1)
            file.create_dataset(name, shape=shape, dtype="u1", chunks=(2**10, 2**10), compression="gzip", fillvalue=7)
        with h5py.File(folder / "outside.h5", "a") as file:
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
        with h5py.File(folder / "raw.h5", "a") as file:
            file.create_dataset(name, shape=(8, 8), dtype="u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        with h5py.File(folder / "loop.h5", "a") as file:
            file[name] = h5py.SoftLink(name)


def _write_dicom_bombs(folder: Path) -> None:
    write_dicom(folder / "rows.dcm", HU, Rows=65535, Columns=65535)
    write_dicom(folder / "more.dcm", HU, Rows=4096, Columns=4096)
    write_dicom(folder / "frames.dcm", HU, NumberOfFrames=2**31 - 1)
    write_dicom(folder / "deflated.dcm", HU, DeflatedExplicitVRLittleEndian)
    content = (folder / "deflated.dcm").read_bytes()
    meta = content[: content.index(b"1.2.840.10008.1.2.1.99") + 40]
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflate.compress(bytes(400 * 2**20)) + deflate.flush()
    (folder / "zeros.dcm").write_bytes(meta + bomb)
    write_dicom(folder / "good.dcm", HU)
    good = (folder / "good.dcm").read_bytes()
    (folder / "length.dcm").write_bytes(
        good.replace(b"\xe0\x7f\x10\x00OW\0\0", b"\xe0\x7f\x10\x00OW\0\0\xf0\xff\xff\xff")
    )
    sequence = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    (folder / "nested.dcm").write_bytes(good.replace(b"\xe0\x7f\x10\x00OW", sequence * 3000 + b"\xe0\x7f\x10\x00OW"))


@pytest.mark.slow
def test_files_made_to_hurt_are_refused_and_run_nothing(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = _saved(lambda file: np.save(file, np.array([Trap(sprung)], dtype=object)))
    folders = {name: tmp_path / name for name in ("images", "arrays", "h5", "dicom", "pickles", "archives", "metal")}
    for folder in folders.values():
        folder.mkdir()
    for folder, bombs in (
        (folders["images"], _image_bombs()),
        (folders["arrays"], _array_bombs(trap)),
        (folders["archives"], _archive_bombs()),
    ):
        for name, content in bombs.items():
            (folder / name).write_bytes(content)
    (folders["pickles"] / "trap").mkdir()
    (folders["pickles"] / "trap" / "train").write_bytes(pickle.dumps({"data": Trap(sprung)}))
    _write_h5_bombs(folders["h5"])
    _write_dicom_bombs(folders["dicom"])
    for bomb in sorted(folders["h5"].iterdir()):
        case = folders["metal"] / bomb.stem
        write_metal_case(case)
        (case / "train_640geo" / "000195_02_02" / "202" / "0.h5").write_bytes(bomb.read_bytes())
    classes = tmp_path / "classes"
    for name in ("cat", "dog"):
        (classes / name).mkdir(parents=True)
        (classes / name / "1.png").write_bytes(_png(8192, 8192))

    own = tmp_path / "good"
    own.mkdir()
    good = _good_files(own)
    for name in ("a.png", "a.npy", "b.npz", "train.bin"):
        (own / name).write_bytes(good[name])
    harmless = {
        "exif.png",
        "text.png",
        "counts.tif",
        "loop.tif",
        "good.dcm",
    }  # may be read, without what is odd in them

    def inside(folder: str, *suffixes: str) -> list[Path]:
        files = sorted(folders[folder].iterdir())
        return [file for file in files if not suffixes or file.suffix in suffixes]

    for reader, first, paths in (
        ("image", own / "a.png", inside("images")),
        ("npy", own / "a.npy", inside("arrays", ".npy")),
        ("npz", own / "b.npz", inside("arrays", ".npz")),
        ("h5", own / "a.h5", inside("h5")),
        ("ct", own / "a.dcm", [*inside("dicom"), *inside("arrays")]),
        ("metal", own, inside("metal")),
        ("labelled", own, [*inside("pickles"), *inside("archives"), *inside("arrays", ".npz"), classes]),
    ):
        for path, message in _check(reader, first, paths, tmp_path).items():
            assert message or Path(path).name in harmless, (reader, path)
    assert not sprung.exists()
    pickle.loads((folders["pickles"] / "trap" / "train").read_bytes())
    assert sprung.exists()  # the trap works


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
