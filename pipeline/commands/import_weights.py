"""``eqreg import``: a model file from published weights, which every command that takes a model file can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from components.members import NETWORKS, TASKS
from components.networks import build_network, network_class, network_settings, takes_named_inputs
from components.networks.weights import load_weights
from components.registry import nearest
from components.tasks import inputs_of, task_class
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.model_file import save_model

SHAPE = ("in_channels", "out_channels", "scale", "classes")


def import_weights(name: str, weights: Path, out: Path, task: str, settings: Sequence[str]) -> nn.Module:
    """Writes a model file of a network with published weights, and returns the network.

    Args:
        name: of the network.
        weights: file of the weights, see `components.networks.weights.read_weights`.
        out: file to write; it is replaced.
        task: name of the task for which the weights were trained.
        settings: ``SETTING=VALUE`` each, of the network or of its shape; values are written as in params.yaml, lists
            as ``[1, 2]``.

    Raises:
        UserError: the network, the task or a setting is unknown or impossible, the weights are no weights of this
            network, or the file cannot be written.
    """
    if name not in NETWORKS:
        raise UserError(f"NETWORK {name}: unknown{nearest(name, list(NETWORKS))}")
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown{nearest(task, list(TASKS))}")
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: a model file is called NAME.safetensors")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    arguments = _arguments(settings)
    if takes_named_inputs(network_class(name)):
        given = task_class(task)
        arguments["inputs"] = list(inputs_of(given.gives, given.optional, network_class(name).needs))
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, **arguments).eval()
        chosen = asdict(network_settings(name, **arguments))
        load_weights(network, weights)
    except ValueError as error:
        raise UserError(str(error)) from error
    except TypeError as error:
        raise UserError(f"--set: {error}") from error
    shape: dict[str, Any] = {key: getattr(network, key) for key in SHAPE if hasattr(network, key)}
    if "inputs" in arguments:
        shape["inputs"] = arguments["inputs"]
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_model(partial, network, {"network": {"name": name, **chosen, **shape}, "task": task})
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    number = sum(value.numel() for value in network.parameters())
    console.print(f"{out}: {name} with the weights of {weights.name}, {number:,} parameters", markup=False)
    console.print(f"try it: eqreg restore IMAGE OUT --model {out}", markup=False)
    return network


def _arguments(settings: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise UserError(f"--set {setting}: write SETTING=VALUE")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: the value is no YAML") from None
        if isinstance(found[key], dict):
            raise UserError(f"--set {setting}: a value is a number or a word")
    return found
