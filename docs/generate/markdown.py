"""Parts of a Markdown page: text without markup, code, tables, values; and the docstrings under fields."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

_CODE = re.compile(r"(``.+?``|`.+?`)")


def text(plain: str) -> str:
    """Returns plain text as Markdown on one line; what stands between backticks becomes code."""
    parts = _CODE.split(" ".join(plain.split()))
    return "".join(code(part.strip("`")) if _CODE.fullmatch(part) else _escaped(part) for part in parts)


def _escaped(part: str) -> str:
    return re.sub(r"[\\*$~]|(?<![^\W_])_|_(?![^\W_])|\](?=\()", r"\\\g<0>", part).replace("<", "&lt;")


def code(plain: str) -> str:
    """Returns text in the typeface of code, also where it holds backticks."""
    return f"`` {plain} ``" if "`" in plain else f"`{plain}`"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are Markdown.

    Args:
        titles: titles of the columns.
        rows: cells of each row.
    """
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in line) + " |" for line in lines)


def page(title: str, *blocks: str) -> str:
    """Returns a page that says that it is generated."""
    note = "<!-- Written by `make docs` from the code. Change the code and run it again. -->"
    return "\n\n".join([note, f"# {title}", *(block.strip("\n") for block in blocks if block)]) + "\n"


def in_yaml(value: object) -> str:
    """Returns a plain value as YAML on one line, as params.yaml would hold it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{in_yaml(key)}: {in_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_yaml, value)) + "]"
    writer, stream = YAML(typ="safe", pure=True), StringIO()
    writer.default_flow_style, writer.width = True, 10_000
    writer.dump([value], stream)
    return stream.getvalue().strip().removeprefix("[").removesuffix("]")


def first_paragraph(documented: Any) -> str:
    """Returns the first paragraph of the docstring of a class or function, on one line."""
    return " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())


def docs_of_fields(kind: type) -> dict[str, str]:
    """Returns the docstring under each field of a class and of its base classes: name -> text."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.partition(".")[0] in ("components", "pipeline"):
            found |= docs_of_assignments(_class_body(base))
    return found


def docs_of_assignments(body: Sequence[ast.stmt]) -> dict[str, str]:
    """Returns the string that follows each assignment: name -> text on one line."""
    found: dict[str, str] = {}
    for statement, after in itertools.pairwise(body):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(after.value.value, str):
                found[target.id] = " ".join(after.value.value.split())
    return found


def _class_body(kind: type) -> Sequence[ast.stmt]:
    body: Sequence[ast.stmt] = ast.parse(Path(inspect.getsourcefile(kind) or "").read_text(encoding="utf-8")).body
    for name in kind.__qualname__.split("."):
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name).body
    return body
