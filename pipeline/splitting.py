"""Which part of the split a scene is in: as ``preprocess.splits`` lists it, else as the data's own folders say, else
dealt out by the hash of its name."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from components.data.items import Item
from pipeline.auxiliary import place_of
from pipeline.errors import UserError
from pipeline.packing import SPLITS
from pipeline.params import Preprocess


def given_parts(items: Sequence[Item], settings: Preprocess) -> dict[str, str]:
    """scene -> part, of the scenes that ``preprocess.splits`` lists or that the data themselves put in one.

    Raises:
        UserError: a scene is listed twice; or the data put it in two parts, and it is not listed.
    """
    own: dict[str, dict[str, str]] = defaultdict(dict)  # scene -> part -> an item
    for item in items:
        own[item.scene].setdefault(item.part, item.name)
    given = {}
    for scene in sorted(own):
        examples = {part: name for part, name in own[scene].items() if part}
        if listed := listed_part(scene, settings):
            given[scene] = listed
        elif len(examples) > 1:
            shown = " and ".join(f"{part} ({name})" for part, name in sorted(examples.items()))
            raise UserError(
                f"preprocess.splits: the data's own split has scene '{scene}' in {shown}: list the scene in one part, "
                "or let preprocess.scene_pattern tell its images apart"
            )
        elif examples:
            given[scene] = next(iter(examples))
    return given


def listed_part(scene: str, settings: Preprocess) -> str:
    """The part whose list in ``preprocess.splits`` has a pattern that matches the scene; "" if none has.

    Raises:
        UserError: several have.
    """
    parts = [part for part in SPLITS if any(fnmatch.fnmatchcase(scene, p) for p in getattr(settings.splits, part))]
    if len(parts) > 1:
        raise UserError(f"preprocess.splits: scene '{scene}' is in {' and '.join(parts)}: keep one of them")
    return parts[0] if parts else ""


def join_scenes(alike: Iterable[tuple[str, str]], given: Mapping[str, str], settings: Preprocess) -> dict[str, str]:
    """scene -> the scene that it is put together with, of scenes that show the same and can be in one part.

    Scenes that are given no part follow those that are, of the test before validation before training. Scenes given
    to different parts stay apart. The scene that the others take the name of is a listed one, if there is any.

    Args:
        alike: pairs of scenes that show the same.
        given: of `given_parts`.
        settings: of the stage.
    """
    neighbours: dict[str, set[str]] = defaultdict(set)
    for one, other in alike:
        neighbours[one].add(other)
        neighbours[other].add(one)
    parts = {scene: part for scene, part in given.items() if scene in neighbours}
    for part in reversed(SPLITS):
        waiting = [scene for scene in parts if parts[scene] == part]
        while waiting:
            followers = neighbours[waiting.pop()] - parts.keys()
            parts |= dict.fromkeys(followers, part)
            waiting += followers
    joined: dict[str, str] = {}
    for scene in sorted(neighbours, key=lambda each: (not listed_part(each, settings), each not in given, each)):
        waiting = [] if scene in joined else [scene]
        while waiting:
            each = waiting.pop()
            joined[each] = scene
            waiting += [o for o in neighbours[each] if o not in joined and parts.get(o) == parts.get(each)]
    return joined


def split_items(items: Sequence[Item], settings: Preprocess) -> dict[str, str]:
    """item -> train, val or test, by scene.

    Raises:
        UserError: a scene is listed twice, the data put it in two parts, or a split stays empty.
    """
    given = given_parts(items, settings)
    split = split_scenes(sorted({item.scene for item in items}), settings, given)
    return {item.name: split[item.scene] for item in items}


def split_scenes(scenes: Sequence[str], settings: Preprocess, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """scene -> train, val or test: as listed, else as given, else dealt out by the hash of the scene's name.

    Dealing by hash keeps each scene on its side when others come or go. Where the data have a split of their own, a
    part that it lacks is dealt out of its training scenes and of those that it leaves open.

    Args:
        scenes: their names.
        settings: of the stage.
        given: of `given_parts`, where the data may have a split of their own.

    Raises:
        UserError: a scene is listed twice, or a split stays empty.
    """
    listed = {scene: listed_part(scene, settings) for scene in scenes}
    own = {scene: part for scene, part in (given or {}).items() if not listed[scene]}
    split = {scene: listed[scene] or own.get(scene, "").replace("train", "") for scene in scenes}
    dealt = [part for part in SPLITS if part == "train" or part not in own.values()]
    val, test = (getattr(settings.remaining, part) if part in dealt else 0.0 for part in SPLITS[1:])
    rest = sorted((s for s in scenes if not split[s]), key=lambda s: hashlib.sha256(s.encode()).digest())
    for scene in rest:
        place = place_of(scene)
        split[scene] = "val" if place < val else "test" if place < val + test else "train"
    # With few scenes the hash may leave a split empty: the scenes next in the order of hashes go there.
    for part in dealt:
        sizes = {other: list(split.values()).count(other) for other in SPLITS}
        movable = next((s for s in rest if sizes[split[s]] > 1), None) if not sizes[part] else None
        if movable:
            split[movable] = part
    if missing := [part for part in SPLITS if part not in split.values()]:
        raise UserError(
            f"preprocess.splits: no scene for {' and '.join(missing)} among {len(scenes)} scenes: "
            "bring at least 3, or name them in preprocess.splits"
        )
    return split


def own_split_text(items: Sequence[Item], settings: Preprocess) -> str:
    """What is said of a split that the data have of their own; "" where they have none."""
    given = [item.part for item in items if item.part]
    if not given:
        return ""
    counts = ", ".join(f"{part} {given.count(part)}" for part in SPLITS if part in given)
    lacking = [part for part in SPLITS[1:] if part not in given]
    dealt = f"; {' and '.join(lacking)} dealt out of train" if lacking else ""
    overruled = len({item.scene for item in items if item.part and listed_part(item.scene, settings)})
    lists = f"; preprocess.splits overrules it for {overruled} scenes" if overruled else ""
    return f"the data's own split is kept, in images: {counts}{dealt}{lists}"
