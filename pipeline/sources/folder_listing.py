"""Lists the files below a folder, including those behind symbolic links, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sources.names import is_hidden

_NAMED = 3


@dataclass
class Tree:
    """The content of a folder; all names are relative POSIX paths.

    Attributes:
        files: files.
        broken: broken links, which are left out.
        unreadable: folders that cannot be read.
        repeated: folders that were reached before, by a loop of links or by two links.
        hidden: hidden folders and hidden links to folders, which are left out.
        other: entries that are neither files nor folders.
    """

    files: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def left_out(self) -> Counter[str]:
        """Counts what is left out, by a reason with some of the names."""
        reasons = {
            "broken links": self.broken,
            "folders that cannot be read": self.unreadable,
            "links to folders taken already": self.repeated,
            "hidden folders": self.hidden,
            "neither files nor folders": self.other,
        }
        return Counter({f"{reason} ({_listed(names)})": len(names) for reason, names in reasons.items() if names})


def read_tree(folder: Path) -> Tree:
    """Lists every file below a folder, except those in hidden folders, sorted.

    Each folder is read once: by its own path if it lies below ``folder``, else by the first link to it.

    Raises:
        OSError: the folder itself cannot be read.
    """
    tree = Tree()
    seen: set[tuple[int, int]] = set()
    links: list[str] = []
    waiting = [""]
    while waiting or links:
        name = waiting.pop(0) if waiting else links.pop(0)
        try:
            status = (folder / name).stat()
            if (status.st_dev, status.st_ino) in seen:
                tree.repeated.append(name)
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder / name), key=lambda entry: entry.name)
        except OSError:
            if not name:
                raise
            tree.unreadable.append(name)
            continue
        for entry in entries:
            path = f"{name}/{entry.name}" if name else entry.name
            kinds = {"file": tree.files, "folder": waiting, "link": links, "broken": tree.broken, "other": tree.other}
            kind = _kind(entry)
            is_left = kind in ("folder", "link") and is_hidden(entry.name)
            (tree.hidden if is_left else kinds[kind]).append(path)
        links.sort()
    for names in (tree.files, tree.broken, tree.unreadable, tree.repeated, tree.hidden, tree.other):
        names.sort()
    return tree


def _kind(entry: os.DirEntry[str]) -> str:
    """Returns "file" (also for a link to a file), "folder", "link" (to a folder), "broken" or "other"."""
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or into a folder that cannot be entered
        return "broken"
    return "broken" if entry.is_symlink() and not Path(entry.path).exists() else "other"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
