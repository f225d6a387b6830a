"""The page of params.yaml: its keys, and everything that they choose by name with its settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.data.pair_names import NAMINGS
from components.members import NETWORKS
from components.tasks import Task, task_class
from docs.generate.comments import comments
from docs.generate.markdown import code, first_paragraph, in_yaml, page, table, text
from docs.generate.members import losses_schedules_optimizers, networks, penalties, settings_table
from pipeline.config.messages import Schema
from pipeline.config.rules import ALL_CLEAN, RULES
from pipeline.config.schema import Params
from pipeline.config.values import CHOSEN_BY_NAME, read_values

KEYS = ("Key", "Allowed", "Shipped", "Meaning")

EXPECTED = {
    "preprocess.pairs": f"{', '.join(ALL_CLEAN)}, auto, a layout by name (below), or {{degraded: REGEX, clean: REGEX}}",
    "network": f"auto, {', '.join(NETWORKS)}; settings of the network beside it",
}
"""Key -> what it allows, where the schema does not say it: functions check the names."""

INTRODUCTION = """\
`params.yaml` is the only place with default values of its keys. Every stage reads it. `eqreg params` prints the values
that a training would use, with all settings of what is chosen by name.

An unknown key, a wrong type and an impossible combination are refused before any work, with the key, the value and what
is allowed, and exit code 2. Numbers are not accepted as text (`'16'`), and `true` is not accepted as a number. The file
is read as YAML 1.2, as DVC reads it: `1e-3` is a number, and a key that is there twice is an error.

`dvc exp run -S train.steps=500` changes a key in the file and runs what depends on it; the file stays changed
([Run experiments](../how-to/experiments.md#change-keys)). A key that is not in the file yet needs a plus sign:
`-S +network.width=32`. `-S` adds keys to a mapping. To replace the mapping:
`-S '~tasks.derain.degradation' -S '+tasks.derain.degradation={streaks: auxiliary}'`."""


def params_page(root: Path) -> str:
    """Returns the page; ``root`` is the folder of params.yaml."""
    source, values = (root / "params.yaml").read_text(encoding="utf-8"), read_values(root / "params.yaml")
    said, schema = comments(source), Schema(Params.model_json_schema(by_alias=True))
    top = [key for key, value in values.items() if not isinstance(value, dict)]
    sections = [key for key in values if key not in (*top, "tasks")]
    rows = {key: list(_rows(key, values[key], schema, said)) for key in [*top, *sections]}
    blocks = [INTRODUCTION, table(KEYS, (row for key in top for row in rows[key]))]
    for key in sections:
        blocks += [f"## {key}", text(said.get(key, "")), table(KEYS, rows[key])]
        if key == "preprocess":
            blocks.append(f"Layouts of pairs, by name: {', '.join(map(code, NAMINGS))}.")
            blocks += _tasks(values["tasks"], said)
    blocks += [*_rules(), *networks(), *losses_schedules_optimizers(), *penalties()]
    return page("params.yaml", *blocks)


def _rows(key: str, value: Any, schema: Schema, said: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Yields the row of a key, and those of the keys of a section."""
    node, _, _ = schema.walk(key.split("."), _nested(key, value))
    expected, name = EXPECTED.get(key) or schema.expected(node), key
    is_choice, is_section = key in CHOSEN_BY_NAME and isinstance(value, dict), isinstance(value, dict)
    if is_choice:
        name, value = f"{key}.name", value["name"]
    has_own_rows = is_section and not is_choice and "properties" in node
    if has_own_rows and "." in key and not any(f"{key}.{inner}" in said for inner in value):
        # One row for the whole section: its comment says all.
        nodes = {inner: schema.walk([*key.split("."), inner], _nested(key, value))[0] for inner in value}
        allowed = {inner: schema.expected(node) for inner, node in nodes.items()}
        together = {allows: ", ".join(k for k in allowed if allowed[k] == allows) for allows in allowed.values()}
        expected = "; ".join(f"{names}: {allows}" for allows, names in together.items())
        has_own_rows = False
    if "." in key or not is_section or is_choice:
        yield code(name), text(expected), code(in_yaml(value)), text(_without_choices(said.get(name, ""), expected))
    if has_own_rows:
        for inner, inner_value in value.items():
            yield from _rows(f"{key}.{inner}", inner_value, schema, said)


def _without_choices(meaning: str, expected: str) -> str:
    """Returns a comment without the list of choices at its end, where `expected` lists the same ones."""
    return meaning.removesuffix(" | ".join(re.split(", | or ", expected))).rstrip(": ")


def _nested(key: str, value: Any) -> Any:
    """Returns nested mappings in which a dotted key has a value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _tasks(values: Mapping[str, Any], said: Mapping[str, str]) -> Iterator[str]:
    yield "## tasks"
    yield (
        "One section for each task. Only that of the chosen `task` is used. `degradation` is what is trained on, and "
        "what the ordinary test images have. `out_of_distribution` names other degradations, which are tested on, too. "
        "`rotations` says whether training images are rotated where `train.rotations` is `auto`."
    )
    for name, section in values.items():
        task = task_class(name)
        yield f"### {name}"
        yield text(first_paragraph(task))
        yield "\n".join(f"- {line}" for line in _facts(task, section, said, name))
        for kind in task.degradations:
            given = section["degradation"] if task.kind_of(section["degradation"]) is kind else {}
            title = f"`tasks.{name}.degradation`"
            other = "" if given or len(task.degradations) == 1 else ", in place of the settings above"
            yield f"{title}{other}:"
            yield settings_table(kind, ("Setting", "Allowed", "Shipped", "Meaning"), given)


def _facts(task: type[Task], section: Mapping[str, Any], said: Mapping[str, str], name: str) -> Iterator[str]:
    for about in filter(None, (said.get(f"tasks.{name}"), said.get(f"tasks.{name}.degradation"))):
        yield text(about)
    yield f"metrics: {text('; '.join(metric.title for metric in task.metrics))}. The first one decides"
    yield f"network of `auto`: {code(in_yaml(dict(task.network)))}; loss of `auto`: `{task.loss}`"
    yield f"out of distribution: {code(in_yaml(section['out_of_distribution']))}"
    why = text(said.get(f"tasks.{name}.rotations", ""))
    yield f"rotations: {code(in_yaml(section['rotations']))}" + (f" ({why})" if why else "")


def _rules() -> Iterator[str]:
    yield "## Rules across sections"
    yield "Combinations are checked, too. A message names the keys and what to use instead."
    yield "\n".join(f"- {text(first_paragraph(rule))}" for rule in RULES)
