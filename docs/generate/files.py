"""The page of the files: what each stage reads and writes, what each file holds, and the versions of formats."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.generate.markdown import code, docs_of_assignments, page, table, text
from pipeline.config.values import read_values

HERE = Path(__file__).parent

SCRATCH = {
    ".eqreg/train/RUN": "checkpoints of a training, `step-STEP_SCORE_SHA256.pt`; `finished.json` says that it is over",
    ".eqreg/tune": "the studies of sweeps (`studies.db`, SQLite), and checkpoints of trials",
    ".eqreg/fetch": "files of a fetch that was interrupted",
    ".eqreg/register/decision.json": "version, alias and reason of the last registration",
    ".eqreg/evaluate/step_cost.json": "measured time of a step with and without the penalty",
    ".eqreg/unusable.csv": "images that made `preprocess` stop",
    "results/live": "reports of a training while it runs (`history.csv`), and a dvc.yaml with their plots",
    "mlflow.db, mlartifacts": "runs and models of MLflow, if `MLFLOW_TRACKING_URI` is not set",
}
"""What lies beside data and results, and is no output of a stage."""


def files_page(root: Path) -> str:
    """Returns the page; ``root`` is the folder of dvc.yaml."""
    pipeline = read_values(root / "dvc.yaml")
    described = files()
    blocks = [
        "Outputs are functions of data, params and code: they hold no time, path, commit or run. These are in MLflow.",
        "## Stages",
        "Each is a DVC stage and a command. Beside these, a stage depends on code: `dvc.yaml` lists the files, and a "
        "test compares the lists with the imports.",
        table(("Stage", "Reads", "Params", "Writes"), (_stage(*item) for item in pipeline["stages"].items())),
        f"Metrics of DVC: {', '.join(map(code, pipeline['metrics']))}. Plots: {', '.join(_plots(pipeline['plots']))}.",
    ]
    for folder in dict.fromkeys("/".join(name.split("/")[:2]) for name in described):
        own = {name: each for name, each in described.items() if name.startswith(f"{folder}/")}
        blocks += [f"## {folder}", *_folder(own, folder, root)]
    blocks += [
        "## Beside data and results",
        "With `cluster.storage`, checkpoints of trainings and trials lie there in place of `.eqreg`. Any of it may be "
        "deleted: what is lost is the work that it would have saved.",
        table(("Path", "Holds"), ((code(path), text(holds)) for path, holds in SCRATCH.items())),
        "## Versions of formats",
        "What is written to disk has a version under the key `format`. A reader refuses a newer version by name, and "
        "reads all older ones. Data from before the versions count as version 0, with the layout of version 1.",
        table(("Version of", "Now", "Written by"), _formats(root)),
    ]
    return page("Files", *blocks)


def files() -> dict[str, dict[str, Any]]:
    """Returns what is said about files: pattern -> {"holds": text, "columns" or "keys": {name: text}}."""
    return read_values(HERE / "files.yaml")


def fields_of(name: str, described: Mapping[str, Any], root: Path = HERE.parents[1]) -> dict[str, str]:
    """Returns the columns or keys of a file: name -> text. Those of history.csv are the metrics of a report."""
    found: dict[str, str] = dict(described.get("columns") or described.get("keys") or {})
    if name == "results/train/history.csv":
        found |= reported(root) | {"val_score": "of a validation: the first metric of the task"}
    return found


def reported(root: Path) -> dict[str, str]:
    """Returns the metrics in a report of the training loop: name -> meaning, from the docstring of the loop."""
    docstring = ast.get_docstring(ast.parse((root / "components/training/loop.py").read_text(encoding="utf-8"))) or ""
    found = re.findall(r"^ {4}(\S+) {2,}((?:.+|\n {8,})+)", docstring, re.MULTILINE)
    return {name: " ".join(said.split()) for name, said in found if name != "images_per_second"}


def _stage(name: str, stage: Mapping[str, Any]) -> tuple[str, ...]:
    code_folders = ("components", "pipeline")
    reads = [dep for dep in stage["deps"] if not dep.startswith(code_folders)]
    writes = [next(iter(out)) if isinstance(out, dict) else out for out in stage.get("outs", [])]
    params = list(dict.fromkeys(_section(key) for key in stage["params"]))
    return tuple(", ".join(map(code, cells)) for cells in ([name], reads, params, writes))


def _section(key: str) -> str:
    """Returns the section of a key; the sections of tasks are those of the chosen task."""
    parts = key.replace("${task}", "NAME").split(".")
    return ".".join(parts[:3]) if parts[0] == "tasks" else key if parts[0] != "equivariance" else "equivariance"


def _plots(plots: list[Any]) -> Iterator[str]:
    for plot in plots:
        yield code(next(iter(plot)) if isinstance(plot, dict) else plot)


def _folder(described: Mapping[str, Mapping[str, Any]], folder: str, root: Path) -> Iterator[str]:
    rows = ((code(name.removeprefix(f"{folder}/")), text(each["holds"])) for name, each in described.items())
    yield table(("File", "Holds"), rows)
    for name, each in described.items():
        inner = fields_of(name, each, root)
        if inner and set(inner.values()) != {"the same"}:
            title = "Column" if "columns" in each else "Key"
            yield f"### {name.removeprefix(f'{folder}/')}"
            yield table((title, "Meaning"), ((code(key), text(str(meaning))) for key, meaning in inner.items()))


def _formats(root: Path) -> Iterator[tuple[str, ...]]:
    """Yields a row for each module that has a constant FORMAT."""
    for top in ("components", "pipeline"):
        for path in sorted((root / top).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FORMAT":
                    said = docs_of_assignments(tree.body)["FORMAT"].removeprefix("Version of ").rstrip(".")
                    yield text(said), code(ast.unparse(node.value)), code(path.relative_to(root).as_posix())
