"""What decides a result is computed: nothing is missing in dvc.yaml or in an identity, and comments change neither."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import yaml

from components.registry import module_of
from pipeline.config.values import CHOSEN_BY_NAME
from pipeline.provenance import code_hash
from pipeline.provenance.code_hash import EXCLUDED, EXCLUDED_FOR, canonical, deciding_files, deciding_hash
from pipeline.provenance.training_fingerprint import DECIDING
from pipeline.study import fingerprint as identity
from tests.pipeline.workspace import ROOT

pytestmark = pytest.mark.unit

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ALL = [path.relative_to(ROOT).as_posix() for top in ("components", "pipeline") for path in (ROOT / top).rglob("*.py")]

SOURCE = '''
"""A module."""
import os

LIMITS = {"a": 1.5, b"b": -2j, None: ...}  # a comment


class Shape(dict, metaclass=type):
    """A class."""

    side: int = 3
    """Of a field."""

    async def area(self, *sides: int, unit: str = "m", **others) -> "int":
        """A method."""
        async with self as one, self:
            return [s ** 2 for s in sides if s > 0] or (yield)


SIGN = "\U0001fae8 \u2028"


def text(x, /, y=0):
    try:
        match x:
            case [1, *rest] if (n := len(rest)) > 1:
                return f"{x!r:>{y}} and {n:.2f}" "more" f"{{}}"
            case {"k": v, **others}:
                raise ValueError("\\N{BULLET}") from None
    except* OSError as error:
        print(error, end="")
    finally:
        del x
    return lambda *, a: a if a else ~y
'''


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code in a folder of the test's own, of which hashes are computed anew."""
    for name in ("components", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    for cached in (deciding_files, deciding_hash, code_hash._reachable, code_hash._imports, code_hash._exports):
        cached.cache_clear()


def members(stage: str) -> list[str]:
    """The modules of everything that params can choose by name and that the stage uses."""
    used: dict[str, list[str]] = {"fetch": [], "preprocess": ["task"]}
    registries = [CHOSEN_BY_NAME[key] for key in used.get(stage, list(CHOSEN_BY_NAME))]
    return sorted({module_of(registry, name) for registry in registries for name in registry})


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "register"])
def test_dvc_yaml_lists_all_files_that_decide_a_stage_and_no_others(stage: str) -> None:
    """``register`` always runs."""
    files = deciding_files(f"pipeline.stages.{stage}", *members(stage))
    listed = [name for name in STAGES[stage]["deps"] if name.startswith(("components", "pipeline"))]
    missing = [name for name in files if not any(name == dep or name.startswith(f"{dep}/") for dep in listed)]
    assert missing == [], f"add to the deps of {stage} in dvc.yaml"
    needless = [dep for dep in listed if not any(name == dep or name.startswith(f"{dep}/") for name in files)]
    assert needless == [], f"take from the deps of {stage} in dvc.yaml"


def test_what_auto_means_and_how_grids_are_enumerated_decides() -> None:
    for stage in ("preprocess", "tune", "train", "evaluate"):
        assert {"pipeline/config/schema.py", "pipeline/config/task_schema.py"} <= set(
            deciding_files(f"pipeline.stages.{stage}")
        )
    assert "pipeline/search_space/enumeration.py" in deciding_files("pipeline.stages.tune")
    assert "pipeline/search_space/enumeration.py" in deciding_files(*identity.DECIDING)
    assert {"pipeline/config/schema.py", "pipeline/config/task_schema.py"} <= set(deciding_files(*DECIDING))


def test_a_line_of_a_registry_decides_nothing_and_what_builds_a_member_decides(copied: Path) -> None:
    members = ["components.networks.unets.unet", "components.training.losses"]
    before = deciding_hash(*DECIDING, *members)
    path = copied / "components/members.py"
    path.write_text(
        path.read_text().replace("LOSSES: Registry = {", 'LOSSES: Registry = {\n    "x": "components.x:X",')
    )
    _forget()
    assert deciding_hash(*DECIDING, *members) == before
    path = copied / "components/networks/build.py"
    path.write_text(path.read_text().replace("return built", "return built.eval()"))
    _forget()
    assert deciding_hash(*DECIDING, *members) != before


def test_code_that_is_not_python_decides_too() -> None:
    assert "components/equivariance/autograd/fused.c" in deciding_files("components.equivariance")


def test_a_figure_a_baseline_and_a_record_decide_no_training() -> None:
    files = deciding_files(*DECIDING)
    assert [name for name in files if "figure" in name or "classical" in name or "tracking" in name] == []


