"""What lies where a file should be: pointers of Git LFS and git-annex, web pages, nothing."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that tell


def placeholder(head: bytes) -> str:
    """What a file that begins so is instead of data, and what to do; empty if it is none of the known."""
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
    """The same of a file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return placeholder(file.read(HEAD))
    except OSError:
        return ""
