"""``eqreg classify``: the classes of image files, as a CSV file.

torch is imported after the arguments are checked, so that a wrong argument is refused at once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.data.readers.images import is_image_name, read_image, to_float
from pipeline.console import console, track
from pipeline.errors import UserError, described
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.names import is_hidden, skipped_text

if TYPE_CHECKING:
    from torch import nn

TOP = 5
BATCH = 32
"""Images that the network gets at once, if they have one size."""

_SHOWN = 20
"""Unreadable images that the console lists."""


@dataclass(frozen=True)
class Recogniser:
    """A network that recognises images, with what its model file says.

    Attributes:
        network: on the CPU or a GPU, in evaluation mode.
        channels: of its input, 1 or 3.
        classes: names of the classes, in order.
        size: (height, width) of the training images; None if the model file does not say.
        device: of the network.
    """

    network: nn.Module
    channels: int
    classes: Sequence[str]
    size: tuple[int, int] | None
    device: str


def classify(source: Path, model: str, out: Path, top: int = TOP, device: str = "auto") -> int:
    """Writes a CSV file with the likeliest classes of each image of a folder, or of one image.

    The columns are ``file`` (relative to the folder), ``label``, ``probability``, and ``label_2``, ``probability_2`` and
    so on. The rows are sorted by the names of the files. Images of another size than those of the training are resized
    until they cover that size, and cropped to its centre.

    Args:
        source: image file, or folder that is searched with its subfolders.
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a model file.
        out: CSV file to write.
        top: number of classes of each image.
        device: of the network; "auto" is a GPU where there is one.

    Returns:
        The number of images that cannot be read; the others are in the file.

    Raises:
        UserError: there is no image, the model is unknown or recognises no images, no image can be read, or the file
            cannot be written.
    """
    if top < 1:
        raise UserError(f"--top {top}: use 1 or more classes")
    files = _files(source)
    if out.is_dir() or out.suffix.lower() != ".csv":
        raise UserError(f"--out {out}: name a file with the suffix .csv")
    recogniser = load_recogniser(model, device)
    rows: list[list[str]] = []
    problems: list[str] = []
    resized = 0
    for names, images, sizes in _batches(source, files, recogniser, problems):
        rows += _rows(names, images, recogniser, top)
        resized += sum(size != recogniser.size for size in sizes)
    for problem in problems[:_SHOWN]:
        console.print(problem, markup=False)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more")
    if not rows:
        raise UserError(f"{source}: none of {len(files)} images can be read; {out} is not written")
    count = min(top, len(recogniser.classes))
    header = ["file", "label", "probability"]
    header += [f"{name}_{place}" for place in range(2, count + 1) for name in ("label", "probability")]
    _write(out, [header, *sorted(rows)])
    console.print(_said(len(rows), len(problems), resized, recogniser.size, out), markup=False)
    return len(problems)


def load_recogniser(model: str, device: str = "auto") -> Recogniser:
    """Loads a model that recognises images.

    Raises:
        UserError: the model is unknown, or restores images.
    """
    from pipeline.commands.restore import check_model

    check_model(model)
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    raise NotImplementedError


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
"""Names, images ``(B, C, h, w)``, and the (height, width) of each file."""


def _batches(source: Path, files: list[str], recogniser: Recogniser, problems: list[str]) -> Iterator[Batch]:
    """Yields images of one size together; a file that cannot be read is added to the problems."""
    from components.inference.labels import to_trained_size

    names: list[str] = []
    images: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    for name in track(files, "classifying") if len(files) > 1 else files:
        try:
            read = read_image(source / name if source.is_dir() else source, "grey" if recogniser.channels == 1 else "rgb")
        except ValueError as error:
            problems.append(str(error))
            continue
        image = to_trained_size(to_float(read), recogniser.size)
        if images and (len(images) == BATCH or images[0].shape != image.shape):
            yield names, np.stack(images), sizes
            names, images, sizes = [], [], []
        names.append(name)
        images.append(image)
        sizes.append((read.shape[1], read.shape[2]))
    if images:
        yield names, np.stack(images), sizes


def _rows(names: list[str], images: np.ndarray, recogniser: Recogniser, top: int) -> list[list[str]]:
    import torch

    from components.inference.labels import likeliest

    with torch.inference_mode():
        scores = recogniser.network(torch.from_numpy(images).to(recogniser.device)).float().cpu().numpy()
    found = zip(names, *likeliest(scores, min(top, len(recogniser.classes))), strict=True)
    return [
        [name, *(text for pair in zip(labels, chances, strict=True) for text in (recogniser.classes[pair[0]], f"{pair[1]:.6f}"))]
        for name, labels, chances in found
    ]


def _write(path: Path, rows: list[list[str]]) -> None:
    """Writes a CSV file; it is complete or absent."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(rows)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written ({described(error)})") from error


def _said(done: int, failed: int, resized: int, size: tuple[int, int] | None, out: Path) -> str:
    text = f"{done} images classified: {out}"
    if size is None:
        text += "; the model does not say the size of its training images: each image was taken in its own size"
    elif resized:
        text += f"; {resized} of them resized and cropped to {size[1]}x{size[0]} pixels, as in training"
    return text + (f"; {failed} cannot be read" if failed else "")
