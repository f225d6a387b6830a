"""The fixed point of a refactoring: what the code computes, prints and writes, in files that tests compare with.

    python benchmarks/golden.py record                     # writes numbers.json and texts.json
    EQREG_GOLDEN=FOLDER make test PYTEST_ARGS='-m ""'      # keeps the messages and names of a run in FOLDER
    python benchmarks/golden.py merge FOLDER...            # writes messages.json and names.json: what all runs share
    python benchmarks/golden.py weights                    # after `make run`: the SHA-256 of the weights, compared
    python benchmarks/golden.py weights record             # the same, written to weights.json

``tests/golden/renamed.yaml`` lists the words that may differ. Every other difference is a fault, or a decision: then
the commit renews the file and gives the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from components.equivariance import EquivarianceRegularizer
from components.networks import build_network

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests/golden"

PENALTIES = ("rotation", "channel", "rotation+channel", "regular", "projection", "paper")
GROUPS = ("C2", "C4", "D4", "C8")
PAIRINGS = ("replace", "append", "none")
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
SMALL: dict[str, dict[str, Any]] = {
    "dncnn": {"width": 8, "depth": 4, "norm": "none"},
    "unet": {"width": 8, "depth": 2, "norm": "none"},
    "resnet": {"width": 8, "depth": 2, "norm": "none", "classes": 5},
}
"""Settings with which a network's five steps take some milliseconds. Networks of published forms are not among them:
their fingerprints fix them (tests/components/networks/fingerprints)."""

BATCH, SIDE, STEPS, WEIGHT, RATE = 8, 16, 5, 0.1, 0.05

Rows = dict[str, list[float]]


# ---------------------------------------------------------------------------------------------------------- numbers


def five_steps(network: str, precision: str, penalty: Any, group: str, pairing: Any) -> Rows | str:
    """Losses, penalties and gradient norms of five steps of gradient descent on noise, or why there are none."""
    dtype = PRECISIONS[precision]
    generator = torch.Generator().manual_seed(0)
    model = build_network(network, **SMALL[network])
    _randomise(model, generator)
    model = model.to(dtype)
    try:
        regularizer = EquivarianceRegularizer(model, penalty=penalty, group=group, pairing=pairing, pair_fraction=0.25)
    except ValueError as error:
        return str(error)
    clean = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64).to(dtype)
    degraded = clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.arange(BATCH) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    rows: Rows = {"loss": [], "penalty": [], "gradient_norm": []}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss: Tensor
        if network == "resnet":
            batch = regularizer.pair(degraded, labels, generator=generator, fields={"targets": "invariant"})
            loss = F.cross_entropy(model(batch.inputs), batch.targets)  # type: ignore[arg-type]
        else:
            batch = regularizer.pair(degraded, clean, generator=generator)
            loss = F.l1_loss(model(batch.inputs), batch.targets)  # type: ignore[arg-type]
        value = regularizer.penalty()
        (loss + WEIGHT * value).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for name, number in (("loss", loss), ("penalty", value), ("gradient_norm", nn.utils.get_total_norm(gradients))):
            rows[name].append(float(number.detach()))
        optimizer.step()
    return rows


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that no initialisation of a network decides."""
    for name, parameter in sorted(model.named_parameters()):
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan**0.5
        is_scale = "norm" in name and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(drawn + float(is_scale))


def numbers(network: str, precision: str) -> dict[str, Rows | str]:
    """Case -> its rows, of one network in one precision."""
    return {
        " ".join(case): five_steps(network, precision, *case) for case in itertools.product(PENALTIES, GROUPS, PAIRINGS)
    }


# ------------------------------------------------------------------------------------------------------------ texts


