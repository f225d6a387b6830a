"""MLflow's model registry: the versions of the model ``eqreg-TASK`` and their aliases."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from components.inference.contract import Contract
from components.inference.integrity import LIST, check_files
from pipeline.errors import UserError, fault_of_machine
from pipeline.model_file import contract_of, load_model, model_metadata
from pipeline.provenance.code_hash import deciding_hash
from pipeline.storage.databases import sqlite_file
from pipeline.tracking.store import MODEL_TAG, Store, answering, make_tables, without_password

if TYPE_CHECKING:
    import torch
    from torch import nn

FILES_TAG = "eqreg.files_sha256"
"""Tag of a version: SHA-256 of the list of its files."""

CHAMPION, CHALLENGER = "champion", "challenger"
REASON = "eqreg.reason"
UNCHANGED = "the registry was not changed: run 'eqreg register' again later, or delete the alias champion to replace it"
"""What to do if nothing shows whether a version can be used."""

_CODE = "eqreg.network_code"
_LOGGED = r"models:/(m-\w+)"
"""Pattern of the source of a version that is a logged model of MLflow, with its id."""
_FILE = "extra_files/*.safetensors"
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Codes with which MLflow says that a version or an alias does not exist."""


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        number: its number as text.
        aliases: the aliases that point to it.
    """

    number: str
    aliases: tuple[str, ...]


class Registry:
    """The versions of one model in the registry of a store.

    Raises:
        UserError: the server does not answer; raised by every method.
    """

    def __init__(self, store: Store, name: str | None = None) -> None:
        """``name`` of the model; None for that of the store's task, ``eqreg-TASK``."""
        self.store = store
        self.name = name or f"eqreg-{store.task}"

    def find(self, model_sha256: str) -> Version | None:
        """The version that holds this model; None if there is none with its files present.

        Raises:
            UserError: the files cannot be listed.
        """
        with answering(self.store.uri):
            condition = f"name='{self.name}' and tags.`{MODEL_TAG}`='{model_sha256}'"
            found = self.store.client.search_model_versions(condition)
        for version in found:
            candidate = Version(str(version.version), self._aliases(version.version))
            if self.has_files(candidate):
                return candidate
        return None

    def champion(self) -> Version | None:
        """The version to which the alias "champion" points; None if the alias does not exist."""
        from mlflow.exceptions import MlflowException

        with answering(self.store.uri):
            try:
                version = self.store.client.get_model_version_by_alias(self.name, CHAMPION)
            except MlflowException as error:
                if error.error_code in _MISSING:
                    return None
                raise
        return Version(str(version.version), (CHAMPION,))

    def load(self, version: Version) -> nn.Module | None:
        """The network of a version, on the CPU; None if its files are gone, damaged or not those of a network.

        Raises:
            UserError: the files cannot be reached, or this machine or this version of torch cannot read them. That does
                not show that the version is damaged.
        """
        from mlflow.artifacts import download_artifacts

        if (location := self._location(version)) is None or not self._lists(version, location):
            return None
        with self._reading(version), TemporaryDirectory() as folder:
            files = Path(download_artifacts(location, dst_path=folder))
            try:
                _verify(files, self._tags(version.number).get(FILES_TAG))
                return _exported(files, "cpu")
            except Exception as error:
                if fault_of_machine(error):
                    raise
                written, here = _writer(files), _torch_version()
                if written not in (None, here):
                    raise UserError(
                        f"{self._title(version)} does not load with torch {here}, and torch {written} wrote it: "
                        f"install that one\n{UNCHANGED}"
                    ) from error
                return None

    def add(
        self, run_id: str, network: nn.Module, model_sha256: str, tags: Mapping[str, str], file: Path | None = None
    ) -> Version:
        """Logs the network to a run and registers it. It can then be loaded with mlflow and torch, for any image size.

        Args:
            run_id: the run.
            network: the network to register.
            model_sha256: stored as a tag, by which ``find`` finds the version.
            tags: further tags of the version.
            file: file of the network, which the version then also holds. ``eqreg restore`` loads it faster than the
                exported program, as long as the code of the network is the same.

        Returns:
            The new version, without aliases.
        """
        import mlflow
        from mlflow.models import Model

        from pipeline.tracking.image_model import save_version

        contract = contract_of(network, self.store.task, model_metadata(file) if file else None)
        sums: list[str] = []

        class Flavor:
            """What `Model.log` calls for the files of the version."""

            @staticmethod
            def save_model(path: str, mlflow_model: Any) -> None:
                metadata = {_CODE: network_code(network)} if file else {}
                sums.append(save_version(Path(path), network.eval(), contract, mlflow_model, file, **metadata))

        # MLflow prints messages to stderr.
        with answering(self.store.uri), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in ("mlflow", "torch.export", "torch._export"):
                logging.getLogger(name).setLevel(logging.ERROR)
            with mlflow.start_run(run_id=run_id):
                info = Model.log(artifact_path=None, name="model", flavor=Flavor, registered_model_name=self.name)
        version = str(info.registered_model_version)
        for key, value in {**tags, MODEL_TAG: model_sha256, FILES_TAG: sums[0]}.items():
            self.tag(version, key, value)
        return Version(version, ())

    def tag(self, version: str, key: str, value: str) -> None:
        """Sets a tag of a version."""
        with answering(self.store.uri):
            self.store.client.set_model_version_tag(self.name, version, key, value)

    def describe(self, version: str, card: str, title: str) -> None:
        """Sets the description of a version, its model card, and that of the model, if it has none, to one line."""
        client = self.store.client
        with answering(self.store.uri):
            client.update_model_version(self.name, version, card)
            if not client.get_registered_model(self.name).description:
                client.update_registered_model(self.name, title)

    def reason(self, version: str) -> str:
        """The reason why a version has its alias; empty if none is stored."""
        return self._tags(version).get(REASON, "")

    def point(self, alias: str, version: str) -> None:
        """Moves an alias to a version."""
        with answering(self.store.uri):
            self.store.client.set_registered_model_alias(self.name, alias, version)

    def has_files(self, version: Version) -> bool:
        """Whether the files of a version exist at the location in the registry.

        Raises:
            UserError: they cannot be listed, or they may be on another machine.
        """
        location = self._location(version)
        return location is not None and self._lists(version, location)

    def _location(self, version: Version) -> str | None:
        """The address of the files of a version; None if the version or its logged model was deleted.

        The files of a logged model that was deleted are there until ``mlflow gc``, but ``models:/`` finds no model.
        """
        from mlflow.exceptions import MlflowException

        client = self.store.client
        with answering(self.store.uri):
            try:
                source = client.get_model_version(self.name, version.number).source
                if found := re.fullmatch(_LOGGED, str(source)):
                    client.get_logged_model(found[1])
                return str(client.get_model_version_download_uri(self.name, version.number))
            except MlflowException as error:
                if error.error_code in _MISSING:
                    return None
                raise

    def _lists(self, version: Version, location: str) -> bool:
        from mlflow.artifacts import list_artifacts

        with self._reading(version):
            if list_artifacts(location):
                return True
            # Other machines may use the same server or database; only a database in a file is on this machine.
            if urlsplit(location).scheme in ("", "file") and not sqlite_file(self.store.uri):
                raise UserError(
                    f"{self._title(version)}: {location} is not on this machine; it may be on the one that registered "
                    f"it\n{UNCHANGED}"
                )
        return False

    @contextmanager
    def _reading(self, version: Version) -> Iterator[None]:
        """Raises a ``UserError`` for any error in the block: it does not show that the version is damaged."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            fault = fault_of_machine(error)
            reason = f"cannot be read here ({fault})" if fault else f"cannot be reached ({_one_line(error)})"
            raise UserError(f"{self._title(version)} {reason}\n{UNCHANGED}") from error

    def _tags(self, version: str) -> dict[str, str]:
        with answering(self.store.uri):
            tags: dict[str, str] = self.store.client.get_model_version(self.name, version).tags
        return tags

    def _title(self, version: Version) -> str:
        return f"{self.name} version {version.number}"

    def _aliases(self, version: Any) -> tuple[str, ...]:
        with answering(self.store.uri):
            aliases = self.store.client.get_registered_model(self.name).aliases
        return tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version)))


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
        UserError: the model does not exist, its files are gone or were altered, or the registry does not answer.
    """
    from pipeline.tracking.store import quiet_mlflow

    check_store(uri, store_uri)
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    make_tables(store_uri)  # waits if another process is making them
    mlflow.set_tracking_uri(store_uri)
    with answering(store_uri):
        try:
            return _loaded(uri, device)
        except MlflowException as error:
            if error.error_code in (*_MISSING, "NOT_FOUND"):
                shown = without_password(store_uri)
                known = ", ".join(model.name for model in mlflow.MlflowClient().search_registered_models()) or "none"
                reason = " ".join(str(error).split())
                raise UserError(f"--model {uri}: no such model in {shown} ({reason}); registered: {known}") from error
            raise