def test_every_exclusion_is_of_a_file_that_is_there_and_is_reached() -> None:
    """Else it would hide a file that is given its name later."""
    reached = set()
    for stage in STAGES:
        reached |= _reached(f"pipeline.stages.{stage}")
    for excluded in [*EXCLUDED, *(name for names in EXCLUDED_FOR.values() for name in names)]:
        assert (ROOT / excluded).exists(), excluded
        assert any(name == excluded or name.startswith(f"{excluded}/") for name in reached), excluded


def _reached(entry: str, excluded: Collection[str] = ()) -> set[str]:
    """All files that an import, anywhere in a file, leads to: a simple second way, which follows too much.

    Excluded files are not followed.
    """
    waiting, found = [entry], set()
    while waiting:
        module = waiting.pop()
        name = module.replace(".", "/")
        path = next((path for path in (f"{name}.py", f"{name}/__init__.py") if (ROOT / path).is_file()), None)
        if path is None or path in found or any(path == each or path.startswith(f"{each}/") for each in excluded):
            continue
        found.add(path)
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                waiting += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(module.split(".")[: len(module.split(".")) - node.level + path.endswith("__init__.py")])
                waiting += [f"{base}.{node.module}"] if node.module else [f"{base}.{each.name}" for each in node.names]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_left_out_is_excluded_or_only_re_exported(stage: str) -> None:
    """Held against the second way: what that finds beyond lies behind a package's list of exports."""
    files = set(deciding_files(f"pipeline.stages.{stage}"))
    found = _reached(f"pipeline.stages.{stage}", {*EXCLUDED, *EXCLUDED_FOR.get(f"pipeline.stages.{stage}", {})})
    assert {name for name in files if name.endswith(".py")} <= found
    exports = ("components/equivariance/", "components/evaluation/classical/")
    more = [name for name in found - files if not name.endswith("__init__.py") and not name.startswith(exports)]
    assert more == [], "not reached by the names that are imported: why?"


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        (DECIDING, "components/training/loop.py"),
        (DECIDING, "pipeline/config/schema.py"),
        (DECIDING, "pipeline/cluster/training.py"),
        (DECIDING, "pipeline/cluster/process_group.py"),
        (identity.DECIDING, "pipeline/study/study.py"),
        (identity.DECIDING, "pipeline/search_space/enumeration.py"),
        (identity.DECIDING, "pipeline/measurement.py"),
        (("pipeline.stages.preprocess",), "pipeline/stages/preprocessing/packing.py"),
        (("pipeline.stages.evaluate",), "components/evaluation/protocol.py"),
    ],
)
def test_a_comment_and_a_docstring_change_no_hash_and_a_line_does(
    copied: Path, entries: tuple[str, ...], name: str
) -> None:
    before, path = deciding_hash(*entries), copied / name
    source = path.read_text()
    first = next(line for line in source.splitlines() if line.startswith("import "))
    path.write_text("# a comment\n" + source.replace('"""', '"""Also: ', 1).replace(first, f"{first}  # why\n\n"))
    _forget()
    assert deciding_hash(*entries) == before
    path.write_text(source + "\nif True:\n    pass\n")
    _forget()
    assert deciding_hash(*entries) != before


def test_a_changed_byte_of_c_changes_the_hash(copied: Path) -> None:
    before = deciding_hash(*DECIDING)
    path = copied / "components/equivariance/autograd/fused.c"
    path.write_bytes(path.read_bytes() + b"\n")
    _forget()
    assert deciding_hash(*DECIDING) != before


@pytest.mark.parametrize(
    "changed",
    [
        SOURCE.replace("1.5", "1.25"),
        SOURCE.replace("-2j", "2j"),
        SOURCE.replace("if s > 0", "if s < 0"),
        SOURCE.replace("side: int = 3", "side: int = True"),
        SOURCE.replace(":.2f", ":.3f"),
        SOURCE.replace("except* ", "except "),
        SOURCE.replace("async with", "with"),
        SOURCE.replace("del x", "pass"),
        SOURCE.replace("x, /, y=0", "x, y=0"),
        SOURCE.replace('"m"', 'b"m"'),
    ],
)
def test_each_change_of_meaning_changes_the_text(changed: str) -> None:
    assert changed != SOURCE
    assert canonical(changed) != canonical(SOURCE)


def test_another_layout_of_the_same_lines_has_the_same_text() -> None:
    tree = ast.parse(SOURCE)
    assert canonical(ast.unparse(tree)) == canonical(SOURCE)


def test_the_hash_of_a_fixed_source_is_the_same_on_every_python() -> None:
    """The value was computed by 3.11, 3.12 and 3.13; each Python that runs this test repeats it."""
    import hashlib

    assert hashlib.sha256(canonical(SOURCE).encode()).hexdigest()[:12] == FIXED


FIXED = "b0a2c9be6fef"
