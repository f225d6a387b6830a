"""The page of the search spaces: distributions, conditions, variants, and the spaces in tune_spaces."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.generate.comments import comments
from docs.generate.markdown import code, first_paragraph, in_yaml, page, table, text
from pipeline.config.messages import Schema
from pipeline.config.schema import load_params
from pipeline.config.values import read_values
from pipeline.search_space.distributions import KINDS, Asked
from pipeline.search_space.enumeration import MOST_CHECKED, MOST_IN_A_GRID
from pipeline.search_space.parsing import SEARCHED, SET_BY_SWEEPS
from pipeline.search_space.space import build_space

EXAMPLES: dict[str, dict[str, Any]] = {
    "log_uniform": {"equivariance.weight": {"distribution": "log_uniform", "low": 0.003, "high": 0.05}},
    "uniform": {"equivariance.pair_fraction": {"distribution": "uniform", "low": 0.125, "high": 0.5, "step": 0.125}},
    "integer": {"network.width": {"distribution": "integer", "low": 16, "high": 48, "step": 8}},
    "choice": {"equivariance.penalty": {"distribution": "choice", "values": ["regular", "rotation"]}},
    "weight_per_layer": {
        "equivariance.layer_weights": {
            "distribution": "weight_per_layer", "layers": ["down.*", "merge.*", "last"], "low": 0.0, "high": 1.0
        }
    },
}  # fmt: skip
"""Distribution -> an entry of a space; each is checked against params.yaml when the page is made."""

WEIGHT = EXAMPLES["log_uniform"]

INTRODUCTION = f"""\
`tune.space` and `ablate.space` name a file in `tune_spaces/`. It has one entry for each searched key of params.yaml.
Add a file there to search something else. A space is checked before any work: its keys and bounds, and that params.yaml
would accept its combinations: all of them, or, if there are more than {MOST_CHECKED:,}, a sample of {MOST_CHECKED:,}
(drawn with a fixed seed).

- `search: optuna`, the default, takes proposals of a sampler. Such a space must search `equivariance.weight`. Weight 0
  with the same pairs, the control, is always among the trials.
- `search: grid` takes every combination, at most {MOST_IN_A_GRID:,}. Each distribution must then have a
  finite number of values: a choice, an integer, or a uniform one with a step. A grid has no control of its own; its
  arms say what they are.

