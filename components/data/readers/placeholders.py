"""Detection of files that are not the expected data: pointers of Git LFS and git-annex, web pages, empty files."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # number of first bytes that are examined


def placeholder(head: bytes) -> str:
    """Describe what a file with these first bytes is and what to do; empty if it is not a known placeholder."""
    if not head:
        return "an empty file: copy or download it again"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer, not the file itself: run 'git lfs pull' where it comes from, then fetch again"
    if head.startswith(b"/annex/objects/"):
        return "a git-annex pointer, not the file itself: run 'git annex get' where it comes from, then fetch again"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, perhaps that of a failed download: download the file again"
    return ""


def placeholder_at(path: Path) -> str:
    """Describe the placeholder at a path, see `placeholder`; empty if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return placeholder(file.read(HEAD))
    except OSError:
        return ""
