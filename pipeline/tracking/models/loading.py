"""Loads a registered version from the registry, after a check of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components.brief import first_line
from components.inference.contract import NOISE_LEVEL, Contract
from components.inference.integrity import LIST, check_files
from pipeline.errors import UserError, fault_of_machine
from pipeline.model_file import load_model, model_metadata
from pipeline.provenance.code_hash import deciding_hash
from pipeline.storage.databases import sqlite_file
from pipeline.tracking.store import MODEL_TAG, answering, make_tables, without_password

if TYPE_CHECKING:
    import torch
    from mlflow import MlflowClient
    from torch import nn

FILES_TAG = "eqreg.files_sha256"
"""Tag of a version: SHA-256 of the list of its files."""

CODE = "eqreg.network_code"
"""Entry of the metadata of a version that holds its model file: `network_code` of its network."""

MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Codes with which MLflow says that a version or an alias does not exist."""

LARGEST_NUMBER = 2**31 - 1
"""Of a version: what every database of MLflow takes."""

_MOST_LISTED = 20
_FILE = "extra_files/*.safetensors"


def check_store(uri: str, store_uri: str) -> None:
    """Checks that the database of the store exists; a server is not asked. MLflow would create an empty database.

    Args:
        uri: of the model that is to be loaded.
        store_uri: address of the MLflow store.

    Raises:
        UserError: the database does not exist.
    """
    if (file := sqlite_file(store_uri)) and not file.exists():
        shown = without_password(store_uri)
        raise UserError(f"--model {uri}: there is no {shown}; run 'eqreg register' or set MLFLOW_TRACKING_URI")


@dataclass(frozen=True)
class LoadedVersion:
    """A registered version in memory.

    Attributes:
        network: on the device that was asked for.
        contract: what it takes and gives.
        digest: that names its files; of versions of earlier releases, the address with the number of the version.
        model_sha256: of the model, by the tag of the version; empty if no tag says it.
        settings: arguments of ``build_network``, from the model file; empty if the version holds none.
    """

    network: nn.Module
    contract: Contract
    digest: str
    model_sha256: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def load_registered(uri: str, store_uri: str, device: torch.device | str) -> nn.Module:
    """Loads the network of a version, as `load_version`."""
    return load_version(uri, store_uri, device).network


def load_version(uri: str, store_uri: str, device: torch.device | str) -> LoadedVersion:
    """Loads the network at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` onto a device; its files are verified.

    Do not move it with ``.to()``: torch does not support that for the module of an exported program.

    Args:
        uri: of the model.
        store_uri: address of the MLflow store.
        device: of the network.

    Raises:
        UserError: the model does not exist, its files are gone or were altered, they are no network that can be loaded
            here, or the registry does not answer.
    """
    from pipeline.tracking.store import quiet_mlflow

    check_store(uri, store_uri)
    if not uri.removeprefix("models:/"):
        raise UserError(f"--model {uri}: use models:/NAME@ALIAS or models:/NAME/VERSION")
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    make_tables(store_uri)  # waits if another process is making them
    mlflow.set_tracking_uri(store_uri)
    with answering(store_uri):
        try:
            return _loaded(uri, device)
        except MlflowException as error:
            if error.error_code in (*MISSING, "NOT_FOUND"):
                shown = without_password(store_uri)
                known = listed(registered_names(mlflow.MlflowClient()))
                reason = " ".join(str(error).split())
                raise UserError(f"--model {uri}: no such model in {shown} ({reason}); registered: {known}") from error
            raise


def _loaded(uri: str, device: torch.device | str) -> LoadedVersion:
    """Loads a registered version onto a device, from the store that MLflow is set to."""
    uri, tags = _version_of(uri)
    wanted = tags.get(FILES_TAG)
    with TemporaryDirectory() as folder:
        files = _downloaded(uri, folder)
        try:
            verify(files, wanted)
        except ValueError as error:
            raise UserError(f"--model {uri}: {error}; use another version, or register the model again") from error
        try:
            network = _rebuilt(files)
            network = exported(files, device) if network is None else network.to(device)
            contract = _contract(files, uri)
        except Exception as error:  # of another tool, or of another version of torch
            if isinstance(error, UserError) or fault_of_machine(error):
                raise
            written, here = writer(files), torch_version()
            other = "" if written in (None, here) else f"; torch {written} wrote it, here is torch {here}"
            raise UserError(f"--model {uri}: cannot be loaded as a network ({first_line(error)}){other}") from error
        file = next(files.glob(_FILE), None)
        settings = model_metadata(file)["network"] if file else {}
        return LoadedVersion(network, contract, wanted or uri, tags.get(MODEL_TAG, ""), settings)