def texts() -> dict[str, str]:
    """Command -> its help; and what ``eqreg params`` prints of the project's own params."""
    import typer

    from pipeline.cli import app

    found = dict(_helps(typer.main.get_command(app), "eqreg"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app(["params"], standalone_mode=False)
    found["eqreg params"] = printed.getvalue()
    return found


def _helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """What a command says of itself, as plain data: the drawing of its help depends on the terminal."""
    options = [
        f"{' '.join(parameter.opts)}: {getattr(parameter, 'help', None)} [{parameter.default}]"
        for parameter in command.params
    ]
    yield name, "\n".join([command.help or "", *options])
    for word, inner in getattr(command, "commands", {}).items():
        yield from _helps(inner, f"{name} {word}")


# ------------------------------------------------------------------------------------------------------------ names


def names(project: Path) -> dict[str, Any]:
    """What a run leaves in a project's folder, by name: tensors with their shapes, keys, metrics, tags, files."""
    from safetensors import safe_open

    with safe_open(project / "results/train/model.safetensors", framework="pt") as file:
        model = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        metadata = sorted(file.metadata())
    checkpoint = next(iter(sorted(project.glob(".eqreg/train/*/step-*.pt"))))
    saved = torch.load(checkpoint, weights_only=True)
    metrics = json.loads((project / "results/evaluate/metrics.json").read_text())
    database = f"file:{project / 'mlflow.db'}?mode=ro"
    with closing(sqlite3.connect(database, uri=True)) as connection:

        def distinct(table: str) -> list[str]:
            rows = connection.execute(f"select distinct key from {table} order by key")
            return [key for (key,) in rows if "params" in table or not key.startswith(("mlflow.", "system/"))]

        tables = {table: distinct(table) for table in ("metrics", "params", "tags", "model_version_tags")}
    return {
        "model": model,
        "model metadata": metadata,
        "checkpoint": sorted(_keys(saved)),
        "metrics.json": sorted(_keys(metrics)),
        "files": sorted(
            {
                re.sub(r"(?<=crops/).*", "IMAGE.png", re.sub(r"comparison-.*", "comparison-SCENE.png", name))
                for path in (project / "results").rglob("*")
                if path.is_file() and (name := path.relative_to(project).as_posix())
            }
        ),
        **{f"MLflow {table}": keys for table, keys in tables.items()},
    }


def _keys(value: object, above: str = "") -> Iterator[str]:
    """Dotted keys of nested mappings; numbers stand for what is numbered."""
    if not isinstance(value, dict):
        yield above if not isinstance(value, Tensor) else f"{above} {list(value.shape)}"
        return
    for key, inner in value.items():
        yield from _keys(inner, f"{above}.{key}" if above else str(key))


# ------------------------------------------------------------------------------------------------------- comparison


def golden(name: str) -> Any:
    """The content of a file of the fixed point, with the words that have been renamed since."""
    text = (FOLDER / f"{name}.json").read_text()
    for old, new in renamed().items():
        text = re.sub(old, new, text)
    return json.loads(text)


def renamed() -> dict[str, str]:
    """Pattern -> what may stand in its place now."""
    return dict(yaml.safe_load((FOLDER / "renamed.yaml").read_text()) or {})


def write(name: str, content: dict[str, Any]) -> None:
    """Renews a file of the fixed point: one line an entry, so that a difference is easy to read."""
    FOLDER.mkdir(exist_ok=True)
    lines = (
        f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(content[key], ensure_ascii=False)}"
        for key in sorted(content)
    )
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def messages(kept: Path) -> dict[str, list[str]]:
    """Test -> the messages that it provoked, of a run that has kept them in a folder."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in kept.glob("*.jsonl"):
        for test, message in map(json.loads, path.read_text().splitlines()):
            found[test].add(message)
    return {test: sorted(several) for test, several in found.items()}


def merge(folders: list[Path]) -> None:
    """Writes the messages that all runs of a test share, and the names of the first run that kept them.

    A test that only one run has made keeps its messages: the runs may be of several layers.
    """
    runs = [messages(folder) for folder in folders]
    shared = {}
    for test in set().union(*runs):
        of_runs = [run[test] for run in runs if test in run]
        if all(several == of_runs[0] for several in of_runs):
            shared[test] = of_runs[0]
    write("messages", shared)
    for path in [path for folder in folders if (path := folder / "names.json").is_file()][:1]:
        write("names", json.loads(path.read_text()))


def weights() -> dict[str, str]:
    """Which machine made the weights in ``results/train``, and the SHA-256 of their bytes."""
    from safetensors.torch import load_file

    tensors = load_file(ROOT / "results/train/model.safetensors")
    digest = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    machine = f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return {"machine": machine, "sha256": digest.hexdigest()}


def main() -> None:
    os.chdir(ROOT)
    torch.set_num_threads(1)  # the networks are small
    match sys.argv[1:]:
        case ["record"]:
            pairs = itertools.product(SMALL, PRECISIONS)
            rows = {f"{name} {precision}": numbers(name, precision) for name, precision in pairs}
            write("numbers", {f"{pair} {case}": row for pair, found in rows.items() for case, row in found.items()})
            write("texts", texts())
        case ["merge", *folders] if folders:
            merge([Path(folder) for folder in folders])
        case ["weights", "record"]:
            write("weights", weights())
        case ["weights"]:
            expected, found = golden("weights"), weights()
            print("the weights have the same bytes" if found == expected else f"{found}, not {expected}")
            sys.exit(found != expected)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
