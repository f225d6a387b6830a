"""The plain values of params.yaml and of other YAML files: reads them, and gets or sets the value of a dotted key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from components.members import LOSSES, NETWORKS, OPTIMIZERS, SCHEDULES, TASKS
from components.registry import Registry, nearest
from pipeline.errors import UserError

CHOSEN_BY_NAME: dict[str, Registry] = {
    "task": TASKS,
    "network": NETWORKS,
    "train.loss": LOSSES,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": SCHEDULES,
}
"""Key of params.yaml -> registry of what it chooses by name."""


def read_values(path: Path) -> dict[str, Any]:
    """Reads the plain values of a YAML file whose top level is a mapping.

    Raises:
        UserError: the file is missing, is not YAML, or has no mapping at its top level.
    """
    try:
        return parse_values(path.read_text(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; run from the folder that holds params.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as text ({error})") from error


def parse_values(text: str, origin: str) -> dict[str, Any]:
    """Parses YAML text to plain values.

    The text is parsed as by DVC: as YAML 1.2, in which 1e-3 is a number and duplicate keys are errors.

    Raises:
        UserError: the text is not YAML, or its top level is not a mapping.
    """
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except ValueError as error:  # a date that does not exist, or a number of thousands of digits
        raise UserError(f"{origin}: not readable as YAML ({error})") from error
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{where}: not readable as YAML ({' '.join(problem.split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{origin}: expected a mapping of sections, found {type(values).__name__}")
    return values


def set_value(values: dict[str, Any], key: str, value: object) -> None:
    """Sets a dotted key in nested plain values; its sections must exist.

    The last part of the key is not checked here, but later with all params.

    Args:
        values: nested plain values, which are changed in place.
        key: dotted key.
        value: new value.

    Raises:
        UserError: a section does not exist.
    """
    *sections, last = key.split(".")
    for depth, section in enumerate(sections, start=1):
        if ".".join(sections[:depth]) in CHOSEN_BY_NAME and isinstance(values.get(section), str):
            values[section] = {"name": values[section]}  # a name alone takes settings, too
        if not isinstance(values.get(section), dict):
            raise UserError(f"{key}: there is no section '{section}' in params.yaml{nearest(section, list(values))}")
        values = values[section]
    values[last] = value


def get_value(values: dict[str, Any], key: str) -> object:
    """Returns the value of a dotted key in nested plain values; None if there is no such key."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node
