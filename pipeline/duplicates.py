"""Images that show the same under several names: found before the split, so that they are on one side of it."""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from components.data.images import pixels_sha256
from components.data.items import Colour, Item, Problem, Reads, load
from components.data.near_duplicates import MOST, Fingerprint, fingerprint, near_duplicates
from pipeline.console import console
from pipeline.packing import SPLITS
from pipeline.params import Preprocess
from pipeline.splitting import given_parts, join_scenes

_SHOWN = 3


@dataclass(frozen=True)
class Glance:
    """Attributes: items to look at, the folder of the raw files, how they are read, and whether fingerprints are
    wanted.
    """

    items: tuple[Item, ...]
    raw: Path
    reads: Reads
    colour: Colour
    is_searched: bool


@dataclass(frozen=True)
class Seen:
    """Attributes: an item, the SHA-256 of its clean pixels, and their fingerprint, if near-duplicates are searched."""

    name: str
    digest: str
    fingerprint: Fingerprint | None


@dataclass(frozen=True)
class Duplicates:
    """Attributes: the groups of items whose clean images are the same, and pairs of items whose images look alike."""

    same: list[list[str]]
    alike: list[tuple[str, str]]


def glances(
    items: Sequence[Item], files: Mapping[str, tuple[str, int]], raw: Path, reads: Reads, colour: Colour, most: int
) -> list[Glance]:
    """All clean images in pieces of at most ``most`` images and 32 MiB of files, each image once."""
    clean: dict[tuple[str, int], Item] = {}
    for item in sorted(items, key=lambda item: item.name):
        clean.setdefault(_clean_file(item), item)
    is_searched = reads == "images" and len(clean) <= MOST
    if reads == "images" and not is_searched:
        console.print(
            f"{len(clean)} images are more than {MOST}: those that look alike are not searched, equal ones are"
        )
    chosen: list[Item] = []
    size, pieces = 0, []
    for (file, _), item in clean.items():
        if len(chosen) >= most or size >= 1 << 25:
            pieces.append(Glance(tuple(chosen), raw, reads, colour, is_searched))
            chosen, size = [], 0
        chosen.append(replace(item, files=item.files[-1:]) if reads == "images" else item)
        size += files[file][1] if file in files and not item.number else 0
    return [*pieces, Glance(tuple(chosen), raw, reads, colour, is_searched)]


def look(glance: Glance) -> list[Seen]:
    """What is kept of each image of a piece; those that cannot be read, or show nothing, are passed over."""
    seen = []
    for loaded in load(glance.items, glance.raw, glance.reads, glance.colour):
        if not isinstance(loaded, Problem) and loaded.clean.min() < loaded.clean.max():
            found = fingerprint(loaded.clean) if glance.is_searched else None
            seen.append(Seen(loaded.item.name, pixels_sha256(loaded.clean), found))
    return seen


def find_duplicates(items: Sequence[Item], seen: Sequence[Seen]) -> Duplicates:
    """The items that show the same by content, whatever they are called."""
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
    """The items, those that show the same in one scene unless their scenes are given different parts; says so."""
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
    """Scenes of one part follow each other, and those that are given none the scenes of the last part."""
    last = max((SPLITS.index(given[scene]) for scene in scenes if scene in given), default=0)
    return sorted(
        set(scenes), key=lambda scene: (-SPLITS.index(given.get(scene, SPLITS[last])), scene not in given, scene)
    )


def _tell(what: str, joined: Mapping[str, str]) -> None:
    moved = [f"{scene} with {name}" for scene, name in sorted(joined.items()) if scene != name]
    if moved:
        more = f", and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
        shown = ", ".join(moved[:_SHOWN])
        console.print(f"{len(moved)} scenes show {what} and are put together with them: {shown}{more}", markup=False)


def same_apart(found: Duplicates, split: Mapping[str, str]) -> list[Problem]:
    """Items whose clean image is in two parts all the same: all but those of the later part are to go.

    So nothing is tested on that was trained on, and nothing chosen by what it is tested on.
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
    """Says which images look alike and are in two parts all the same."""
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
    """Lists what shows the same, if anything does: the item, another one, "same" or "alike", and their parts."""
    rows = [(name, group[0], "same") for group in found.same for name in group[1:]]
    rows += [(one, other, "alike") for one, other in found.alike]
    if rows:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "other", "kind", "part", "other_part"])
            writer.writerows([one, other, kind, split[one], split[other]] for one, other, kind in sorted(rows))


def _clean_file(item: Item) -> tuple[str, int]:
    """Where the clean image lies: of a pair the second file."""
    return item.files[1 if len(item.files) > 1 else 0], item.number
