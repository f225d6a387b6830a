"""Resolves the values of a training run.

The values are those of params.yaml. If ``tune.apply`` is true, results/tune/best.yaml overrides some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import Params, load_params
from pipeline.config.values import get_value, parse_values, read_values
from pipeline.errors import UserError
from pipeline.paths import BEST, PARAMS
from pipeline.provenance.lineage import committed_text


@dataclass(frozen=True)
class Resolved:
    """The values of a training run.

    Attributes:
        params: checked params.
        origins: dotted key -> file, for the values that are not from params.yaml.
    """

    params: Params
    origins: dict[str, str]

    def as_yaml(self) -> str:
        """Returns all values as YAML, with comments on the origin of those that are not from params.yaml."""
        notes = "".join(f"# {key}: from {origin}\n" for key, origin in self.origins.items())
        return notes + yaml.safe_dump(self.params.resolved, sort_keys=False)


def resolve(params_file: Path = PARAMS, best_file: Path = BEST) -> Resolved:
    """Resolves the values for training.

    Raises:
        UserError: a value is invalid, best.yaml is missing, or params.yaml was changed in a key that best.yaml
            overrides.
    """
    params, values = load_params(params_file), read_values(params_file)
    if not params.tune.apply:
        return Resolved(params, {})
    if not best_file.exists():
        raise UserError(f"tune.apply: true, but {best_file} is not there: run 'eqreg tune', or set tune.apply: false")
    best = read_values(best_file).get("params") or {}
    _refuse_overruled(values, best, params_file, best_file)
    return Resolved(params.patched(best, str(best_file)), dict.fromkeys(best, str(best_file)))


def _refuse_overruled(values: dict[str, Any], best: dict[str, Any], params_file: Path, best_file: Path) -> None:
    """Refuses to override a value that differs from the last commit, because it was set for this run."""
    text = committed_text(params_file)
    committed = parse_values(text, f"{params_file} of the last commit") if text else values
    for key, value in best.items():
        if get_value(values, key) not in (get_value(committed, key), value):
            raise UserError(
                f"{key}: {get_value(values, key)} was set for this run, but tune.apply is true and {best_file} "
                f"has {value}\nset tune.apply: false (-S tune.apply=false) to use yours, or take back the change"
            )
