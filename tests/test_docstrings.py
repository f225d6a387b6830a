"""Docstrings name the parameters and attributes that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix() for top in ("components", "pipeline") for path in (ROOT / top).rglob("*.py")
)

Documented = ast.FunctionDef | ast.ClassDef


def listed(docstring: str, section: str) -> list[str]:
    """The names in a section of a docstring; ``a, b: text`` lists two."""
    found = re.search(rf"^( *){section}:\n((?:\1 +.*\n?|\n)+)", docstring, re.MULTILINE)
    if not found:
        return []
    first = re.match(r" *", found[2])
    assert first
    entries = re.findall(rf"^{first[0]}([\w*][\w*, ]*):", found[2], re.MULTILINE)
    return [name.strip(" *") for entry in entries for name in entry.split(",")]


def parameters(node: ast.FunctionDef) -> set[str]:
    """Those of a function."""
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in named if argument}


def attributes(node: ast.ClassDef) -> set[str]:
    """Fields, properties and what methods assign to ``self``."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.AnnAssign | ast.Assign):
            targets = [inner.target] if isinstance(inner, ast.AnnAssign) else inner.targets
            for target in (each for whole in targets for each in ast.walk(whole)):
                found |= {target.id} if isinstance(target, ast.Name) else set()
                found |= {target.attr} if isinstance(target, ast.Attribute) else set()
        elif isinstance(inner, ast.FunctionDef):
            found |= {inner.name} | (parameters(inner) if inner.name == "__init__" else set())
    return found


def documented(path: Path) -> Iterator[tuple[Documented, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield node, text + "\n"


@pytest.mark.parametrize("name", FILES)
def test_docstrings_name_parameters_and_attributes_that_are_there(name: str) -> None:
    unknown = []
    for node, text in documented(ROOT / name):
        known = parameters(node) if isinstance(node, ast.FunctionDef) else attributes(node)
        sections = ("Args",) if isinstance(node, ast.FunctionDef) else ("Args", "Attributes")
        unknown += [
            f"{node.name}: {word}" for section in sections for word in listed(text, section) if word not in known
        ]
    assert unknown == []


def test_a_section_lists_its_names() -> None:
    text = "One line.\n\nArgs:\n    a, b: two\n        or: not a name\n    *rest: others\n\nReturns:\n    c: no\n"
    assert listed(text, "Args") == ["a", "b", "rest"]