def _downloaded(uri: str, folder: str) -> Path:
    """Downloads the files of a model.

    Raises:
        UserError: the version is registered, and its files are not there.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    gone = "its files are gone or on another machine, or its logged model was deleted; use another version"
    try:
        files = Path(download_artifacts(uri, dst_path=folder))
    except MlflowException as error:
        if error.error_code not in (*MISSING, "NOT_FOUND") or not _is_number(uri):
            raise
        raise UserError(f"--model {uri}: {gone}") from error
    if not any(files.iterdir()):  # MLflow takes a folder that is not there for an empty one
        raise UserError(f"--model {uri}: {gone}")
    return files


def verify(files: Path, wanted: str | None) -> None:
    """Checks the files of a version; versions of earlier releases have no list, and pass.

    Raises:
        ValueError: a file is altered, missing or additional.
    """
    if wanted is not None or (files / LIST).exists():
        check_files(files, wanted)


def _version_of(uri: str) -> tuple[str, dict[str, str]]:
    """The address of a version by its number, and its tags.

    Both are asked for at once, so that an alias that is moved meanwhile does not matter. Other addresses of MLflow,
    such as that of a run, are returned as they are.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    client = mlflow.MlflowClient()
    if _is_number(uri):
        name, number = uri.removeprefix("models:/").split("/")
        if int(number) > LARGEST_NUMBER:
            raise MlflowException(f"no version {number}", RESOURCE_DOES_NOT_EXIST)
        version = client.get_model_version(name, number)
    elif "@" in uri:
        version = client.get_model_version_by_alias(*uri.removeprefix("models:/").rsplit("@", 1))
    else:
        return uri, {}
    return f"models:/{version.name}/{version.version}", dict(version.tags)


def _is_number(uri: str) -> bool:
    """Whether an address has the form ``models:/NAME/VERSION``."""
    return re.fullmatch(r"models:/[^/]+/\d+", uri, re.ASCII) is not None


def registered_names(client: MlflowClient) -> list[str]:
    """The names of all registered models, sorted."""
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [str(model.name) for model in page]
        if not (token := page.token):
            return sorted(names)


def listed(names: Sequence[str]) -> str:
    """Names as text, at most the first 20 of them; "none" without names."""
    more = len(names) - _MOST_LISTED
    return (", ".join(names[:_MOST_LISTED]) or "none") + (f" and {more} more" if more > 0 else "")


def _contract(files: Path, uri: str) -> Contract:
    """What a version takes and gives; from the shapes of its signature, where an earlier release registered it.

    Raises:
        UserError: the version was registered without its shapes, or no command of ours can use such a model.
    """
    from mlflow.models import Model

    if stated := _stated_contract(files):
        return Contract.from_dict(stated)
    signature = Model.load(str(files)).signature
    if signature is None or signature.inputs is None or signature.outputs is None:
        raise UserError(f"--model {uri}: it was registered without the shapes of its input and output")
    inputs, outputs = (each.inputs[0].shape for each in (signature.inputs, signature.outputs))
    try:
        is_image = len(outputs) == 4
        return Contract.of_channels(
            "", inputs[1], outputs[1] if is_image else None, classes=0 if is_image else outputs[1]
        )
    except ValueError as error:
        raise UserError(f"--model {uri}: {error}") from error


def _rebuilt(files: Path) -> nn.Module | None:
    """Builds the network of a version with the code of this checkout, without ``torch.export``, which loads slowly.

    Returns:
        None if the version does not hold its model file, or if its network was of other code.
    """
    from mlflow.models import Model

    code = (Model.load(str(files)).metadata or {}).get(CODE)
    file = next(files.glob(_FILE), None)
    if code is None or file is None:
        return None
    try:
        network, _ = load_model(file)
    except ValueError:  # this checkout has no such network
        return None
    return network if network_code(network) == code else None


def network_code(network: nn.Module) -> str:
    """A hash of the code of a network, 12 hexadecimal digits; comments and docstrings do not change it.

    It covers the modules of the project that define the network and its layers, those that they import, and
    ``build_network``. The same weights in networks of the same hash compute the same function.
    """
    modules = {type(layer).__module__ for layer in network.modules()}
    return deciding_hash(
        "components.networks.build", *sorted(name for name in modules if name.startswith("components."))
    )


def exported(files: Path, device: torch.device | str) -> nn.Module:
    """Loads the exported program of a version.

    MLflow loads the network onto the CPU and rejects an archive with pickles. It cannot move an exported program: it
    returns a module, whose operations may name the CPU. For another device the program is therefore loaded once more
    and moved as a whole.
    """
    import mlflow.pytorch
    import torch

    network: nn.Module = mlflow.pytorch.load_model(str(files))
    if torch.device(device).type != "cpu":
        archive = next(files.rglob("model.pt2"), None)
        if archive is None:  # not registered by eqreg, but as a plain module
            return network.to(device)
        from torch.export.passes import move_to_device_pass

        network = move_to_device_pass(torch.export.load(archive), str(device)).module()
    if _stated_contract(files).get(NOISE_LEVEL) is not None:
        network.needs = ("image", NOISE_LEVEL)  # type: ignore[assignment]
    return network


def _stated_contract(files: Path) -> dict[str, Any]:
    """The contract in a version's metadata; empty where an earlier release or another tool registered it."""
    from mlflow.models import Model

    from pipeline.tracking.models.image_model import CONTRACT

    return (Model.load(str(files)).metadata or {}).get(CONTRACT) or {}


def writer(files: Path) -> str | None:
    """The version of torch that wrote a registered network; None if its files do not say."""
    from mlflow.models import Model

    try:
        return _release(str(Model.load(str(files)).flavors["pytorch"]["pytorch_version"]))
    except Exception:  # damaged, or of another kind
        return None


def torch_version() -> str:
    """The version of torch, without its build."""
    import torch

    return _release(str(torch.__version__))


def _release(version: str) -> str:
    """A version of torch without its build, such as ``+cpu``."""
    return version.split("+")[0]
