"""Finds duplicate and near-duplicate images before the split, so that they end up in the same split."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from components.data.items import Colour, InputKind, Item, Problem, load
from components.data.near_duplicates import MOST, Fingerprint, fingerprint, near_duplicates
from components.data.readers.images import pixels_sha256
from pipeline.config.sections import Preprocess
from pipeline.console import console
from pipeline.stages.preprocessing.packing import SPLITS
from pipeline.stages.preprocessing.splitting import given_parts, join_scenes

_SHOWN = 3


@dataclass(frozen=True)
class SearchChunk:
    """A chunk of images whose duplicates are to be found.

    Attributes:
        items: items to read.
        raw: folder of the raw files.
        input_kind: kind of the task's inputs, "images", "ct" or "labelled".
        colour: whether images are read in colour or in grey.
        is_searched: whether fingerprints are computed, by which near-duplicates are found.
    """

    items: tuple[Item, ...]
    raw: Path
    input_kind: InputKind
    colour: Colour
    is_searched: bool


@dataclass(frozen=True)
class Seen:
    """What is kept of an image that was read.

    Attributes:
        name: name of the item.
        digest: SHA-256 of its clean pixels.
        fingerprint: fingerprint of its clean pixels; None if near-duplicates are not searched or the image has none.
    """

    name: str
    digest: str
    fingerprint: Fingerprint | None


@dataclass(frozen=True)
class Duplicates:
    """The duplicates among the items.

    Attributes:
        same: groups of items whose clean images are identical.
        alike: pairs of items whose images are near-duplicates.
    """

    same: list[list[str]]
    alike: list[tuple[str, str]]


def glances(
    items: Sequence[Item],
    files: Mapping[str, tuple[str, int]],
    raw: Path,
    input_kind: InputKind,
    colour: Colour,
    most: int,
) -> list[SearchChunk]:
    """Groups all clean images into chunks; each image is in one chunk.

    A chunk is full when it has ``most`` images or 32 MiB of files.

    Args:
        items: items of all splits.
        files: fetched files: name -> (SHA-256, size in bytes).
        raw: folder of the raw files.
        input_kind: kind of the task's inputs.
        colour: whether images are read in colour or in grey.
        most: largest number of images in a chunk.
    """
    clean: dict[tuple[str, int], Item] = {}
    for item in sorted(items, key=lambda item: item.name):
        clean.setdefault(_clean_file(item), item)
    is_searched = input_kind == "images" and len(clean) <= MOST
    if input_kind == "images" and not is_searched:
        console.print(
            f"{len(clean)} images are more than {MOST}: those that look alike are not searched, equal ones are"
        )
    chosen: list[Item] = []
    size, pieces = 0, []
    for (file, _), item in clean.items():
        if len(chosen) >= most or size >= 1 << 25:
            pieces.append(SearchChunk(tuple(chosen), raw, input_kind, colour, is_searched))
            chosen, size = [], 0
        chosen.append(replace(item, files=item.files[-1:]) if input_kind == "images" else item)
        size += files[file][1] if file in files and not item.number else 0
    return [*pieces, SearchChunk(tuple(chosen), raw, input_kind, colour, is_searched)]


def look(chunk: SearchChunk) -> list[Seen]:
    """Reads the images of a chunk; images that cannot be read or that have a single value are skipped."""
    seen = []
    for loaded in load(chunk.items, chunk.raw, chunk.input_kind, chunk.colour):
        if not isinstance(loaded, Problem) and loaded.clean.min() < loaded.clean.max():
            found = fingerprint(loaded.clean) if chunk.is_searched else None
            seen.append(Seen(loaded.item.name, pixels_sha256(loaded.clean), found))
    return seen


def find_duplicates(items: Sequence[Item], seen: Sequence[Seen]) -> Duplicates:
    """Finds the items with the same or similar image content, independently of their names."""
    by_name = {each.name: each for each in seen}
    looked = {_clean_file(item): by_name[item.name] for item in items if item.name in by_name}
    names: dict[str, list[str]] = defaultdict(list)  # digest -> items
    for item in sorted(items, key=lambda item: item.name):
        if each := looked.get(_clean_file(item)):
            names[each.digest].append(item.name)
    scenes = {item.name: item.scene for item in items}
    prints = {names[each.digest][0]: each.fingerprint for each in looked.values() if each.fingerprint is not None}
    alike = near_duplicates(prints, {name: scenes[name] for name in prints})
    return Duplicates([group for group in names.values() if len(group) > 1], alike)


def put_together(items: Sequence[Item], found: Duplicates, settings: Preprocess) -> list[Item]:
    """Joins the scenes of duplicates and prints which scenes were joined.

    Scenes that are assigned to different splits are not joined.

    Args:
        items: items of all splits.
        found: duplicates among them.
        settings: settings of the preprocess stage.

    Returns:
        The items with their new scenes.
    """
    scenes = {item.name: item.scene for item in items}
    given = given_parts(items, settings)
    same = [pair for group in found.same for pair in itertools.pairwise(_in_order([scenes[n] for n in group], given))]
    alike = [(scenes[one], scenes[other]) for one, other in found.alike]
    equal, joined = (join_scenes(pairs, given, settings) for pairs in (same, same + alike))
    _tell("the same image as others", equal)
    _tell(
        "a picture of others, coded, sized or cut otherwise,",
        {scene: name for scene, name in joined.items() if equal.get(scene, scene) == scene},
    )
    return [replace(item, scene=joined.get(item.scene, item.scene)) for item in items]


def _in_order(scenes: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Sorts scenes so that the scenes of one split are adjacent.

    The last split comes first. Scenes without an assigned split follow the scenes of that split.
    """
    last = max((SPLITS.index(given[scene]) for scene in scenes if scene in given), default=0)
    return sorted(
        set(scenes), key=lambda scene: (-SPLITS.index(given.get(scene, SPLITS[last])), scene not in given, scene)
    )


