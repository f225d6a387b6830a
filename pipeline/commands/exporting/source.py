"""The model that is exported: its network, its description and its SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from components.brief import first_line
from components.inference.contract import Contract
from components.networks import NETWORKS, network_settings
from components.registry import module_of
from pipeline.errors import UserError, fault_of_machine

_ROWS = 33


@dataclass(frozen=True)
class Source:
    """A model that is exported.

    Attributes:
        name: as the user gave it.
        network: in evaluation mode, on the CPU.
        contract: what it takes and gives.
        sha256: of the model, as ``pipeline.model_file.model_sha256``; empty if the registry does not say it.
        smallest_side: that the network declares.
    """

    name: str
    network: nn.Module
    contract: Contract
    sha256: str
    smallest_side: int = 1

    @property
    def is_program(self) -> bool:
        """Whether the network is an exported program: without classes, parameters' names and settings of ours."""
        return isinstance(self.network, fx.GraphModule)

    @property
    def title(self) -> str:
        """Name of the network, as in params.yaml; else of its class."""
        kind = type(self.network)
        return next((name for name in NETWORKS if kind.__module__ == module_of(NETWORKS, name)), kind.__name__)

    def example(self) -> Tensor:
        """Images for tracing, ``(2, C, 2n + 1, n + 1)`` with n a power of 2.

        Batch, height and width differ and are not 1, because torch takes such sizes for fixed. Height and width stay
        odd when they are halved and rounded up. At an even size AOTInductor would compile a pooling with
        ``ceil_mode`` as one that rounds down, which is wrong at other sizes (seen with torch 2.13).
        """
        n = _ROWS - 1
        while n < 2 * self.smallest_side:
            n *= 2
        return torch.rand(2, self.contract.inputs, 2 * n + 1, n + 1, generator=torch.Generator().manual_seed(0))


def load_source(name: str) -> Source:
    """Loads a model file, or a version of the registry.

    Args:
        name: ``model.safetensors`` or ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        UserError: there is no such model, or its shape is of no known kind.
    """
    if not name.startswith("models:/"):
        return _of_file(name, Path(name).expanduser())
    from pipeline.tracking.models.loading import load_version
    from pipeline.tracking.store import tracking_uri

    try:
        found = load_version(name, tracking_uri(), "cpu")
    except UserError as error:
        raise UserError(str(error).removeprefix("--model ")) from error
    return _measured(name, found.network, found.contract, found.model_sha256, found.settings)


def _of_file(name: str, path: Path) -> Source:
    from pipeline.model_file import load_model, model_sha256

    if not path.is_file():
        raise UserError(f"{name}: no such file; give a model.safetensors, models:/NAME@ALIAS or models:/NAME/VERSION")
    network, metadata = load_model(path)
    try:
        contract = Contract.of_network(network, metadata.get("task", ""), metadata)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return _measured(name, network, contract, model_sha256(path), metadata["network"])


@torch.no_grad()
def _measured(name: str, network: nn.Module, contract: Contract, sha256: str, settings: Mapping[str, Any]) -> Source:
    """The source, with the outputs and the scale as one run shows them: versions of earlier releases do not say them.

    Args:
        name: of the model.
        network: on the CPU.
        contract: what it takes and gives.
        sha256: of the model.
        settings: arguments of ``build_network``; empty if they are unknown.

    Raises:
        UserError: the network does not run, as one that another tool registered for one size alone, or its output is
            not finite.
    """
    smallest = _smallest_side(settings)
    side = max(64, 2 * smallest)
    try:
        output = network(torch.zeros(2, contract.inputs, side, side))
    except Exception as error:  # a program of another tool may raise any exception
        if fault_of_machine(error):
            raise
        given = f"2 images of {contract.inputs} channels and {side}x{side} pixels"
        raise UserError(f"{name}: cannot be exported, it fails on {given} ({first_line(error)})") from error
    if not output.isfinite().all():
        raise UserError(f"{name}: gives values that are no finite numbers: its training may have diverged")
    scale = output.shape[-1] // side if output.ndim == 4 else 1
    return Source(name, network, replace(contract, outputs=output.shape[1], scale=scale), sha256, smallest)


def _smallest_side(settings: Mapping[str, Any]) -> int:
    """The least side that a network with these arguments of ``build_network`` declares; 1 if they are unknown.

    The network may be of other code, and its program alone is exported. Then this code may not know its arguments.
    """
    try:
        return int(network_settings(**settings).smallest_side)
    except (KeyError, TypeError, ValueError):
        return 1


__all__ = ["Source", "load_source"]
