"""Which files are taken, and which names may become paths here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from components.data.images import IMAGE_SUFFIXES
from pipeline.errors import UserError

ARRAYS = frozenset({".npy", ".npz", ".mat", ".h5", ".hdf5", ".bin"})
SCANS = frozenset({".dcm", ".dicom", ".ima"})
LISTS = frozenset({".csv", ".txt"})
SUFFIXES = IMAGE_SUFFIXES | ARRAYS | SCANS | LISTS
KINDS = "images, .npy .npz .mat .h5 .bin arrays, DICOM scans, .csv and .txt lists"
HIDDEN = "hidden"  # the reason, beside suffixes
_SHOWN_SUFFIXES = 6
HEAD = 132  # bytes that show whether a file without a suffix is a scan

# The files of CIFAR-10 and CIFAR-100 for Python.
_CIFAR = re.compile(r"data_batch_\d|test_batch|batches\.meta|train|test|meta")


def is_hidden(name: str) -> bool:
    """Whether a part of the relative POSIX path begins with a dot (or is what macOS adds to archives)."""
    parts = name.split("/")
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


def is_taken(name: str) -> bool | None:
    """Whether a file of this name is of a known kind; None: its first `HEAD` bytes decide (`is_scan`)."""
    last = name.rsplit("/", 1)[-1]
    suffix = PurePosixPath(last).suffix.lower()
    if suffix in SUFFIXES or _CIFAR.fullmatch(last):
        return True
    # Scans are often called by their number, as 1.2.840.10008.5.1.4.1.
    return None if not suffix or suffix[1:].isdigit() else False


def is_scan(head: bytes) -> bool:
    """Whether a file begins as DICOM does."""
    return head[128:132] == b"DICM"


def suffix_of(name: str) -> str:
    """The suffix as it is counted among the skipped."""
    return PurePosixPath(name).suffix.lower() or "no suffix"


def choose(
    names: Iterable[str],
    find_scans: Callable[[list[str]], list[bool]],
    where: str,
    left_out: Counter[str] | None = None,
) -> tuple[list[str], Counter[str]]:
    """(names that are taken, sorted and checked; why others are not -> how many: their suffix, or hidden).

    Args:
        names: relative POSIX paths.
        find_scans: for names that leave it open, whether each file is a scan.
        where: what messages call the source.
        left_out: what was left out before, by reasons of more than one word.

    Raises:
        UserError: none is taken, or `check_names` refuses one.
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
    """As '3 .pdf, 1 .md, 2 hidden'; empty if nothing was skipped. Of suffixes the most frequent, of reasons all."""
    suffixes = Counter({reason: number for reason, number in skipped.items() if reason.startswith((".", "no suffix"))})
    parts = [f"{number} {suffix}" for suffix, number in suffixes.most_common(_SHOWN_SUFFIXES)]
    if len(suffixes) > _SHOWN_SUFFIXES:
        rest = suffixes.total() - sum(number for _, number in suffixes.most_common(_SHOWN_SUFFIXES))
        parts.append(f"{rest} of {len(suffixes) - _SHOWN_SUFFIXES} more kinds")
    return ", ".join(parts + [f"{number} {reason}" for reason, number in skipped.items() if reason not in suffixes])


def unsafe(name: str) -> str | None:
    """Why a name must not become a path below a folder of ours; None if it may."""
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
    """Refuses names that must not become paths, that come twice, or that are both a file and a folder.

    Raises:
        UserError: naming the first of them.
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
    """A name that is fit to print."""
    text = name.encode("unicode_escape").decode() if unsafe(name) else name
    return text if len(text) <= 120 else f"{text[:117]}..."
