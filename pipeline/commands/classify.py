"""``eqreg classify``: the classes of image files, as a CSV file.

torch is imported after the arguments are checked, so that a wrong argument is refused at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.data.readers.images import decode_image, is_image_name
from pipeline.commands.restoring.model import check_model, load
from pipeline.commands.restoring.places import write
from pipeline.console import console, track
from pipeline.errors import UserError
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.names import is_hidden, skipped_text

if TYPE_CHECKING:
    from components.inference.restorer import ImageRestorer

TOP = 5
BATCH = 32
"""Images that the network gets at once, if they have one size."""

_SHOWN = 20
"""Unreadable images that the console lists."""


def classify(source: Path, model: str, out: Path, top: int = TOP, device: str = "auto") -> int:
    """Writes a CSV file with the likeliest classes of each image of a folder, or of one image.

    The columns are ``file`` (relative to the folder), ``label``, ``probability``, and ``label_2``, ``probability_2``
    and so on. The rows are sorted by the names of the files. Images of another size than those of the training are
    resized until they cover that size, and cropped to its centre.

    Args:
        source: image file, or folder that is searched with its subfolders.
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a model file.
        out: CSV file to write.
        top: number of classes of each image; with more than the model knows, all of them.
        device: of the network; "auto" is a GPU where there is one.

    Returns:
        The number of images that cannot be read; the others are in the file.

    Raises:
        UserError: there is no image, the model is unknown or recognises no images, no image can be read, or the file
            cannot be written.
    """
    files = _files(source)
    if out.is_dir() or out.suffix.lower() != ".csv":
        raise UserError(f"--out {out}: name a file with the suffix .csv")
    check_model(model)
    recogniser, _ = load(model, device)
    contract = recogniser.contract
    if contract.kind != "labels":
        raise UserError(f"--model {model}: it restores images and names no classes: use eqreg restore")
    rows: list[list[str]] = []
    problems: list[str] = []
    num_resized = 0
    for names, images, sizes in _batches(source, files, recogniser, problems):
        rows += _rows(names, images, recogniser, top)
        num_resized += sum(size != contract.image_size for size in sizes)
    for problem in problems[:_SHOWN]:
        console.print(problem, markup=False)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more")
    if not rows:
        raise UserError(f"{source}: none of {len(files)} images can be read, and {out} is not written")
    write(str(out), _table(rows))
    console.print(_said(len(rows), len(problems), num_resized, contract.image_size, out), markup=False)
    return len(problems)


def _files(source: Path) -> list[str]:
    """Lists the images, sorted by name, relative to a folder."""
    if source.is_file():
        return [source.name]
    if not source.is_dir():
        raise UserError(f"{source}: there is no such file or folder")
    tree = read_tree(source)
    if left_out := skipped_text(tree.left_out()):
        console.print(f"{source}: left out: {left_out}", markup=False)
    names = [name for name in sorted(tree.files) if is_image_name(Path(name)) and not is_hidden(name)]
    if not names:
        raise UserError(f"{source}: no image in this folder (png, jpg, bmp, tif, webp)")
    return names


Batch = tuple[list[str], np.ndarray, list[tuple[int, int]]]
"""Names, images ``(B, C, h, w)`` float32, and the (height, width) of each file."""


def _batches(source: Path, files: list[str], recogniser: ImageRestorer, problems: list[str]) -> Iterator[Batch]:
    """Yields images of one size together; a file that cannot be read is added to the problems."""
    names: list[str] = []
    images: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    for name in track(files, "classifying") if len(files) > 1 else files:
        try:
            decoded = decode_image(source / name if source.is_dir() else source)
        except ValueError as error:
            problems.append(str(error))
            continue
        image = recogniser.label_input(decoded)
        if images and (len(images) == BATCH or images[0].shape != image.shape):
            yield names, np.stack(images), sizes
            names, images, sizes = [], [], []
        names.append(name)
        images.append(image)
        sizes.append((decoded.pixels.shape[0], decoded.pixels.shape[1]))
    if images:
        yield names, np.stack(images), sizes


def _rows(names: list[str], images: np.ndarray, recogniser: ImageRestorer, top: int) -> list[list[str]]:
    """Returns a row for each image: its name, then label and probability of each of its likeliest classes."""
    from components.inference.labels import likeliest

    scores = recogniser.scores_of_floats(images)
    classes = recogniser.contract.classes or [str(number) for number in range(scores.shape[1])]
    rows = []
    for name, numbers, probabilities in zip(names, *likeliest(scores, top), strict=True):
        pairs = ((classes[number], f"{chance:.6f}") for number, chance in zip(numbers, probabilities, strict=True))
        rows.append([name, *(text for pair in pairs for text in pair)])
    return rows


def _table(rows: list[list[str]]) -> bytes:
    """Returns the CSV file, in UTF-8; bytes of names that are not UTF-8 are kept."""
    header = ["file", "label", "probability"]
    for place in range(2, len(rows[0]) // 2 + 1):
        header += [f"label_{place}", f"probability_{place}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode(errors="surrogateescape")


def _said(done: int, failed: int, resized: int, size: tuple[int, int] | None, out: Path) -> str:
    text = f"{done} images classified: {out}"
    if size is None:
        text += "; the model does not say the size of its training images: each was taken in its own size"
    elif resized:
        text += f"; {resized} of them resized to {size[1]}x{size[0]} pixels, the size of training, and cropped to it"
    return text + (f"; {failed} cannot be read" if failed else "")
