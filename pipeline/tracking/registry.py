"""MLflow's model registry: versions of ``eqreg-TASK`` and their aliases."""

from __future__ import annotations

import errno
import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.errors import FULL, UserError, described
from pipeline.sqlite import sqlite_file
from pipeline.tracking.store import MODEL_TAG, Store, answering, make_tables, without_password

if TYPE_CHECKING:
    import torch
    from torch import nn

CHAMPION, CHALLENGER = "champion", "challenger"
REASON = "eqreg.reason"
_OF_THIS_MACHINE = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


@dataclass(frozen=True)
class Version:
    """A registered version: its number as text, and the aliases that point to it."""

    number: str
    aliases: tuple[str, ...]


class Registry:
    """The versions of one model in the registry of a store.

    Raises:
        UserError: from every method, where the server does not answer.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = f"eqreg-{store.task}"

    def find(self, model_sha256: str) -> Version | None:
        """The version with this model, if its files are there."""
        with answering(self.store.uri):
            condition = f"name='{self.name}' and tags.`{MODEL_TAG}`='{model_sha256}'"
            found = self.store.client.search_model_versions(condition)
        for version in found:
            candidate = Version(str(version.version), self._aliases(version.version))
            if self.has_files(candidate):
                return candidate
        return None

    def champion(self) -> Version | None:
        """The version that the alias points to; None if there is no such alias."""
        from mlflow.exceptions import MlflowException

        with answering(self.store.uri):
            try:
                version = self.store.client.get_model_version_by_alias(self.name, CHAMPION)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        return Version(str(version.version), (CHAMPION,))

    def load(self, version: Version) -> nn.Module | None:
        """The network of a version, on the CPU; None if it cannot be loaded.

        Raises:
            UserError: also where this machine has no room for it, which says nothing of the version.
        """
        try:
            return _network(f"models:/{self.name}/{version.number}", "cpu")
        except Exception as error:
            # Out of reach is not out of order: nobody is dethroned by a network that is down, or by a full disk.
            if type(error).__module__.split(".")[0] in ("requests", "urllib3", "botocore"):
                raise UserError(f"{self.name} version {version.number} cannot be reached ({error})") from error
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE):
                reason = described(error) if isinstance(error, OSError) else "out of memory"
                raise UserError(f"{self.name} version {version.number} cannot be read here ({reason})") from error
            return None

    def add(self, run_id: str, network: nn.Module, model_sha256: str, tags: Mapping[str, str]) -> Version:
        """Logs the network to a run and registers it; it then loads with mlflow and torch alone, for any image size."""
        import mlflow
        import mlflow.pytorch
        import numpy as np
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        channels = int(network.in_channels)  # type: ignore[arg-type]
        inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, channels, -1, -1))])
        classes = getattr(network, "classes", None)
        result = (-1, classes) if classes else (-1, int(network.out_channels), -1, -1)  # type: ignore[arg-type]
        outputs = Schema([TensorSpec(np.dtype(np.float32), result)])
        # Two images of unequal sides: torch.export takes a dimension of 1, or equal ones, for fixed.
        example = np.random.default_rng(0).random((2, channels, 64, 48), dtype=np.float32)
        # MLflow prints what it did to stderr.
        with answering(self.store.uri), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in ("mlflow", "torch.export", "torch._export"):
                logging.getLogger(name).setLevel(logging.ERROR)
            with mlflow.start_run(run_id=run_id):
                info = mlflow.pytorch.log_model(
                    network.eval(),
                    name="model",
                    signature=ModelSignature(inputs, outputs),
                    input_example=example,
                    pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={_torch_version()}"],
                    registered_model_name=self.name,
                )
        version = str(info.registered_model_version)
        for key, value in {**tags, MODEL_TAG: model_sha256}.items():
            self.tag(version, key, value)
        return Version(version, ())

    def tag(self, version: str, key: str, value: str) -> None:
        """Sets a tag of a version."""
        with answering(self.store.uri):
            self.store.client.set_model_version_tag(self.name, version, key, value)

    def reason(self, version: str) -> str:
        """Why a version got its alias; empty where nobody said."""
        with answering(self.store.uri):
            tags: dict[str, str] = self.store.client.get_model_version(self.name, version).tags
        return tags.get(REASON, "")

    def point(self, alias: str, version: str) -> None:
        """Moves an alias to a version."""
        with answering(self.store.uri):
            self.store.client.set_registered_model_alias(self.name, alias, version)

    def has_files(self, version: Version) -> bool:
        """Whether the files of a version are where the registry says."""
        import mlflow.artifacts

        try:
            return bool(mlflow.artifacts.list_artifacts(f"models:/{self.name}/{version.number}"))
        except Exception:
            return False

    def _aliases(self, version: Any) -> tuple[str, ...]:
        with answering(self.store.uri):
            aliases = self.store.client.get_registered_model(self.name).aliases
        return tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version)))


def load_registered(uri: str, store_uri: str, device: torch.device | str) -> nn.Module:
    """The network at ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``, on a device.

    Do not move it by ``.to()``: torch does not support that for the module of an exported program.

    Raises:
        UserError: there is no such model, or the registry does not answer.
    """
    from pipeline.tracking.store import quiet_mlflow

    shown = without_password(store_uri)
    if (file := sqlite_file(store_uri)) and not file.exists():
        # MLflow would make one.
        raise UserError(f"--model {uri}: there is no {shown}; run 'eqreg register' or set MLFLOW_TRACKING_URI")
    quiet_mlflow()
    import mlflow
    from mlflow.exceptions import MlflowException

    make_tables(store_uri)  # where another process is just making them
    mlflow.set_tracking_uri(store_uri)
    with answering(store_uri):
        try:
            return _network(uri, device)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                known = ", ".join(model.name for model in mlflow.MlflowClient().search_registered_models()) or "none"
                reason = " ".join(str(error).split())
                raise UserError(f"--model {uri}: no such model in {shown} ({reason}); registered: {known}") from error
            raise


def _network(uri: str, device: torch.device | str) -> nn.Module:
    """A registered network on a device, from the store that MLflow is set to.

    MLflow loads it onto the CPU and refuses an archive with pickles, but cannot move an exported program: what it gives
    is a module already, whose operations may name the CPU. The program is read once more and moved as a whole.
    """
    import mlflow.pytorch
    import torch
    from torch.export.passes import move_to_device_pass

    with TemporaryDirectory() as folder:
        network: nn.Module = mlflow.pytorch.load_model(uri, dst_path=folder)
        if torch.device(device).type == "cpu":
            return network
        archive = next(Path(folder).rglob("model.pt2"), None)
        if archive is None:  # registered by others, as a plain module
            return network.to(device)
        return move_to_device_pass(torch.export.load(archive), str(device)).module()


def registered_shapes(uri: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of what a registered model takes and gives, -1 where any size will do. After `load_registered`.

    Raises:
        UserError: it was registered without them.
    """
    import mlflow.models

    signature = mlflow.models.get_model_info(uri).signature
    if signature is None or signature.inputs is None or signature.outputs is None:
        raise UserError(f"--model {uri}: it was registered without the shapes of its input and output")
    return tuple(signature.inputs.inputs[0].shape), tuple(signature.outputs.inputs[0].shape)


def _torch_version() -> str:
    import torch

    return str(torch.__version__).split("+")[0]
