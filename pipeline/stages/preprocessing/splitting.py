"""Assigns each scene to the train, val or test split.

A scene is assigned as ``preprocess.splits`` lists it. Other scenes are assigned as the folders of the data name their
split, if they do, and the remaining ones by the hash of their names.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from components.data.items import Item
from pipeline.config.sections import Preprocess
from pipeline.errors import UserError
from pipeline.stages.preprocessing.auxiliary import place_of
from pipeline.stages.preprocessing.packing import SPLITS


def given_parts(items: Sequence[Item], settings: Preprocess) -> dict[str, str]:
    """Maps each scene that ``preprocess.splits`` lists, or that the data themselves assign, to its split.

    Raises:
        UserError: a scene is listed in several splits, or the data assign an unlisted scene to several splits.
    """
    own: dict[str, dict[str, str]] = defaultdict(dict)  # scene -> split -> an item
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
    """Returns the split whose list in ``preprocess.splits`` has a pattern that matches the scene; "" if none matches.

    Raises:
        UserError: the lists of several splits match.
    """
    parts = [part for part in SPLITS if any(fnmatch.fnmatchcase(scene, p) for p in getattr(settings.splits, part))]
    if len(parts) > 1:
        raise UserError(f"preprocess.splits: scene '{scene}' is in {' and '.join(parts)}: keep one of them")
    return parts[0] if parts else ""


def join_scenes(alike: Iterable[tuple[str, str]], given: Mapping[str, str], settings: Preprocess) -> dict[str, str]:
    """Maps each scene that has duplicates to the scene that it is joined with.

    A scene without an assigned split takes the split of the assigned scenes that it is connected to. Test scenes have
    priority over validation scenes, and these over training scenes. Scenes with different splits are not joined. Joined
    scenes get the name of a listed scene, if there is one.

    Args:
        alike: pairs of scenes with duplicate images.
        given: result of `given_parts`.
        settings: settings of the preprocess stage.
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
    """Maps each item to its split, which is the split of its scene.

    Raises:
        UserError: a scene is listed in several splits, the data assign it to several splits, or a split is empty.
    """
    given = given_parts(items, settings)
    split = split_scenes(sorted({item.scene for item in items}), settings, given)
    return {item.name: split[item.scene] for item in items}


def split_scenes(scenes: Sequence[str], settings: Preprocess, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Maps each scene to its split: as listed, else as the data assign it, else by the hash of the scene's name.

    With the hash a scene keeps its split when other scenes are added or removed. If the data have their own split but
    lack val or test, the missing split is drawn from their training scenes and from the scenes without a split.

    Args:
        scenes: names of the scenes.
        settings: settings of the preprocess stage.
        given: result of `given_parts`; None if the data have no split of their own.

    Raises:
        UserError: a scene is listed in several splits, or a split is empty.
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
    # With few scenes the hash may leave a split empty. The first scene in the order of the hashes whose split has more
    # than one scene is then moved there.
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
    """Returns the message about the data's own split; "" if they have none."""
    given = [item.part for item in items if item.part]
    if not given:
        return ""
    counts = ", ".join(f"{part} {given.count(part)}" for part in SPLITS if part in given)
    lacking = [part for part in SPLITS[1:] if part not in given]
    dealt = f"; {' and '.join(lacking)} dealt out of train" if lacking else ""
    overruled = len({item.scene for item in items if item.part and listed_part(item.scene, settings)})
    lists = f"; preprocess.splits overrules it for {overruled} scenes" if overruled else ""
    return f"the data's own split is kept, in images: {counts}{dealt}{lists}"
