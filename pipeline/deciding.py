"""Which files decide a result: computed from the imports, not listed by hand.

A run or a study may only go on from what the same deciding code wrote, so its identity holds ``deciding_hash``. A
comment, a docstring or another layout of the same lines changes no hash. ``dvc.yaml`` names files and folders for DVC,
and a test holds them against ``deciding_files``.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("components", "pipeline")

_BESIDE = (".c", ".cu", ".csv", ".json", ".toml", ".txt", ".yaml")

EXCLUDED = {
    "pipeline/cluster/controller.py": "tells of losses, and asks for workers",
    "pipeline/cluster/drivers.py": "which process runs a trial",
    "pipeline/cluster/loopback.py": "where a local Ray listens",
    "pipeline/cluster/quick_trainer.py": "which processes Ray Train starts beside the workers",
    "pipeline/cluster/room.py": "what fits on the nodes; the number of workers that it gives is part of the identity",
    "pipeline/cluster/session.py": "starts Ray, or connects to it",
    "pipeline/cluster/spread.py": "where chunks are worked on; a chunk has the same bytes everywhere",
    "pipeline/cluster/study_storage.py": "the database of studies",
    "pipeline/cluster/trial_room.py": "how many trials run at a time",
    "pipeline/console.py": "prints",
    "pipeline/errors.py": "kinds of errors",
    "pipeline/interrupts.py": "Ctrl-C",
    "pipeline/lineage.py": "the git commit, which is a tag in MLflow alone",
    "pipeline/refusal.py": "the text of errors",
    "pipeline/sqlite.py": "the address of a database",
    "pipeline/step_cost.py": "measures times, which no output holds",
    "pipeline/storage/bill.py": "lists files by their hash",
    "pipeline/storage/checkpoints.py": "carries bytes, which are checked against their hash",
    "pipeline/storage/delivery.py": "carries packs, which are checked against their hash",
    "pipeline/storage/folder_place.py": "carries bytes",
    "pipeline/storage/places.py": "carries bytes",
    "pipeline/storage/s3_place.py": "carries bytes",
    "pipeline/tracking": "records what was done; no output is made from it",
}
"""File or folder -> why no result depends on it, although deciding code imports it."""

EXCLUDED_FOR = {
    "pipeline.fetch": {
        "components/tasks": "the check of the other sections of params.yaml",
        "components/training": "the check of the other sections of params.yaml",
        "pipeline/task_params.py": "the other sections of params.yaml",
    },
}
"""Entry module -> the same for it alone: a source may be large and far, and is not fetched again for another loss."""


@cache
def deciding_files(*entries: str) -> tuple[str, ...]:
    """The files that the results of these modules depend on, relative to the project's root, sorted.

    They are the modules of ``components`` and ``pipeline`` that can be reached over imports, also over those inside
    functions, but not over those for type checkers alone; without ``EXCLUDED``; and with what lies beside such a module
    under the same name, as ``fused.c`` beside ``fused.py``. A name that a package re-exports leads to the module that
    defines it, and not to everything else that the package imports.

    Args:
        entries: dotted names of modules.

    Raises:
        ValueError: there is no such module.
    """
    return tuple(sorted(set().union(*map(_reachable, entries))))


@cache
def _reachable(entry: str) -> frozenset[str]:
    """The same of one module."""
    excluded = {*EXCLUDED, *EXCLUDED_FOR.get(entry, {})}
    found: set[str] = set()
    followed: set[str] = set()
    waiting = [(entry, "")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        module, name = step = waiting.pop()
        path = _file_of(module)
        if path is None:
            raise ValueError(f"{module}: there is no such module in {ROOT}")
        relative = path.relative_to(ROOT).as_posix()
        if step in seen or any(relative == name or relative.startswith(f"{name}/") for name in excluded):
            continue
        seen.add(step)
        if name and path.name == "__init__.py":
            if _file_of(f"{module}.{name}"):
                waiting.append((f"{module}.{name}", ""))
                continue
            if source := _exports(path, module).get(name):
                found.add(relative)
                waiting.append(source)
                continue
        if relative in followed:
            continue
        followed.add(relative)
        found.add(relative)
        found |= {beside.relative_to(ROOT).as_posix() for beside in _beside(path)}
        waiting += _imports(path, module)
    return frozenset(found)


@cache
def deciding_hash(*entries: str) -> str:
    """12 hexadecimal digits of the deciding files: of Python its meaning (``canonical``), of others their bytes."""
    digest = hashlib.sha256()
    for name in deciding_files(*entries):
        path = ROOT / name
        content = canonical(path.read_text(encoding="utf-8")).encode() if path.suffix == ".py" else path.read_bytes()
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:12]


def canonical(source: str) -> str:
    """A text of Python source that is the same for all sources that do the same, line by line, on every Python.

    The syntax tree with the names of its types and the fields that are not empty. ``ast.dump`` would not do: what it
    prints differs between versions of Python. Comments are not in the tree; strings that stand alone (docstrings) and
    the contexts of names (load, store) are left out.
    """
    parts: list[str] = []
    _walk(ast.parse(source), parts)
    return "".join(parts)


def _walk(node: object, parts: list[str]) -> None:
    if isinstance(node, ast.AST):
        parts.append(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            if name == "ctx" or value is None or value == []:
                continue
            if isinstance(node, ast.JoinedStr):
                value = _joined(value)
            parts.append(f"{name}=")
            _walk(value, parts)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for item in node:
            if not _is_text(item):
                _walk(item, parts)
        parts.append("]")
    else:
        parts.append(f"{type(node).__name__}:{node!a},")  # ascii: what is printable is another set on each Python


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, its texts as few as can be: versions of Python differ in how they split them."""
    found: list[ast.expr] = []
    for value in values:
        last = found[-1] if found else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            found[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            found.append(value)
    return found


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone: a docstring, of a module, class, function or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _imports(path: Path, module: str) -> list[tuple[str, str]]:
    """(module, name) of all that a file imports of the project; "" for a whole module."""
    return list(_all_imports(path, module))


def _all_imports(path: Path, module: str) -> Iterator[tuple[str, str]]:
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(source := _source(node, path, module)):
            yield from ((source, alias.name) for alias in node.names)


@cache
def _exports(path: Path, module: str) -> dict[str, tuple[str, str]]:
    """Name in a package -> (module, name) that it is imported from, for the names of the project."""
    return {
        alias.asname or alias.name: (source, alias.name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and _is_ours(source := _source(node, path, module))
        for alias in node.names
    }


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from (node for other in child.orelse for node in ast.walk(other))
            continue
        yield child
        yield from _running(child)


def _source(node: ast.ImportFrom, path: Path, module: str) -> str:
    """The module that a ``from ... import`` names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *((node.module or "").split(".") if node.module else [])])


def _file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _beside(path: Path) -> list[Path]:
    """Files that are called like a module, of the kinds that modules read."""
    return [beside for suffix in _BESIDE if (beside := path.with_suffix(suffix)).is_file()]


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in PACKAGES
