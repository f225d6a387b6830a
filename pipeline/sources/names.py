"""Decides which files are fetched, and which names are safe as paths."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from components.data.readers.images import IMAGE_SUFFIXES
from pipeline.errors import UserError

ARRAYS = frozenset({".npy", ".npz", ".mat", ".h5", ".hdf5", ".bin"})
SCANS = frozenset({".dcm", ".dicom", ".ima"})
LISTS = frozenset({".csv", ".txt"})
SUFFIXES = IMAGE_SUFFIXES | ARRAYS | SCANS | LISTS
KINDS = "images, .npy .npz .mat .h5 .bin arrays, DICOM scans, .csv and .txt lists"
HIDDEN = "hidden"  # reason for skipping a file; the other reasons are suffixes
_SHOWN_SUFFIXES = 6
HEAD = 132  # bytes that show whether a file without a suffix is a scan

# The files of the python editions of CIFAR-10 and CIFAR-100, which `preprocess` refuses with a conversion.
_CIFAR = re.compile(r"data_batch_\d|test_batch|batches\.meta|train|test|meta")


def is_hidden(name: str) -> bool:
    """Returns whether a part of the relative POSIX path begins with a dot, or is "__MACOSX" (which macOS adds)."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


def is_taken(name: str) -> bool | None:
    """Returns whether a file of this name is of a known kind; None if its first `HEAD` bytes decide (`is_scan`)."""
    last = name.rsplit("/", 1)[-1]
    suffix = PurePosixPath(last).suffix.lower()
    if suffix in SUFFIXES or _CIFAR.fullmatch(last):
        return True
    # Scans are often named by a number such as 1.2.840.10008.5.1.4.1.
    return None if not suffix or suffix[1:].isdigit() else False


def is_scan(head: bytes) -> bool:
    """Returns whether these first bytes of a file are those of a DICOM file."""
    return head[128:132] == b"DICM"


def suffix_of(name: str) -> str:
    """Returns the suffix by which a skipped file is counted."""
    return PurePosixPath(name).suffix.lower() or "no suffix"


def choose(
    names: Iterable[str],
    find_scans: Callable[[list[str]], list[bool]],
    where: str,
    left_out: Counter[str] | None = None,
) -> tuple[list[str], Counter[str]]:
    """Chooses the files of known kinds and checks their names.

    Args:
        names: relative POSIX paths.
        find_scans: called with the names whose kind the name does not show; returns whether each file is a scan.
        where: name of the source in messages.
        left_out: files that were skipped before, counted by reasons of more than one word.

    Returns:
        (chosen names, sorted; number of skipped files by reason, which is their suffix or "hidden").

    Raises:
        UserError: no file is chosen, or `check_names` refuses a name.
    """
    names = list(names)
    visible = [name for name in names if not is_hidden(name)]
    unclear = [name for name in visible if is_taken(name) is None]
    scans = {name for name, found in zip(unclear, find_scans(unclear), strict=True) if found}
    taken = sorted(name for name in visible if is_taken(name) or name in scans)
    skipped = Counter(suffix_of(name) for name in set(visible) - set(taken))
    skipped += Counter({HIDDEN: len(names) - len(visible)}) + (left_out or Counter())
    if not taken:
        found = f" ({skipped_text(skipped)})" if skipped else ""
        raise UserError(f"{where}: {len(names)} files{found}, none of a known kind: {KINDS}")
    check_names(taken, where)
    return taken, skipped


def skipped_text(skipped: Counter[str]) -> str:
    """Formats the skipped files, for example '3 .pdf, 1 .md, 2 hidden'; empty if nothing was skipped.

    Of the suffixes, only the most frequent ones are shown. All other reasons are shown.
    """
    suffixes = Counter({reason: number for reason, number in skipped.items() if reason.startswith((".", "no suffix"))})
    parts = [f"{number} {suffix}" for suffix, number in suffixes.most_common(_SHOWN_SUFFIXES)]
    if len(suffixes) > _SHOWN_SUFFIXES:
        rest = suffixes.total() - sum(number for _, number in suffixes.most_common(_SHOWN_SUFFIXES))
        parts.append(f"{rest} of {len(suffixes) - _SHOWN_SUFFIXES} more kinds")
    return ", ".join(parts + [f"{number} {reason}" for reason, number in skipped.items() if reason not in suffixes])


def unsafe(name: str) -> str | None:
    """Returns the reason why a name is unsafe as a path below a folder; None if it is safe."""
    parts = name.split("/")
    if not name or name.startswith("/"):
        return "an absolute path" if name else "an empty name"
    if ".." in parts:
        return "a path that leads out of its folder"
    if "" in parts or "." in parts:
        return "a path with empty parts"
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        return "a path of Windows, with a backslash or a drive"
    if any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) < 0xE000 for letter in name):
        return "a name with control characters or broken letters"
    if any(len(part.encode()) > 255 for part in parts) or len(name.encode()) > 3000:
        return "a name that is too long for a file"
    return None


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses names that are unsafe as paths, that occur twice, or that are both a file and a folder.

    Raises:
        UserError: a name is refused; the message has the first one.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if reason := unsafe(name):
            raise UserError(f"{where}: {shown(name)}: {reason}; rename it at the source")
        if name in seen:
            raise UserError(f"{where}: {shown(name)}: comes twice; take one of them away at the source")
        seen.add(name)
        folders.update(str(parent) for parent in PurePosixPath(name).parents)
    if both := sorted(seen & folders):
        raise UserError(f"{where}: {shown(both[0])}: is both a file and a folder; rename one of them at the source")


def shown(name: str) -> str:
    """Returns a name that is safe to print: special characters are escaped, and long names are shortened."""
    text = name.encode("unicode_escape").decode() if unsafe(name) else name
    return text if len(text) <= 120 else f"{text[:117]}..."
