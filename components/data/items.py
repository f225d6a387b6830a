"""Items to pack: images, pairs, CT slices or labelled images, found among the files of a folder and read.

A file is named by its path relative to the folder, with "/". The name of an item contains no "/" and no suffix.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from components.data.own_split import Part, folder_parts, part_of
from components.data.pair_names import NAMINGS, Naming, PairedNames, find_pairs
from components.data.readers.ct_slices import holds_metal, is_ct_name, read_ct, read_metal_pair
from components.data.readers.images import IMAGE_SUFFIXES, LOSSY_SUFFIXES, is_image_name, read_image
from components.data.readers.labelled import CIFAR_FILES, read_labelled

_SUFFIXES = rf"({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))}|\.npz|\.npy|\.dcm|\.dicom|\.ima)$"

_SPELLING = "spelled with other Unicode characters (composed in one name, decomposed in the other)"

Colour = Literal["rgb", "grey"]
InputKind = Literal["images", "ct", "labelled"]


@dataclass(frozen=True)
class Item:
    """One image, pair, slice or labelled image to pack.

    Attributes:
        name: unique name.
        scene: scene of the item if the file names define it, else its name.
        files: files of the item; for a pair, the degraded image, then the clean image.
        number: index of the slice or image in its file.
        part: "train", "val" or "test" if the data set has its own split, else "".
    """

    name: str
    scene: str
    files: tuple[str, ...]
    number: int = 0
    part: Part = ""


@dataclass(frozen=True)
class Loaded:
    """An item with its data.

    Attributes:
        item: the item.
        clean: ``(C, H, W)`` uint8, uint16 or float32; a CT slice is ``(1, H, W)`` in Hounsfield units.
        degraded: degraded image ``(C', h, w)`` of a given pair.
        label: label of a labelled image.
        pixel_spacing_mm: pixel spacing of a CT slice, if it is known.
    """

    item: Item
    clean: np.ndarray
    degraded: np.ndarray | None = None
    label: int | None = None
    pixel_spacing_mm: float | None = None


@dataclass(frozen=True)
class Problem:
    """A file or item that cannot be used.

    Attributes:
        name: name of the file or item.
        reason: why it cannot be used.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Result of the search in a folder.

    Attributes:
        items: the items to pack.
        unused: the files that cannot be used.
        naming: the naming by which pairs were found, if any.
        left_out: number of files that are left out because they are of another kind, by kind.
    """

    items: list[Item]
    unused: list[Problem]
    naming: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


def find_items(
    names: Sequence[str], folder: Path, input_kind: InputKind, naming: str | Naming | None, pattern: str
) -> Found:
    """Find the items among the files of a folder, for a task that reads images, CT slices or labelled images.

    If several items would have the same name, such as those of ``a.png`` and ``a.jpg``, one is kept: the first in a
    lossless format, or the first if there is none.

    Args:
        names: relative paths of the files.
        folder: folder of the files. Image files are not opened; files of slices and labelled images are opened.
        input_kind: kind of the items; other files are left out and counted.
        naming: naming of pairs; None if all images are clean.
        pattern: a regular expression whose first group is the scene of a name (`scene_of`).

    Raises:
        ValueError: no naming fits, or the folders of one item name several parts of a split.
    """
    if input_kind == "ct":
        found = _slices(names, folder, pattern)
    elif input_kind == "labelled":
        found = _labelled(names, folder, pattern)
    else:
        images = [name for name in names if is_image_name(Path(name))]
        found = _images(images, pattern) if naming is None else _pairs(images, naming, pattern)
    found = _without_namesakes(found)
    if input_kind == "labelled":  # all files together are one data set
        return found
    used = {file for item in found.items for file in item.files} | {problem.name for problem in found.unused}
    left_out = Counter(_kind(name, input_kind) for name in names if name not in used)
    return replace(found, items=_with_parts(found.items), left_out=left_out)


def _kind(name: str, input_kind: InputKind) -> str:
    """Return the kind of a file that is left out."""
    if input_kind == "images" and is_image_name(Path(name)):
        return "images beside the pairs"
    return PurePosixPath(name).suffix.lower() or "without suffix"


def _without_namesakes(found: Found) -> Found:
    """Keep one item of each name and report the others as problems.

    Names that are equal after Unicode normalisation count as the same name.
    """
    kept: dict[str, Item] = {}
    unused = list(found.unused)
    for item in sorted(found.items, key=lambda item: PurePosixPath(item.files[-1]).suffix.lower() in LOSSY_SUFFIXES):
        first = kept.setdefault(unicodedata.normalize("NFC", item.name), item)
        if first is not item:
            reason = f"it would be called {item.name}, as {first.files[-1]} is: keep one of them, or rename one"
            if first.name != item.name:
                reason = f"it looks like {first.files[-1]}, {_SPELLING}: keep one of them, or rename one"
            unused.append(Problem(item.files[-1], reason))
    items = set(kept.values())
    return replace(found, items=[item for item in found.items if item in items], unused=unused)


def _with_parts(items: Sequence[Item]) -> list[Item]:
    """Return the items with the part of the split that the folders of their files name."""
    parts = folder_parts(file for item in items for file in item.files)
    return [replace(item, part=part_of(item.files, parts)) for item in items] if parts else list(items)


def scene_of(name: str, pattern: str, own: str = "") -> str:
    """Return the scene of an image.

    Args:
        name: name of the item.
        pattern: a regular expression; if it matches, its first group is the scene.
        own: scene if the pattern does not match; if it is empty, the scene is the name.
    """
    match = re.search(pattern, name)
    scene = match.group(1) if match and match.re.groups and match.group(1) else own or name
    return scene.replace("/", "_")  # because scenes are used in file names


def _flat(name: str) -> str:
    """Convert a relative path to a name without "/" and without a suffix that names the format (1.2.840 has none)."""
    return re.sub(_SUFFIXES, "", name, flags=re.IGNORECASE).replace("/", "__")


def _images(names: Sequence[str], pattern: str) -> Found:
    return Found([Item(_flat(name), scene_of(_flat(name), pattern), (name,)) for name in names], [])


def _pairs(names: Sequence[str], naming: str | Naming, pattern: str) -> Found:
    paired = _find_pairs(names, naming)
    items = []
    for pair in paired.pairs:
        name = pair.key.replace("/", "__")
        items.append(Item(name, scene_of(name, pattern, pair.scene.replace("/", "__")), (pair.degraded, pair.clean)))
    known = naming if isinstance(naming, Naming) else NAMINGS.get(paired.naming)
    spare = known.spare if known else ""  # further files of a data set, such as GoPro's blur_gamma
    alone = [name for name in paired.unpaired if not (spare and re.fullmatch(spare, name, re.IGNORECASE))]
    partners = _misspelled(alone, known or naming)
    unused = [
        Problem(
            name,
            f"{partners[name]}, its partner in a pair, is {_SPELLING}: rename one of them"
            if name in partners
            else "it has no partner in a pair",
        )
        for name in alone
    ]
    return Found(items, unused, paired.naming)


def _find_pairs(names: Sequence[str], naming: str | Naming) -> PairedNames:
    try:
        return find_pairs(names, naming)
    except ValueError:
        if partners := _misspelled(names, naming):
            name, partner = min(partners.items())
            raise ValueError(
                f"{name} and {partner} are no pair: the second is {_SPELLING}; rename one of them"
            ) from None
        raise


def _misspelled(names: Sequence[str], naming: str | Naming) -> dict[str, str]:
    """Return name -> partner for the pairs that are not found only because of different Unicode normalisation."""
    spelled = {unicodedata.normalize("NFC", name): name for name in names}
    if spelled.keys() == set(names):
        return {}
    try:
        pairs = [(spelled[pair.degraded], spelled[pair.clean]) for pair in find_pairs(spelled, naming).pairs]
    except ValueError:
        return {}
    apart = [pair for pair in pairs if len({unicodedata.is_normalized("NFC", name) for name in pair}) == 2]
    return dict(apart) | {clean: degraded for degraded, clean in apart}


def _slices(names: Sequence[str], folder: Path, pattern: str) -> Found:
    """Find CT slices, or SynDeepLesion's pairs if the files have its layout."""
    if any(PurePosixPath(name).name == "gt.h5" for name in names):
        return _metal_pairs(names, pattern)
    items, unused = [], []
    for name in names:
        if not is_ct_name(Path(name)):
            continue
        try:
            for number, each in enumerate(read_ct(folder / name)):
                is_stack = Path(name).suffix.lower() in (".npz", ".npy")
                own = f"{_flat(name)}-{number:04d}" if is_stack else _flat(name)
                items.append(Item(own, scene_of(own, pattern, each.patient), (name,), number))
        except ValueError as error:
            unused.append(Problem(name, str(error).removeprefix(f"{folder / name}: ")))
    return Found(items, unused)


def _metal_pairs(names: Sequence[str], pattern: str) -> Found:
    """Find the pairs ``.../CASE/SLICE/N.h5`` with their ``gt.h5``; an optional ``*mask.npy`` for all is beside CASE."""
    known, items = set(names), []
    masks = sorted((name for name in names if name.endswith("mask.npy")), key=len)
    for name in names:
        path = PurePosixPath(name)
        truth = str(path.with_name("gt.h5"))
        if path.suffix == ".h5" and path.stem.isdecimal() and truth in known:
            case, above = path.parent.parent, set(map(str, path.parents))
            own_masks = [mask for mask in masks if _folder(mask) in above]
            own = "-".join((case.name, path.parent.name, path.stem))
            files = (name, truth, *own_masks[-1:])  # the nearest mask file
            items.append(Item(own, scene_of(own, pattern, case.name.split("_")[0]), files))
    return Found(items, [])


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _labelled(names: Sequence[str], folder: Path, pattern: str) -> Found:
    """Find the images of the data set that all files together form."""
    root = labelled_root(names)
    labelled = read_labelled(folder / root)
    items = []
    for number, (label, part) in enumerate(zip(labelled.labels, labelled.split, strict=True)):
        name = f"{labelled.classes[label]}-{number:06d}".replace("/", "_")
        items.append(Item(name, scene_of(name, pattern), (root,), number, part))
    return Found(items, [])


def labelled_root(names: Sequence[str]) -> str:
    """Return the path for `read_labelled`: the only npz file, the folder of CIFAR's files, or the whole folder."""
    archives = [name for name in names if name.lower().endswith(".npz")]
    if len(archives) == 1:
        return archives[0]
    folders = {_folder(name) for name in names if PurePosixPath(name).name in CIFAR_FILES}
    return min(folders, key=len) if folders else "."


def load(items: Sequence[Item], folder: Path, input_kind: InputKind, colour: Colour) -> Iterator[Loaded | Problem]:
    """Read each item in order; yield its data, or a problem if it cannot be read.

    Consecutive items of one file are read together.

    Args:
        items: the items.
        folder: folder of the files.
        input_kind: kind of the items.
        colour: colour of images.
    """
    if input_kind == "labelled":
        yield from _load_labelled(items, folder)
        return
    for files, group in itertools.groupby(items, key=lambda item: item.files):
        chosen = list(group)
        try:
            if input_kind == "images":
                yield _load_image(chosen[0], folder, colour)
            elif len(files) > 1:
                yield _load_metal_pair(chosen[0], folder)
            else:
                yield from _load_slices(chosen, folder)
        except ValueError as error:
            shown = str(error)
            for file in files:
                shown = shown.removeprefix(f"{folder / file}: ")
            yield from (Problem(item.name, shown) for item in chosen)


def _load_image(item: Item, folder: Path, colour: Colour) -> Loaded:
    *degraded, clean = (read_image(folder / file, colour) for file in item.files)
    if degraded and _is_grey(degraded[0]) and _is_coloured(clean):
        raise ValueError("the degraded image is grey, the clean one in colour: use preprocess.colour: grey for all")
    return Loaded(item, clean, degraded[0] if degraded else None)


def _is_grey(image: np.ndarray) -> bool:
    """Return whether all channels are equal; False for a constant image, such as a black one, which is inconclusive."""
    return not _is_coloured(image) and bool(image.min() < image.max())


def _is_coloured(image: np.ndarray) -> bool:
    return bool((image != image[:1]).any())


def _load_slices(items: Sequence[Item], folder: Path) -> Iterator[Loaded | Problem]:
    wanted = {item.number: item for item in items}
    for number, each in enumerate(read_ct(folder / items[0].files[0])):
        if number in wanted:
            item = wanted[number]
            if holds_metal(each.hu):
                yield Problem(item.name, "metal in it (above 2500 HU): no clean slice")
            elif each.hu.shape[0] != each.hu.shape[1]:
                yield Problem(item.name, f"{each.hu.shape[1]}x{each.hu.shape[0]} pixels: not square")
            else:
                yield Loaded(item, each.hu[None], pixel_spacing_mm=each.pixel_spacing_mm)


def _load_metal_pair(item: Item, folder: Path) -> Loaded:
    file, _, *masks = (folder / name for name in item.files)
    pair = read_metal_pair(file, masks[0] if masks else None)
    inputs = np.concatenate([pair.linear_interpolation, pair.artifact, pair.mask.astype(np.float32)])
    return Loaded(item, np.clip(pair.clean, 0, 1), np.clip(inputs, 0, 1))


def _load_labelled(items: Sequence[Item], folder: Path) -> Iterator[Loaded]:
    labelled = read_labelled(folder / items[0].files[0])
    for item in items:
        yield Loaded(item, labelled.images[item.number], label=int(labelled.labels[item.number]))
