"""``chainner``: weights under the published names, which spandrel reads (chaiNNer, ComfyUI and others use it)."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from components.networks import NETWORKS, network_class
from pipeline.commands.exporting.form import KEY, Form, Run, no_check
from pipeline.commands.exporting.source import Source
from pipeline.errors import UserError

METHOD = "chainner"
"""Method of a network's class: the module whose ``state_dict`` these programs read."""


def _module(source: Source) -> nn.Module:
    """The module with the published names.

    Raises:
        UserError: only an exported program is there, or these programs know no such network.
    """
    if source.is_program:
        raise UserError(
            f"{source.name}: only its exported program can be used here, and --format chainner needs the network: "
            "export from the commit that registered it, or from its model.safetensors"
        )
    make = getattr(source.network, METHOD, None)
    if make is None:
        known = ", ".join(name for name in NETWORKS if hasattr(network_class(name), METHOD))
        raise UserError(f"{source.name}: chaiNNer's loader knows no {source.title}; of our networks it reads: {known}")
    try:
        module: nn.Module = make()
    except ValueError as error:
        raise UserError(f"{source.name}: {error}") from error
    return module.eval()


def _write(source: Source, path: Path, device: str) -> None:
    tensors = _module(source).state_dict()
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def _describe(path: Path, text: str) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    save_file(tensors, path, {KEY: text})


def _read(path: Path, source: Source, device: str) -> Run:
    module = _module(source)
    module.load_state_dict(load_file(path))
    return module


CHAINNER = Form(suffix=".safetensors", has_device=False, check=no_check, write=_write, describe=_describe, read=_read)
