"""MLflow's model registry: the versions of the model ``eqreg-TASK`` and their aliases."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from components.inference.contract import Contract
from pipeline.errors import UserError, fault_of_machine
from pipeline.model_file import model_metadata
from pipeline.storage.databases import sqlite_file
from pipeline.tracking.models.loading import (
    CODE,
    FILES_TAG,
    MISSING,
    exported,
    network_code,
    torch_version,
    verify,
    writer,
)
from pipeline.tracking.store import MODEL_TAG, Store, answering, without_password

if TYPE_CHECKING:
    from torch import nn

CHAMPION, CHALLENGER = "champion", "challenger"
REASON = "eqreg.reason"
UNCHANGED = "the registry was not changed: run 'eqreg register' again later, or delete the alias champion to replace it"
"""What to do if nothing shows whether a version can be used."""

_ATTEMPTS = 3
"""To set an alias that somebody else may create, or delete, at the same time."""

_LOGGED = r"models:/(m-\w+)"
"""Pattern of the source of a version that is a logged model of MLflow, with its id."""


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
                if error.error_code in MISSING:
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
                verify(files, self._tags(version.number).get(FILES_TAG))
                return exported(files, "cpu")
            except Exception as error:
                if fault_of_machine(error):
                    raise
                written, here = writer(files), torch_version()
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

        from pipeline.tracking.models.image_model import save_version

        contract = Contract.of_network(network, self.store.task, model_metadata(file) if file else None)
        sums: list[str] = []

        class Flavor:
            """What `Model.log` calls for the files of the version."""

            @staticmethod
            def save_model(path: str, mlflow_model: Any) -> None:
                metadata = {CODE: network_code(network)} if file else {}
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
        """Moves an alias to a version.

        If two clients of a server set an alias that does not exist yet, both insert a row of the database, and MLflow
        rejects the second. That one is asked again, and finds the row.
        """
        from mlflow.exceptions import MlflowException

        with answering(self.store.uri):
            for attempt in range(_ATTEMPTS):
                try:
                    self.store.client.set_registered_model_alias(self.name, alias, version)
                    return
                except MlflowException as error:
                    if "IntegrityError" not in str(error) or attempt == _ATTEMPTS - 1:
                        raise

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
                if error.error_code in MISSING:
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


def _one_line(error: Exception) -> str:
    return without_password(" ".join(str(error).split()))[:200] or type(error).__name__
