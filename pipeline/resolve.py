"""Which values a training run uses: params.yaml, overruled by results/tune/best.yaml where ``tune.apply`` says so."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.lineage import committed_text
from pipeline.params import Params, check_params, get_value, load_params, parse_values, read_values, set_value
from pipeline.paths import BEST, PARAMS


@dataclass(frozen=True)
class Resolved:
    """Attributes: the params to use, the same as plain values, and dotted key -> file for those not of params.yaml."""

    params: Params
    values: dict[str, Any]
    origins: dict[str, str]

    def as_yaml(self) -> str:
        """The values as YAML, with the origin of each that is not of params.yaml."""
        notes = "".join(f"# {key}: from {origin}\n" for key, origin in self.origins.items())
        return notes + yaml.safe_dump(self.values, sort_keys=False)


def resolve(params_file: Path = PARAMS, best_file: Path = BEST) -> Resolved:
    """The values for training.

    Raises:
        UserError: a value is impossible, or params.yaml was changed in a key that best.yaml would overrule.
    """
    params, values = load_params(params_file), read_values(params_file)
    if not params.tune.apply:
        return Resolved(params, values, {})
    if not best_file.exists():
        raise UserError(f"tune.apply: true, but {best_file} is not there: run 'eqreg tune', or set tune.apply: false")
    best = read_values(best_file).get("params") or {}
    _refuse_overruled(values, best, params_file, best_file)
    resolved = copy.deepcopy(values)
    for key, value in best.items():
        set_value(resolved, key, value)
    return Resolved(check_params(resolved, str(best_file)), resolved, dict.fromkeys(best, str(best_file)))


def _refuse_overruled(values: dict[str, Any], best: dict[str, Any], params_file: Path, best_file: Path) -> None:
    """A value that differs from the commit's was set for this run, and must not be overruled in silence."""
    text = committed_text(params_file)
    committed = parse_values(text, f"{params_file} of the last commit") if text else values
    for key, value in best.items():
        if get_value(values, key) not in (get_value(committed, key), value):
            raise UserError(
                f"{key}: {get_value(values, key)} was set for this run, but tune.apply is true and {best_file} "
                f"has {value}\nset tune.apply: false (-S tune.apply=false) to use yours, or take back the change"
            )