Keys of these sections can be searched: {", ".join(map(code, SEARCHED))}. The sweep itself sets
{", ".join(code(f"train.{key}") for key in SET_BY_SWEEPS)}."""

CONDITIONS = [
    {"equivariance.penalty": EXAMPLES["choice"]["equivariance.penalty"]},
    {
        "equivariance.weight": [
            {"distribution": "log_uniform", "low": 0.003, "high": 0.05, "when": {"equivariance.penalty": "regular"}},
            {"distribution": "log_uniform", "low": 0.001, "high": 0.02, "when": {"equivariance.penalty": "rotation"}},
        ]
    },
    {
        "equivariance.group": {
            "distribution": "choice", "values": ["C4", "D4"], "when": {"equivariance.penalty": ["regular"]}
        }
    },
]  # fmt: skip

VARIANTS = [
    WEIGHT,
    {
        "profile": {
            "variants": {
                "uniform": {"equivariance.layer_weights": {"profile": "uniform"}},
                "geometric": {"equivariance.layer_weights": {"profile": "geometric", "decay": 1.0}},
            }
        }
    },
    {
        "equivariance.layer_weights.decay": {
            "distribution": "uniform", "low": 0.5, "high": 1.0, "when": {"profile": "geometric"}
        }
    },
]  # fmt: skip


def search_spaces_page(root: Path) -> str:
    """Returns the page; ``root`` is the folder of params.yaml and tune_spaces."""
    blocks = [INTRODUCTION, "## Distributions"]
    for name, kind in KINDS.items():
        blocks += [f"### {name}", *_distribution(name, kind, root)]
    blocks += [
        "## Conditions",
        "`when: {OTHER: VALUE}` makes an entry conditional: it is sampled only where the other parameter of the space "
        "has this value, or one of a list of values. Several conditions must all hold. A condition on a parameter that "
        "was not sampled does not hold. The other parameter must be a choice, an integer or variants. The order of the "
        "entries does not matter; conditions that wait for each other are refused.",
        "A list of entries gives a key alternatives: the first whose `when` holds is sampled. If none holds, the key "
        "stays as it is in params.yaml.",
        _example(CONDITIONS, root),
        "## Variants",
        "`variants` are named sets of changes, of which one is chosen. They stand under a plain name, without a dot, "
        "which conditions can use. Where a key and a part of it are both chosen, the part is put into the whole: here "
        "`decay` into the geometric profile.",
        _example(VARIANTS, root),
        "## Names in a study",
        "A study stores a sampled value under the key of its parameter, the n-th of several alternatives under "
        "`KEY/n`, and the weight of a layer under `KEY/LAYER`.",
        "## Shipped spaces",
    ]
    for path in sorted((root / "tune_spaces").glob("*.yaml")):
        blocks += _shipped(path)
    return page("Search spaces", *blocks)


def _distribution(name: str, kind: type[Asked], root: Path) -> Iterator[str]:
    yield text(first_paragraph(kind))
    schema, said = Schema(kind.model_json_schema()), _attributes(kind)
    rows = []
    for field, info in kind.model_fields.items():
        if field in ("when", "distribution"):
            continue
        default = "" if info.is_required() else code(in_yaml(info.default))
        expected = schema.expected(schema.walk([field], {field: None})[0])
        rows.append((code(field), text(expected), default, text(said[field])))
    yield table(("Argument", "Allowed", "Default", "Meaning"), rows)
    own = EXAMPLES[name]
    yield _example([own] if own is WEIGHT else [WEIGHT, own], root)


def _attributes(kind: type) -> dict[str, str]:
    """Returns the section "Attributes" of a docstring: name -> text."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    return {name: " ".join(said.split()) for name, said in re.findall(r"^ {4}(\w+): ((?:.+|\n {6,})+)", section, re.M)}


def _example(entries: list[dict[str, Any]], root: Path) -> str:
    """Returns a space as YAML, after it is checked against params.yaml."""
    space: dict[str, Any] = {key: value for entry in entries for key, value in entry.items()}
    build_space("example", space, load_params(root / "params.yaml"), "example")
    lines = []
    for key, value in space.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"  - {in_yaml(each)}" for each in value)]
        elif "variants" in value:
            lines += [f"{key}:", "  variants:", *(f"    {n}: {in_yaml(v)}" for n, v in value["variants"].items())]
        else:
            lines.append(f"{key}: {in_yaml(value)}")
    return "\n".join(["<!-- a search space -->", "```yaml", *lines, "```"])


def _shipped(path: Path) -> Iterator[str]:
    """Yields what a shipped space searches, with the comments of its file."""
    values, said = read_values(path), comments(path.read_text(encoding="utf-8"))
    yield f"### {path.stem}"
    yield text(said.get("", ""))
    yield f"`search: {values.pop('search', 'optuna')}`"
    rows = [row for key, value in values.items() for row in _rows(key, value, said)]
    yield table(("Parameter", "Values", "When", "Comment"), rows)
    for key, value in values.items():
        if "variants" in value:
            yield f"The variants of `{key}`:"
            yield "\n".join(f"- {code(name)}: {code(in_yaml(changes))}" for name, changes in value["variants"].items())


def _rows(key: str, value: Any, said: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for number, entry in enumerate(value if isinstance(value, list) else [value]):
        given = {name: inner for name, inner in entry.items() if name != "when"}
        when = code(in_yaml(entry["when"])) if "when" in entry else ""
        comment = text(said.get(key, "")) if not number else ""
        variants = given.get("variants")
        shown = f"variants {', '.join(map(code, variants))}" if variants else code(in_yaml(given))
        yield code(key), shown, when, comment
