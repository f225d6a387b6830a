"""The model of ``eqreg restore``: loaded onto a device, with a check that it restores what is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.inference.contract import Contract
from pipeline.commands.restoring.memory import sha256
from pipeline.errors import UserError

if TYPE_CHECKING:
    from components.inference.restorer import ImageRestorer


def check_model(model: str) -> None:
    """Checks that the model file, or the registry of a ``models:/`` address, exists.

    Raises:
        UserError: it does not exist.
    """
    if model.startswith("models:/"):
        from pipeline.tracking.models.loading import check_store
        from pipeline.tracking.store import tracking_uri

        check_store(model, tracking_uri())
    elif not Path(model).is_file():
        raise UserError(f"--model {model}: neither models:/NAME@ALIAS nor a file")


def load_restorer(
    model: str, device: str, mask: Path | None, noise_level: float | None = None
) -> tuple[ImageRestorer, str]:
    """Loads a model that restores images or CT slices onto a device.

    Returns:
        (the network with what is known of it, a digest that names the model).

    Raises:
        UserError: the model is unknown, takes no mask or noise level or needs one, restores no images, or torch cannot
            use the device.
    """
    restorer, digest = load(model, device)
    _check_contract(restorer.contract, model, mask)
    try:
        restorer.contract.chosen_noise_level(noise_level)
    except ValueError as error:
        raise UserError(f"--model {model}: {error} (--noise-level)") from error
    return restorer, digest


def load(model: str, device: str) -> tuple[ImageRestorer, str]:
    """Loads a model of any kind onto a device.

    Returns:
        (the network with what is known of it, a digest that names the model).

    Raises:
        UserError: the model is unknown, no command takes such a model, or torch cannot use the device.
    """
    import torch

    from components.inference.restorer import ImageRestorer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: torch cannot use it here ({str(error).splitlines()[0]})") from error
    if model.startswith("models:/"):
        from pipeline.tracking.models.loading import load_version
        from pipeline.tracking.store import tracking_uri

        loaded = load_version(model, tracking_uri(), device)
        network, contract, digest = loaded.network, loaded.contract, loaded.digest
    else:
        from pipeline.model_file import load_model

        network, metadata = load_model(Path(model))
        try:
            contract = Contract.of_network(network, metadata.get("task", ""), metadata)
        except ValueError as error:
            raise UserError(f"--model {model}: it wants {network.in_channels} channels: call it from Python") from error
        network, digest = network.to(device), sha256(Path(model).read_bytes())
    return ImageRestorer(network, contract, device), digest


def _check_contract(contract: Contract, model: str, mask: Path | None) -> None:
    """Checks that the model restores images of the kind that is given.

    Raises:
        UserError: it needs a mask that is not given, takes no mask, or needs an input of another kind.
    """
    if contract.kind == "labels":
        raise UserError(f"--model {model}: it recognises images and restores none: use eqreg classify")
    if contract.kind == "image" and mask is not None:
        raise UserError(f"--mask {mask}: model {model} takes an image alone")
    if contract.kind == "masked_image" and mask is None:
        raise UserError(f"--model {model}: it wants an image and a mask: add --mask")
