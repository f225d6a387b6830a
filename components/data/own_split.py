"""The split that data carry in folder names: train/ beside test/, DIV2K_train_HR beside DIV2K_valid_HR."""

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
"""Word in a folder's name, in upper or lower case -> the part that it names."""

_WORD = re.compile(
    rf"(?<![^\W_])({'|'.join(PARTS)})(?:(?:[_-][a-z]|[_-]?\d{{1,4}})$)?(?![^\W_])", re.IGNORECASE
)  # with the letter or the number of several folders of a part: test_a and test_b of RainDrop, train2017 of COCO


def folder_parts(names: Iterable[str]) -> dict[str, Part]:
    """Folder -> part, of the folders of relative file names that stand beside a folder of another such word.

    Two folders of one folder belong to a split if their names are equal but for the words, each of which stands alone
    or between marks: ``train`` and ``test``, ``train_blur`` and ``val_blur``, not ``train_station`` and ``crash_test``.
    One letter or a number at the end counts as part of the word: ``train`` and ``test_a``.
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
    """The part that the folders of files which belong together name; "" where none does.

    Args:
        files: relative names.
        parts: of `folder_parts`.

    Raises:
        ValueError: they name different parts.
    """
    found = {
        parts[str(above)]: str(above) for file in files for above in PurePosixPath(file).parents if str(above) in parts
    }
    if len(found) > 1:
        shown = " and ".join(f"{folder} ({part})" for part, folder in sorted(found.items()))
        raise ValueError(f"{next(iter(files))}: its folders name several parts of a split, {shown}: rename one of them")
    return next(iter(found), "")
