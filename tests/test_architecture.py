"""Which package may import which; no circular imports; no folder with too many files.

A package may import itself and the packages in later lines of ``ORDER``. Packages of one line do not import each other.
Imports inside functions count; those for type checkers alone do not.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pipeline.provenance.code_hash import PACKAGES, running

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]

ORDER = (
    "pipeline.cli",
    "pipeline.commands",
    "pipeline.stages",
    "pipeline.cluster",
    "pipeline.tracking",
    "pipeline.study",
    "pipeline.search_space",
    "pipeline.measurement pipeline.model_file",
    "pipeline.training_job",
    "pipeline.config",
    "pipeline.storage",
    "pipeline.provenance",
    "pipeline.sources",
    "pipeline.paths pipeline.console pipeline.process_state pipeline.compat",
    "pipeline.errors",
    "components.tasks components.training",
    "components.evaluation",
    "components.inference",
    "components.networks components.degradations",
    "components.data",
    "components.equivariance components.members",
    "components.registry components.formats components.brief",
)
"""From top to bottom."""

MOST_FILES = 11
"""Files that a folder may have, ``__init__.py`` apart: what a reader holds in mind."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules of the project that a module imports."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {name if (name := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return {name for name in found if name in MODULES} - {module}


def place_of(module: str) -> int | None:
    """Its place from the top in ``ORDER``; None of the packages' own ``__init__.py``."""
    rooms = {room: number for number, line in enumerate(ORDER) for room in line.split()}
    parts = module.split(".")
    return rooms.get(".".join(parts[:2])) if len(parts) > 1 else None


def test_every_package_has_its_place() -> None:
    assert [module for module in MODULES if module not in PACKAGES and place_of(module) is None] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_downwards(module: str) -> None:
    own = place_of(module)
    for other in imports(module):
        is_same_room = module.split(".")[:2] == other.split(".")[:2]
        assert is_same_room or own is None or place_of(other) > own, (
            f"{module} imports {other}, which stands before it in ORDER"
        )


def test_no_module_imports_itself_by_way_of_others() -> None:
    reached: dict[str, set[str]] = {module: imports(module) for module in MODULES}
    for _ in MODULES:
        further = {m: found.union(*(reached[other] for other in found)) for m, found in reached.items()}
        if further == reached:
            break
        reached = further
    assert [module for module in MODULES if module in reached[module]] == []


def libraries(module: str) -> set[str]:
    """The libraries that a module imports, beside Python's own."""
    found = set()
    for node in running(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


SERVICES = {
    "ray",
    "dvc",
    "mlflow",
    "optuna",
    "boto3",
    "botocore",
    "sqlalchemy",
    "psycopg",
    "requests",
    "pydantic",
    "typer",
}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("components")])
def test_the_parts_know_nothing_of_what_runs_them(module: str) -> None:
    assert libraries(module) & SERVICES == set()


@pytest.mark.parametrize("package", ["components.equivariance"])
def test_what_others_lift_out_imports_torch_alone(package: str) -> None:
    modules = [module for module in MODULES if f"{module}.".startswith(f"{package}.")]
    assert set().union(*map(libraries, modules)) == {"torch"}
    assert {name for module in modules for name in imports(module) if not f"{name}.".startswith(f"{package}.")} == set()


def test_a_model_for_ct_travels_with_few_modules_and_libraries() -> None:
    """Beside those of the image model of every kind."""
    reached, waiting = {"components.inference.ct"}, ["components.inference.ct"]
    while waiting:
        found = imports(waiting.pop()) - reached
        reached |= found
        waiting += found
    assert set().union(*map(libraries, reached)) == {"torch", "numpy", "pydicom"}
    folders = ("components.inference.dicom", "components.inference.ct", "components.degradations.ct")
    others = [module for module in sorted(reached) if not module.startswith(folders)]
    assert others == ["components.data.readers.dicom_elements", "components.data.readers.quiet"]


def test_no_folder_is_too_full() -> None:
    folders = {path.parent for path in MODULES.values()}
    counts = {folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


PRIVATE = r"\b(torch|ray|optuna|mlflow)(\.\w+)*\._(?!_)\w+|\b_(private|internal|raylet|common)\b|\bmodule\._\w+"
"""Private names of the libraries that have changed them most."""


@pytest.mark.parametrize("module", [module for module in MODULES if module.rpartition(".")[2] != "compat"])
def test_private_parts_of_libraries_are_named_in_compat_alone(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names += [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in names if re.search(PRIVATE, name)] == []


BROUGHT = {"aiohttp": "ray", "awscrt": "boto3", "botocore": "boto3", "sqlalchemy": "optuna", "urllib3": "requests"}
"""Package that the code imports without naming it as a dependency -> the dependency that works with it."""
PLUGINS = {"dvc-s3", "onnxscript"}
"""Dependencies that another one finds and imports."""


def test_the_dependencies_are_what_the_code_imports() -> None:
    """What one format of ``eqreg export`` needs is in the extra ``export``, what tests alone need in ``test``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["export"]]
    named = {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}
    roots = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                roots.add(node.module.partition(".")[0])
    known = {package: {name.lower() for name in names} for package, names in packages_distributions().items()}
    found = roots - sys.stdlib_module_names - set(PACKAGES)
    found = {BROUGHT.get(root) or min(known[root] & named, default=f"{root}: no dependency") for root in found}
    assert found | PLUGINS == named


def test_tests_lie_as_what_they_test() -> None:
    tests = [path for top in PACKAGES for path in (ROOT / "tests" / top).rglob("test_*.py")]
    folders = {path.parent.relative_to(ROOT / "tests") for path in tests}
    assert [folder.as_posix() for folder in folders if not (ROOT / folder).is_dir()] == []
