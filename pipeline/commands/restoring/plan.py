"""Which files are restored, and where each result is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.data.readers.images import is_image_name
from components.inference.writing import SUFFIXES
from pipeline.commands.restoring.inputs import find_inputs, is_scan
from pipeline.commands.restoring.places import is_remote, joined
from pipeline.errors import UserError
from pipeline.sources.names import SCANS

FORMATS = {"png": ".png", "tiff": ".tif", "jpg": ".jpg", "webp": ".webp", "bmp": ".bmp", "same": ""}
"""Value of --format -> suffix of the results; "same" keeps the suffix of the input."""


@dataclass(frozen=True)
class Item:
    """One image to restore.

    Attributes:
        source: path or address of the input.
        target: path or address of the result.
        mask: path of its mask; empty without one.
        is_scan: whether the input is a DICOM file.
    """

    source: str
    target: str
    mask: str = ""
    is_scan: bool = False


def plan(sources: Sequence[str], target: str, form: str | None, mask: str | None) -> list[Item]:
    """Lists the images and DICOM files to restore, sorted, with the places of their results.

    Which of both are restored depends on the model. The result of a DICOM file keeps its name.

    Args:
        sources: files, folders, patterns such as ``photos/**/*.jpg``, or ``s3://BUCKET/PREFIX``.
        target: a file for one file, else a folder or ``s3://BUCKET/PREFIX``.
        form: one of `FORMATS`; by default the suffix of a target file decides, and in a folder PNG.
        mask: a mask image for all images, or a folder of masks; None for models without masks.

    Raises:
        UserError: there is no input, or an output cannot be used.
    """
    if form is not None and form not in FORMATS:
        raise UserError(f"--format {form}: it is none of {', '.join(FORMATS)}")
    found = _found(sources, target)
    scans = {source for source in found if is_scan(source)}
    is_one_file = len(sources) == 1 and list(found) == [sources[0]]
    if is_one_file and not _is_folder(target):
        targets = {sources[0]: _target_scan(target) if scans else _target_file(sources[0], target, form)}
    else:
        if not is_remote(target) and Path(target).is_file():
            raise UserError(f"{target}: is a file; for a folder of images name a folder")
        if len(sources) > 1 and is_image_name(Path(target)) and not _is_folder(target):
            raise UserError(f"{target}: names one file; for {len(found)} images name a folder")
        targets = {
            source: joined(target, _renamed(name, "same" if source in scans else form or "png"))
            for source, name in found.items()
        }
    _check(targets, target)
    masks = _masks(found, scans, mask) if mask else {}
    return [Item(source, targets[source], masks.get(source, ""), source in scans) for source in targets]


def _found(sources: Sequence[str], target: str) -> dict[str, str]:
    """Lists the inputs: source -> its name below the target."""
    if is_remote(target):
        return find_inputs(sources)
    folder = Path(target).resolve()
    for source in sources:
        if not is_remote(source) and Path(source).is_dir() and Path(source).resolve() == folder:
            raise UserError(f"{target}: would overwrite the input; name another folder")
    return find_inputs(sources, folder)


def _is_folder(target: str) -> bool:
    return not is_image_name(Path(target)) if is_remote(target) else Path(target).is_dir()


def _target_scan(target: str) -> str:
    if is_image_name(Path(target)):
        raise UserError(f"{target}: a DICOM slice is written as a DICOM file; use for instance .dcm")
    return target


def _target_file(source: str, target: str, form: str | None) -> str:
    suffix = Path(target).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{target}: its suffix names no image format that can be written; use for instance .png")
    wanted = Path(source).suffix.lower() if form == "same" else FORMATS[form or "same"]
    if form is not None and SUFFIXES.get(wanted) != SUFFIXES[suffix]:
        raise UserError(f"--format {form}: {target} has the suffix of another format; leave --format out")
    return target


def _renamed(name: str, form: str) -> str:
    """Returns the name of the result in a folder."""
    return name if form == "same" else str(PurePosixPath(name).with_suffix(FORMATS[form]))


def _check(targets: dict[str, str], target: str) -> None:
    """Refuses outputs that would overwrite an input, or one another."""
    by_output: dict[str, list[str]] = {}
    for source, output in targets.items():
        by_output.setdefault(output, []).append(source)
    if clashes := {output: found for output, found in by_output.items() if len(found) > 1}:
        output, found = next(iter(clashes.items()))
        others = f" ({len(clashes) - 1} other results have this fault, too)" if len(clashes) > 1 else ""
        differ = len({PurePosixPath(source).suffix for source in found}) == len(found)
        remedy = "rename one of them" + (", or give --format same" if differ else "")
        raise UserError(f"{output}: {' and '.join(found)} would be written there; {remedy}{others}")
    inputs = {_place(source): source for source in targets}
    for source, output in targets.items():
        if _place(output) == _place(source):
            raise UserError(f"{output}: would overwrite the input; name another {_kind(target)}")
    if overwritten := sorted(output for output in targets.values() if _place(output) in inputs):
        raise UserError(f"{overwritten[0]}: an input would be overwritten; name another folder")


def _kind(target: str) -> str:
    return "folder" if _is_folder(target) else "file"


def _place(address: str) -> str:
    return address if is_remote(address) else str(Path(address).resolve())


def _masks(found: dict[str, str], scans: set[str], mask: str) -> dict[str, str]:
    """Maps each image to its mask: in the same subfolder as the image, else directly in the folder of masks.

    The mask of ``1.dcm`` is ``1.png`` or ``1.dcm.png``.

    Raises:
        UserError: a mask is not in the same subfolder, and several images have the same name.
    """
    folder = Path(mask)
    if not folder.is_dir():
        return dict.fromkeys(found, mask)
    counts = Counter(PurePosixPath(name).name for name in found.values())
    masks = {}
    for source, name in found.items():
        nested = _mask_names(name) if source in scans else [name]
        last = [PurePosixPath(each).name for each in nested]
        if counts[PurePosixPath(name).name] > 1 and not any((folder / each).is_file() for each in nested):
            image = PurePosixPath(name).name
            raise UserError(
                f"--mask {mask}: {nested[0]} is not there, and {counts[image]} images are called {image}: put masks "
                "into the same subfolders as the images"
            )
        there = (each for each in (*nested, *last) if (folder / each).is_file())
        masks[source] = str(folder / next(there, last[0]))
    return masks


def _mask_names(scan: str) -> list[str]:
    """Returns the names that the mask of a DICOM file may have."""
    path = PurePosixPath(scan)
    own = [str(path.with_suffix(".png"))] if path.suffix.lower() in SCANS else []
    return [*own, f"{scan}.png"]