def _loaded(uri: str, device: torch.device | str) -> LoadedVersion:
    """Loads a registered version onto a device, from the store that MLflow is set to."""
    from mlflow.artifacts import download_artifacts

    uri, tags = _version_of(uri)
    wanted = tags.get(FILES_TAG)
    with TemporaryDirectory() as folder:
        files = Path(download_artifacts(uri, dst_path=folder))
        try:
            _verify(files, wanted)
        except ValueError as error:
            raise UserError(f"--model {uri}: {error}; use another version, or register the model again") from error
        network = _rebuilt(files)
        network = _exported(files, device) if network is None else network.to(device)
        file = next(files.glob(_FILE), None)
        settings = model_metadata(file)["network"] if file else {}
        return LoadedVersion(network, _contract(files, uri), wanted or uri, tags.get(MODEL_TAG, ""), settings)


def _verify(files: Path, wanted: str | None) -> None:
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

    name, at, alias = uri.removeprefix("models:/").partition("@")
    client = mlflow.MlflowClient()
    if at:
        version = client.get_model_version_by_alias(name, alias)
    elif (parts := name.split("/"))[1:] and parts[1].isdecimal():
        version = client.get_model_version(*parts[:2])
    else:
        return uri, {}
    return f"models:/{version.name}/{version.version}", dict(version.tags)


