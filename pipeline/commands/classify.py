"""``eqreg classify``: the classes of image files, as a CSV file.

torch is imported after the arguments are checked, so that a wrong argument is refused at once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.data.readers.images import decode_image
from pipeline.commands.restoring.inputs import find_inputs, is_scan
from pipeline.commands.restoring.model import check_model, load
from pipeline.commands.restoring.places import read, write
from pipeline.console import console, track
from pipeline.errors import UserError

if TYPE_CHECKING:
    from components.inference.restorer import ImageRestorer

TOP = 5
BATCH = 32
"""Images that the network gets at once, if they have one size."""

_SHOWN = 20
"""Unreadable images that the console lists."""


def classify(source: Path | str | Sequence[str], model: str, out: Path, top: int = TOP, device: str = "auto") -> int:
    """Writes a CSV file with the likeliest classes of each image.

    The columns are ``file``, ``label``, ``probability``, and ``label_2``, ``probability_2`` and so on. ``file`` is the
    name relative to the folder, to the fixed part of the pattern, or to the prefix of the bucket; of several sources,
    it is the whole path or address. The rows of each source are sorted by it. Images of another size than those of the
    training are resized until they cover that size, and cropped to its centre.

    Args:
        source: files, folders, patterns, or prefixes ``s3://BUCKET/PREFIX``.
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
    sources = [source] if isinstance(source, str) else [str(source)] if isinstance(source, Path) else list(source)
    found = find_inputs(sources)
    files = {each: name if len(sources) == 1 else each for each, name in found.items() if not is_scan(each)}
    num_scans = len(found) - len(files)
    if not files:
        raise UserError(f"{next(iter(found))}: a CT slice, and the model recognises images")
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
    for names, images, sizes in _batches(files, recogniser, problems):
        rows += _rows(names, images, recogniser, top)
        num_resized += sum(size != contract.image_size for size in sizes)
    for problem in problems[:_SHOWN]:
        console.print(problem, markup=False)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more")
    if not rows:
        where = f"{sources[0]}: " if len(sources) == 1 else ""
        raise UserError(f"{where}none of {len(files)} images can be read, and {out} is not written")
    write(str(out), _table(rows))
    said = _said(len(rows), len(problems), num_resized, contract.image_size, out)
    console.print(f"{said}; {num_scans} of another kind left out" if num_scans else said, markup=False)
    return len(problems)


Batch = tuple[list[str], np.ndarray, list[tuple[int, int]]]
"""Names, images ``(B, C, h, w)`` float32, and the (height, width) of each file."""


def _batches(files: Mapping[str, str], recogniser: ImageRestorer, problems: list[str]) -> Iterator[Batch]:
    """Yields images of one size together; a file that cannot be read is added to the problems."""
    names: list[str] = []
    images: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    for source in track(files, "classifying") if len(files) > 1 else files:
        try:
            decoded = decode_image(read(source), source)
        except ValueError as error:
            problems.append(str(error))
            continue
        image = recogniser.label_input(decoded)
        if images and (len(images) == BATCH or images[0].shape != image.shape):
            yield names, np.stack(images), sizes
            names, images, sizes = [], [], []
        names.append(files[source])
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
