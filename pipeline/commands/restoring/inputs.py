"""The images and DICOM files that the arguments of a command name: files, folders, patterns, and buckets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from components.data.readers.images import is_image_name
from pipeline.commands.restoring.places import is_remote, joined, names_below
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.names import HEAD, SCANS, is_hidden, is_taken, skipped_text
from pipeline.sources.names import is_scan as has_scan_mark

_WILD = ("*", "?", "[")


def find_inputs(sources: Sequence[str], outputs: Path | None = None) -> dict[str, str]:
    """Lists the images and DICOM files.

    Args:
        sources: files, folders, patterns such as ``photos/**/*.jpg``, or ``s3://BUCKET/PREFIX``.
        outputs: folder whose files are no inputs where it is inside a folder of inputs. It may hold the results of an
            earlier run.

    Returns:
        Path or address -> name relative to the folder, to the fixed part of the pattern, or to the prefix; of a file,
        its name. In the order of the sources, each of them sorted.

    Raises:
        UserError: a source names no image, or the server of a bucket refuses the operation or does not answer.
    """
    found: dict[str, str] = {}
    for source in sources:
        found |= _found(source, outputs)
    return found


def is_scan(address: str) -> bool:
    """Returns whether a file is a DICOM file: by its suffix, of a local file without one also by its first bytes.

    A file with the suffix and other bytes is one that cannot be read, so that the list of failures names it.
    """
    path = Path(address)
    if is_image_name(path):
        return False
    if is_remote(address) or path.suffix.lower() in SCANS:
        return path.suffix.lower() in SCANS
    try:
        with path.open("rb") as file:
            return has_scan_mark(file.read(HEAD))
    except OSError:
        return False


def _found(source: str, outputs: Path | None) -> dict[str, str]:
    """Lists the inputs of one argument."""
    if is_remote(source):
        if is_image_name(Path(source)) or is_scan(source):
            return {source: source.rpartition("/")[2]}
        names = [name for name in names_below(source, "INPUT") if _is_remote_input(name)]
        return _some({joined(source, name): name for name in names}, f"{source}: no image there")
    path = Path(source)
    if path.is_file():
        return {source: path.name}
    if path.is_dir():
        return _some(_in_folder(path, outputs), f"{source}: no image in this folder")
    if any(sign in source for sign in _WILD):
        parts = PurePosixPath(source).parts
        fixed = tuple(takewhile(lambda part: not any(sign in part for sign in _WILD), parts))
        base = Path(*fixed)
        files = [file for file in sorted(base.glob("/".join(parts[len(fixed) :]))) if file.is_file()]
        return _some(
            {str(file): name for file in files if _is_input(base, name := file.relative_to(base).as_posix())},
            f"{source}: no image matches",
        )
    raise UserError(f"{source}: there is no such file or folder")


def _is_input(folder: Path, name: str) -> bool:
    """Returns whether a file of a folder is an image or a DICOM file."""
    path = Path(name)
    may_be_scan = path.suffix.lower() in SCANS or (is_taken(name) is None and path.name != "DICOMDIR")
    return not is_hidden(name) and (is_image_name(path) or (may_be_scan and is_scan(str(folder / name))))


def _is_remote_input(name: str) -> bool:
    return not is_hidden(name) and (is_image_name(Path(name)) or Path(name).suffix.lower() in SCANS)


def _some(found: dict[str, str], problem: str) -> dict[str, str]:
    if not found:
        raise UserError(f"{problem} (png, jpg, bmp, tif, webp, DICOM)")
    return found


def _in_folder(folder: Path, outputs: Path | None) -> dict[str, str]:
    tree = read_tree(folder)
    if left_out := skipped_text(tree.left_out()):
        console.print(f"{folder}: left out: {left_out}", markup=False)
    names = [name for name in sorted(tree.files) if _is_input(folder, name)]
    if outputs is not None and outputs.resolve().is_relative_to(folder.resolve()):
        names = [name for name in names if not (folder / name).resolve().is_relative_to(outputs.resolve())]
    return {str(folder / name): name for name in names}