def _contract(files: Path, uri: str) -> Contract:
    """What a version takes and gives; from the shapes of its signature, where an earlier release registered it.

    Raises:
        UserError: the version was registered without its shapes, or no command of ours can use such a model.
    """
    from mlflow.models import Model

    from pipeline.tracking.image_model import CONTRACT

    model = Model.load(str(files))
    if stated := (model.metadata or {}).get(CONTRACT):
        return Contract.from_dict(stated)
    signature = model.signature
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

    code = (Model.load(str(files)).metadata or {}).get(_CODE)
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


def _exported(files: Path, device: torch.device | str) -> nn.Module:
    """Loads the exported program of a version.

    MLflow loads the network onto the CPU and rejects an archive with pickles. It cannot move an exported program: it
    returns a module, whose operations may name the CPU. For another device the program is therefore loaded once more
    and moved as a whole.
    """
    import mlflow.pytorch
    import torch

    network: nn.Module = mlflow.pytorch.load_model(str(files))
    if torch.device(device).type == "cpu":
        return network
    archive = next(files.rglob("model.pt2"), None)
    if archive is None:  # not registered by eqreg, but as a plain module
        return network.to(device)
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(torch.export.load(archive), str(device)).module()


def _writer(files: Path) -> str | None:
    """The version of torch that wrote a registered network; None if its files do not say."""
    from mlflow.models import Model

    try:
        return _release(str(Model.load(str(files)).flavors["pytorch"]["pytorch_version"]))
    except Exception:  # damaged, or of another kind
        return None


def _torch_version() -> str:
    import torch

    return _release(str(torch.__version__))


def _release(version: str) -> str:
    """A version of torch without its build, such as ``+cpu``."""
    return version.split("+")[0]


def _one_line(error: Exception) -> str:
    return without_password(" ".join(str(error).split()))[:200] or type(error).__name__
