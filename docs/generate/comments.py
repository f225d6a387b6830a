"""The comments of a YAML file, each with the key that it describes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.tokens import CommentToken


def comments(source: str) -> dict[str, str]:
    """Finds the comments of a YAML file.

    A comment on the line of a key or of its value describes this key, and goes on in the lines below that begin in its
    column. A comment on lines of its own describes the key below it; at the top of the file, it describes the file.

    Returns:
        Dotted key -> comment on one line; "" -> the comment at the top.
    """
    tree = YAML().load(source)
    keys = dict(_keys(tree))  # line -> key
    lines = {line: (column, text) for token in _tokens(tree) for line, column, text in _lines(token)}
    found: dict[str, list[str]] = {"": []}
    key, waiting = "", list[str]()
    column_of_key = 0  # of the comment on the line of the last key
    for line, whole in enumerate(source.splitlines()):
        column, text = lines.get(line, (-1, ""))
        if line in keys:
            key, column_of_key = keys[line], column
            found[key], waiting = [*waiting, text], []
        elif whole.startswith("#") and not key:
            found[""].append(text)
        elif column == column_of_key or not whole.lstrip().startswith("#"):
            found[key].append(text)
        else:
            waiting.append(text)
            column_of_key = -2
    return {name: " ".join(filter(None, texts)) for name, texts in found.items() if any(texts)}


def _keys(node: Any, above: str = "") -> Iterator[tuple[int, str]]:
    """Yields (line, dotted key) of every key; of several keys on a line only the first."""
    if not isinstance(node, Mapping):
        return
    seen: set[int] = set()
    for key, value in node.items():
        line, name = node.lc.key(key)[0], f"{above}.{key}" if above else str(key)  # type: ignore[attr-defined]
        inner = [pair for pair in _keys(value, name) if pair[0] != line]
        yield from inner
        if line not in seen:
            seen.add(line)
            yield line, name


def _tokens(node: Any) -> Iterator[CommentToken]:
    """Yields the comments in a tree; some more than once."""
    kept = getattr(node, "ca", None)
    for token in _flat([kept.comment, kept.items, kept.end] if kept else []):
        if token.start_mark is not None:
            yield token
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _tokens(inner)


def _flat(value: Any) -> Iterator[CommentToken]:
    if isinstance(value, CommentToken):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _flat(inner)


def _lines(token: CommentToken) -> Iterator[tuple[int, int, str]]:
    """Yields (line, column, text) of each line of a comment."""
    for number, line in enumerate(token.value.splitlines()):
        bare = line.lstrip()
        if bare:
            column = len(line) - len(bare) if number else token.start_mark.column
            yield token.start_mark.line + number, column, bare.lstrip("#").strip()
