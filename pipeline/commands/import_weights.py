"""``eqreg import``: a model file from published weights, which every command that takes a model file can use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from components.data.noise_level import NOISE_LEVEL
from components.members import NETWORKS, TASKS
from components.networks import build_network, network_class, takes_named_inputs, why_unfit
from components.networks.form import stack_channels
from components.networks.weights import load_weights
from components.registry import nearest
from components.tasks import Task, inputs_of, task_class
from pipeline.config.members import Choice, RefusedError, chosen_settings
from pipeline.console import console
from pipeline.errors import UserError, fault_of_machine
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
    _check(name, weights, out, task)
    kind, given = network_class(name), task_class(task)
    inputs = inputs_of(given.gives, given.optional, getattr(kind, "needs", None))
    shape, chosen = _arguments(name, settings)
    if takes_named_inputs(kind):
        shape["inputs"] = list(inputs)
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(name, **chosen, **shape).eval()
        if not given.is_classification:
            _check_channels(network, name, task, inputs)
            _check_scale(network, name, task)
        load_weights(network, weights)
    except (ValueError, RuntimeError) as error:
        if reason := fault_of_machine(error):
            raise UserError(f"network {name}: cannot be built with these settings: {reason}") from error
        if isinstance(error, RuntimeError):
            raise
        raise UserError(str(error)) from error
    shape |= {key: getattr(network, key) for key in SHAPE if hasattr(network, key)}
    _write(out, network, {"network": {"name": name, **chosen, **shape}, "task": task})
    number = sum(value.numel() for value in network.parameters())
    console.print(f"{out}: {name} with the weights of {weights.name}, {number:,} parameters", markup=False)
    console.print(_what_next(network, given, out), markup=False)
    return network


def _check(name: str, weights: Path, out: Path, task: str) -> None:
    """Checks what can be checked before the network is built.

    Raises:
        UserError: a name is unknown, the network does not fit the task, or the file cannot have this name.
    """
    if name not in NETWORKS:
        raise UserError(f"NETWORK {name}: unknown{nearest(name, list(NETWORKS))}")
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown{nearest(task, list(TASKS))}")
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: a model file is called NAME.safetensors")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.exists() and weights.exists() and out.samefile(weights):
        raise UserError(f"--out {out}: would overwrite the weights; name another file")
    kind, given = network_class(name), task_class(task)
    scale = min(getattr(kind, "scales", (1,)))  # a task says its scale only with settings
    reason = why_unfit(kind, (*given.gives, *given.optional), scale, given.is_classification)
    if reason is not None:
        because = f" ({name} {reason})" if reason else ""
        raise UserError(f"NETWORK {name}: does not fit --task {task}{because}")


def _check_channels(network: nn.Module, name: str, task: str, inputs: Sequence[str]) -> None:
    """Checks that a network takes the channels of the images that the task stacks.

    Raises:
        UserError: it does not.
    """
    takes, gives = int(network.in_channels), int(network.out_channels)  # type: ignore[arg-type]
    if (channels := stack_channels(inputs, gives)) != takes:
        raise UserError(
            f"--task {task}: stacks {', '.join(inputs)}, which has {channels} channels for an image of {gives}, and "
            f"network {name} takes {takes}: use --set in_channels={channels}, or another number of out_channels"
        )


def _check_scale(network: nn.Module, name: str, task: str) -> None:
    """Checks that a network enlarges images if the task does, and only then.

    Raises:
        UserError: it does not.
    """
    enlarges = task_class(task).scale is not Task.scale  # how much, only its settings say
    if enlarges and network.scale == 1:
        raise UserError(
            f"--task {task}: enlarges images, and network {name} of scale 1 does not: use --set scale=2, 3 or 4"
        )
    if not enlarges and network.scale != 1:
        raise UserError(f"--task {task}: keeps the size of images, and network {name} enlarges them: use --set scale=1")


def _what_next(network: nn.Module, task: type[Task], out: Path) -> str:
    """The line with the command to try."""
    if task.is_classification:
        return f"try it: eqreg classify IMAGE --model {out}"
    level = " --noise-level 25" if NOISE_LEVEL in (getattr(network, "needs", None) or ()) else ""
    return f"try it: eqreg restore IMAGE OUT --model {out}{task.restore_options}{level}"


def _write(out: Path, network: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes a model file whole or not at all."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_model(partial, network, metadata)
        partial.chmod(0o644)  # safetensors gives its files to their owner alone
        partial.replace(out)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        reason = f"cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise UserError(f"--out {out}: {reason.removeprefix(f'{partial}: ')}") from error


def _arguments(name: str, settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads ``SETTING=VALUE``.

    Returns:
        (shape of the task as far as it is given, all settings of the network).
    """
    found = _values(settings)
    shape = {key: found.pop(key) for key in SHAPE if key in found}
    if "name" in found:
        raise UserError("--set name: NETWORK says it")
    try:
        choice = Choice.model_validate({"name": name, **found})
        chosen = chosen_settings(NETWORKS, choice, f"network {name}", kind_of=lambda kind: kind.Settings)
    except RefusedError as error:  # its lines begin with a key such as "network prenet.width"
        lines = [line.replace(f"network {name}.", f"network {name}: ", 1) for line in error.lines[:2]]
        raise UserError("\n".join(lines)) from None
    return shape, asdict(chosen)


def _values(settings: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise UserError(f"--set {setting}: write SETTING=VALUE")
        try:
            found[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):  # the latter of an impossible date
            raise UserError(f"--set {setting}: the value is no YAML") from None
        if isinstance(found[key], dict):
            raise UserError(f"--set {setting}: a value is a number or a word")
    return found
