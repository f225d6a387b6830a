"""The split that a data set defines by folder names: train/ beside test/, DIV2K_train_HR beside DIV2K_valid_HR."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

Part = Literal["train", "val", "test", ""]

PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
"""Word in a folder's name, in upper or lower case -> part of the split."""

_WORD = re.compile(
    rf"(?<![^\W_])({'|'.join(PARTS)})(?:(?:[_-][a-z]|[_-]?\d{{1,4}})$)?(?![^\W_])", re.IGNORECASE
)  # followed by a letter or number if a part has several folders: test_a and test_b of RainDrop, train2017 of COCO


def folder_parts(names: Iterable[str]) -> dict[str, Part]:
    """Find the folders that define a split, from relative file names; return folder -> part.

    A folder is returned only if another folder beside it names another part. Two folders in the same parent folder
    belong to one split if their names differ only in the words of `PARTS`. A word must stand alone or between
    separators. Examples are ``train`` and ``test``, or ``train_blur`` and ``val_blur``, but not ``train_station`` and
    ``crash_test``. One letter or a number at the end counts as part of the word: ``train`` and ``test_a``.
    """
    beside: dict[tuple[str, str], dict[str, str]] = defaultdict(
        dict
    )  # (folder above, rest of the name) -> path -> word
    for folder in {str(above) for name in names for above in PurePosixPath(name).parents}:
        path = PurePosixPath(folder)
        if len(words := list(_WORD.finditer(path.name))) == 1:
            rest = _WORD.sub("/", path.name).lower()
            beside[str(path.parent), rest][folder] = words[0][1].lower()
    return {
        folder: PARTS[word]
        for words in beside.values()
        if len(set(words.values())) > 1
        for folder, word in words.items()
    }


def part_of(files: Iterable[str], parts: dict[str, Part]) -> Part:
    """Return the part that the folders of some files name; "" if no folder names a part.

    Args:
        files: relative names of files that belong together.
        parts: result of `folder_parts`.

    Raises:
        ValueError: the folders name different parts.
    """
    found = {
        parts[str(above)]: str(above) for file in files for above in PurePosixPath(file).parents if str(above) in parts
    }
    if len(found) > 1:
        shown = " and ".join(f"{folder} ({part})" for part, folder in sorted(found.items()))
        raise ValueError(f"{next(iter(files))}: its folders name several parts of a split, {shown}: rename one of them")
    return next(iter(found), "")
