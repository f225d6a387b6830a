"""Finds the files that decide a result, by following the imports.

A run or a study may only resume from results of the same deciding code, so its fingerprint includes ``deciding_hash``.
A change of comments, docstrings or formatting does not change the hash. ``dvc.yaml`` lists files and folders for DVC,
and a test compares them with ``deciding_files``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from components.brief import short_digest

ROOT = Path(__file__).parents[2]
PACKAGES = ("components", "pipeline")

_BESIDE = (".c", ".cu", ".csv", ".json", ".toml", ".txt", ".yaml")

EXCLUDED = {
    "components/formats.py": "refuses what a newer version wrote; it changes nothing",
    "components/members.py": "which module holds what; the modules of what params choose by name are added",
    "pipeline/cluster/controller.py": "tells of losses, and asks for workers",
    "pipeline/cluster/loopback.py": "where a local Ray listens",
    "pipeline/cluster/parallel_map.py": "where chunks are worked on; a chunk has the same bytes everywhere",
    "pipeline/cluster/quick_trainer.py": "which processes Ray Train starts beside the workers",
    "pipeline/cluster/resources.py": "what fits on the nodes; the number of workers is part of the identity",
    "pipeline/cluster/session.py": "starts Ray, or connects to it",
    "pipeline/cluster/trial_resources.py": "how many trials run at a time",
    "pipeline/compat.py": "which parts of Ray the modules above take",
    "pipeline/config/messages.py": "the text of errors",
    "pipeline/config/renamed.py": "the text of errors",
    "pipeline/config/rules.py": "refuses params; it changes none",
    "pipeline/console.py": "prints",
    "pipeline/errors.py": "kinds of errors",
    "pipeline/process_state.py": "Ctrl-C, and environment variables of Ray",
    "pipeline/provenance/lineage.py": "the git commit, which is a tag in MLflow alone",
    "pipeline/stages/live_history.py": "what editors draw while a training runs; it is removed at the end",
    "pipeline/stages/step_cost.py": "measures times, which no output holds",
    "pipeline/storage": "carries bytes, which are checked against their hash; opens databases",
    "pipeline/study/database.py": "where the database of studies is",
    "pipeline/study/heartbeats.py": "which process runs a trial",
    "pipeline/tracking": "records what was done; no output is made from it",
}
"""File or folder -> reason why no result depends on it, although deciding code imports it."""

EXCLUDED_FOR = {
    "pipeline.stages.fetch": {
        "components/equivariance": "the check of the other sections of params.yaml",
        "components/tasks": "the check of the other sections of params.yaml",
        "components/training": "the check of the other sections of params.yaml",
        "pipeline/config/task_schema.py": "the other sections of params.yaml",
    },
    "pipeline.stages.preprocess": {
        "components/equivariance": "the check of the other sections of params.yaml",
        "components/training": "the check of the other sections of params.yaml",
    },
}
"""Entry module -> further exclusions for it.

A source may be large and slow, so that a change of another section of params.yaml must not cause a new fetch.
"""


@cache
def deciding_files(*entries: str) -> tuple[str, ...]:
    """Finds the files that the results of these modules depend on.

    They are the modules of ``components`` and ``pipeline`` that can be reached by imports, without ``EXCLUDED``.
    Imports inside functions are followed, but imports for type checkers only are not. A file with the same name beside
    such a module, such as ``fused.c`` beside ``fused.py``, belongs to it. For a name that a package re-exports, only
    the module that defines the name is followed, not the other imports of the package.

    Args:
        entries: dotted names of modules.

    Returns:
        Paths relative to the project's root, sorted.

    Raises:
        ValueError: there is no such module.
    """
    return tuple(sorted(set().union(*map(_reachable, entries))))


@cache
def _reachable(entry: str) -> frozenset[str]:
    """Finds the deciding files of one module."""
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
    """Returns a hash of the deciding files, 12 hexadecimal digits.

    Python files are hashed in their canonical form (``canonical``), other files by their bytes.
    """
    described = b""
    for name in deciding_files(*entries):
        path = ROOT / name
        content = canonical(path.read_text(encoding="utf-8")).encode() if path.suffix == ".py" else path.read_bytes()
        described += name.encode() + b"\0" + content + b"\0"
    return short_digest(described)


def canonical(source: str) -> str:
    """Returns a canonical text of Python source, which does not depend on comments, docstrings or formatting.

    The text is the syntax tree with the names of its types and its fields that are not empty. It is the same in all
    versions of Python, unlike the output of ``ast.dump``. Comments are not in the tree. Strings that stand alone
    (docstrings) and the contexts of names (load, store) are left out.
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
        parts.append(f"{type(node).__name__}:{node!a},")  # !a, as the printable characters depend on the Python version


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Merges adjacent texts of an f-string, because versions of Python split them differently."""
    found: list[ast.expr] = []
    for value in values:
        last = found[-1] if found else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            found[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            found.append(value)
    return found


def _is_text(node: object) -> bool:
    """Returns whether a statement is only a string: the docstring of a module, class, function or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def _imports(path: Path, module: str) -> list[tuple[str, str]]:
    """Returns (module, name) of everything that a file imports from the project; the name is "" for a whole module."""
    return list(_all_imports(path, module))


def _all_imports(path: Path, module: str) -> Iterator[tuple[str, str]]:
    for node in running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(source := _source(node, path, module)):
            yield from ((source, alias.name) for alias in node.names)


@cache
def _exports(path: Path, module: str) -> dict[str, tuple[str, str]]:
    """Maps each name that a package imports from the project to its origin (module, name)."""
    return {
        alias.asname or alias.name: (source, alias.name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and _is_ours(source := _source(node, path, module))
        for alias in node.names
    }


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yields all nodes of a tree except those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from (node for other in child.orelse for node in ast.walk(other))
            continue
        yield child
        yield from running(child)


def _source(node: ast.ImportFrom, path: Path, module: str) -> str:
    """Returns the module of a ``from ... import``; a relative name is resolved."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *((node.module or "").split(".") if node.module else [])])


def _file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _beside(path: Path) -> list[Path]:
    """Returns the files beside a module that have its name and a suffix in ``_BESIDE``."""
    return [beside for suffix in _BESIDE if (beside := path.with_suffix(suffix)).is_file()]


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in PACKAGES
