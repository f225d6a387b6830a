"""What the registry holds: addresses ``models:/NAME@ALIAS`` and ``models:/NAME/VERSION``, and the versions' records.

Other than ``Registry``, which serves the stages, this reads any model of the registry, by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.databases import sqlite_file
from pipeline.tracking.models.loading import FILES_TAG, LARGEST_NUMBER, listed, registered_names
from pipeline.tracking.models.registry import UNCHANGED, Registry, Version
from pipeline.tracking.store import Store, answering, tracking_uri, without_password

PREFIX = "eqreg-"
_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>[1-9]\d*))")


@dataclass(frozen=True)
class Address:
    """The address of a version.

    Attributes:
        name: of the model.
        alias: that points to the version; None if the address has the number.
        number: of the version, as text; None if the address has an alias.
    """

    name: str
    alias: str | None
    number: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

        Raises:
            UserError: it is neither.
        """
        if (found := _ADDRESS.fullmatch(text)) is None:
            raise UserError(
                f"{text}: use models:/NAME@ALIAS or models:/NAME/VERSION, as models:/eqreg-denoise@champion"
            )
        return cls(**found.groupdict())

    def __str__(self) -> str:
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.number}"


@dataclass(frozen=True)
class Record:
    """What the registry says about a version.

    Attributes:
        name: of the model.
        number: of the version, as text.
        aliases: that point to the version.
        created: when it was registered, UTC.
        tags: its tags.
        description: the model card; empty if there is none.
        run_id: of the run that trained it; empty if there is none.
    """

    name: str
    number: str
    aliases: tuple[str, ...]
    created: datetime
    tags: Mapping[str, str]
    description: str
    run_id: str

    @property
    def address(self) -> str:
        """``models:/NAME/VERSION``."""
        return f"models:/{self.name}/{self.number}"


def registry_of(name: str) -> Registry:
    """The registry of a model of any name, in the store of ``MLFLOW_TRACKING_URI`` or the default one.

    Raises:
        UserError: there is no such store. (MLflow would create an empty database.)
    """
    uri = tracking_uri()
    if (file := sqlite_file(uri)) and not file.exists():
        raise UserError(f"there is no {without_password(uri)}: run 'eqreg register' or set MLFLOW_TRACKING_URI")
    return Registry(Store(name.removeprefix(PREFIX), uri), name)


def model_names(registry: Registry) -> list[str]:
    """The names of all models in the registry, sorted."""
    client = registry.store.client
    with answering(registry.store.uri):
        return registered_names(client)


def versions(registry: Registry) -> list[Record]:
    """All versions of the registry's model, the newest first.

    Raises:
        UserError: there is no such model.
    """
    aliases = _aliases(registry)
    client, found, token = registry.store.client, [], None
    quote = '"' if "'" in registry.name else "'"
    with answering(registry.store.uri):
        while True:
            page = client.search_model_versions(f"name={quote}{registry.name}{quote}", page_token=token)
            found += [_record(version, aliases) for version in page]
            if not (token := page.token):
                break
    return sorted(found, key=lambda record: int(record.number), reverse=True)


def find_version(registry: Registry, address: Address) -> Record:
    """The version at an address.

    Raises:
        UserError: there is no such model, alias or version. The message lists those that exist.
    """
    from mlflow.exceptions import MlflowException

    aliases = _aliases(registry)
    if address.alias is not None and address.alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise UserError(f"{address}: {address.name} has no alias {address.alias}; it has: {known}")
    number = aliases[address.alias] if address.alias is not None else str(address.number)
    with answering(registry.store.uri):
        try:
            if int(number) <= LARGEST_NUMBER:
                return _record(registry.store.client.get_model_version(address.name, number), aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    known = listed([record.number for record in versions(registry)])
    raise UserError(f"{address}: {address.name} has no version {number}; it has: {known}")


def check_exists(registry: Registry) -> None:
    """Checks that the registry's model exists.

    Raises:
        UserError: there is no such model; the message lists those that exist.
    """
    _aliases(registry)


def check_files_exist(registry: Registry, record: Record) -> None:
    """Checks that the files of a version exist, so that it can be loaded.

    Raises:
        UserError: they are gone, or cannot be reached.
    """
    try:
        exist = registry.has_files(Version(record.number, record.aliases))
    except UserError as error:
        raise UserError(str(error).removesuffix(f"\n{UNCHANGED}")) from error
    if not exist:
        raise UserError(
            f"{record.address}: its files are gone, or its logged model was deleted; register the model again"
        )


def verify(registry: Registry, record: Record) -> int:
    """Downloads the files of a version and checks them against the SHA-256 sums of its registration.

    Returns:
        The number of files.

    Raises:
        UserError: the files are gone or cannot be reached, or no sums were stored.
        ValueError: a file is altered, missing or additional; the message names it.
    """
    from mlflow.artifacts import download_artifacts

    from components.inference.integrity import LIST, check_files

    check_files_exist(registry, record)
    if FILES_TAG not in record.tags:
        raise UserError(f"{record.address}: no sums were stored when it was registered; register the model again")
    with answering(registry.store.uri), TemporaryDirectory() as folder:
        files = Path(download_artifacts(record.address, dst_path=folder))
        check_files(files, record.tags[FILES_TAG])
        return len(json.loads((files / LIST).read_text()))


def _aliases(registry: Registry) -> dict[str, str]:
    """The aliases of the registry's model: name -> number of the version.

    Raises:
        UserError: there is no such model.
    """
    from mlflow.exceptions import MlflowException

    with answering(registry.store.uri):
        try:
            found = registry.store.client.get_registered_model(registry.name).aliases
            return {str(alias): str(number) for alias, number in found.items()}
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    known, shown = listed(model_names(registry)), without_password(registry.store.uri)
    raise UserError(f"{registry.name}: no such model in {shown}; registered: {known}")


def _record(version: Any, aliases: Mapping[str, str]) -> Record:
    number = str(version.version)
    return Record(
        name=str(version.name),
        number=number,
        aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        tags=dict(version.tags),
        description=version.description or "",
        run_id=version.run_id or "",
    )