def _tell(what: str, joined: Mapping[str, str]) -> None:
    moved = [f"{scene} with {name}" for scene, name in sorted(joined.items()) if scene != name]
    if moved:
        more = f", and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
        shown = ", ".join(moved[:_SHOWN])
        show, are = ("scene shows", "is") if len(moved) == 1 else ("scenes show", "are")
        console.print(f"{len(moved)} {show} {what} and {are} put together with them: {shown}{more}", markup=False)


def same_apart(found: Duplicates, split: Mapping[str, str]) -> list[Problem]:
    """Finds items whose identical clean image is in two splits; the items of the later split are kept.

    The order of the splits is train, val, test. No test image is then used for training or model selection, and no
    validation image for training.

    Returns:
        The items to drop, with the reason.
    """
    problems = []
    for group in found.same:
        last, kept = max((SPLITS.index(split[name]), name) for name in group)
        reason = (
            f"the same clean image is in {SPLITS[last]} as {kept}; preprocess.splits or the data's own split say so"
        )
        problems += [Problem(name, reason) for name in group if SPLITS.index(split[name]) < last]
    return problems


def tell_alike_apart(found: Duplicates, split: Mapping[str, str]) -> None:
    """Prints which near-duplicates are in different splits."""
    apart = [
        f"{one} ({split[one]}) and {other} ({split[other]})" for one, other in found.alike if split[one] != split[other]
    ]
    if apart:
        more = f", and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
        console.print(
            f"preprocess.splits or the data's own split keep apart what looks alike: {', '.join(apart[:_SHOWN])}{more}",
            markup=False,
        )


def write_duplicates(found: Duplicates, split: Mapping[str, str], path: Path) -> None:
    """Writes a table of the duplicates, if there are any.

    Each row has the item, the other item, the kind ("same" or "alike") and the splits of both.

    Args:
        found: duplicates.
        split: item -> its split.
        path: file to write.
    """
    rows = [(name, group[0], "same") for group in found.same for name in group[1:]]
    rows += [(one, other, "alike") for one, other in found.alike]
    if rows:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "other", "kind", "part", "other_part"])
            writer.writerows([one, other, kind, split[one], split[other]] for one, other, kind in sorted(rows))


def _clean_file(item: Item) -> tuple[str, int]:
    """Returns the file of the clean image, which is the second file of a pair, and its number in that file."""
    return item.files[1 if len(item.files) > 1 else 0], item.number
