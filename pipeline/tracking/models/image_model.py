"""The folder of a registered version: one exported program, two flavours of MLflow.

``mlflow.pytorch.load_model`` gives the program, which takes tensors. ``mlflow.pyfunc.load_model`` gives the image
model, which takes image files (components/inference/image_model.py). Its code is copied into the version under a name
that holds its hash. So versions with different code, this project, and a user's own package ``components`` can be
imported in one process.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from components.inference.contract import Contract
from components.inference.image_model import parameters_of
from components.inference.integrity import write_files
from pipeline.provenance.code_hash import ROOT, deciding_files, deciding_hash, running

if TYPE_CHECKING:
    from mlflow.models import Model
    from torch import nn

CONTRACT = "eqreg.contract"
"""Entry of the version's metadata: what the model takes and gives, `Contract.as_dict`."""

PROGRAM = "artifacts/model.pt2"

_ENTRIES = {
    "image": (),
    "masked_image": ("components.degradations.holes",),
    "ct": ("components.inference.ct",),
    "labels": (),
}
"""Kind of model -> modules that it needs beside those that the image model imports itself."""

_LOADER = '''"""Loads the image model of this version; MLflow calls it."""

from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException


class RefusedInputError(MlflowException, ValueError):
    """The input is not what the model takes; a server answers with status 400 and this message."""


class ImageModel(mlflow.pyfunc.PythonModel):
    """Takes image files or arrays and gives the same kind; the version's description says what exactly."""

    def load_context(self, context):
        from PACKAGE.inference.image_model import ImageModel

        config = context.model_config or {}
        program = Path(context.artifacts["program"])
        self.model = ImageModel.load(program, CONTRACT, str(config.get("device", "auto")))

    # Arrays are one of several kinds. Without a type hint MLflow warns at each load; it checks none of this type.
    def predict(self, context, model_input: np.ndarray, params=None):
        try:
            return self.model.predict(model_input, params)
        except ValueError as error:
            raise RefusedInputError(str(error), error_code=INVALID_PARAMETER_VALUE) from error


mlflow.models.set_model(ImageModel())
'''


def save_version(
    path: Path, network: nn.Module, contract: Contract, mlflow_model: Model, model_file: Path | None, **metadata: Any
) -> str:
    """Writes the folder of a version.

    Args:
        path: of the folder, which must not exist.
        network: the network, in evaluation mode, on the CPU.
        contract: what it takes and gives.
        mlflow_model: MLflow's description, which is completed and saved.
        model_file: file of the network, which the version then also holds.
        metadata: further entries of the version's metadata.

    Returns:
        The SHA-256 of the list of its files (`components.inference.integrity`).
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    with TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        _save_program(scratch / "program", network, contract)
        package = copy_code(scratch / "code", contract)
        loader = scratch / "image_model.py"
        loader.write_text(_LOADER.replace("PACKAGE", package).replace("CONTRACT", repr(contract.as_dict())))
        kinds = {int: "integer", float: "double", str: "string", type(None): "double"}
        mlflow.pyfunc.save_model(
            path,
            python_model=str(loader),
            artifacts={"program": str(scratch / "program/data/model.pt2")},
            code_paths=[str(scratch / "code" / package)],
            model_config={"device": "auto"},  # MLflow ignores a config at loading unless one was saved
            mlflow_model=mlflow_model,
            # No schema of the input: a column of bytes would refuse arrays, a schema of tensors would refuse bytes.
            signature=ModelSignature(
                params=ParamSchema(
                    [ParamSpec(key, kinds[type(value)], value) for key, value in parameters_of(contract).items()]
                )
            ),
            pip_requirements=requirements(scratch / "code" / package),
            metadata={CONTRACT: contract.as_dict(), **metadata},
        )
        program = Model.load(str(scratch / "program")).flavors["pytorch"]
    if model_file:
        (path / "extra_files").mkdir()
        shutil.copyfile(model_file, path / "extra_files" / model_file.name)
    mlflow_model.add_flavor("pytorch", **{**program, "model_data": Path(PROGRAM).parent.as_posix()})
    # MLflow looks for both by their last part. The temporary folder in which they were made is left out.
    mlflow_model.flavors["python_function"]["model_code_path"] = loader.name
    mlflow_model.flavors["python_function"]["artifacts"]["program"]["uri"] = PROGRAM
    mlflow_model.save(str(path / "MLmodel"))
    return write_files(path)


def _save_program(path: Path, network: nn.Module, contract: Contract) -> None:
    """Saves the network as MLflow's pytorch flavour does: exported, with free batch, height and width."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    floats = np.dtype(np.float32)
    result = (-1, contract.outputs) if contract.kind == "labels" else (-1, contract.outputs, -1, -1)
    mlflow.pytorch.save_model(
        network,
        str(path),
        signature=ModelSignature(
            Schema([TensorSpec(floats, (-1, contract.inputs, -1, -1))]), Schema([TensorSpec(floats, result)])
        ),
        # Two images whose height and width differ: torch.export treats a size of 1, or equal sizes, as fixed.
        input_example=np.random.default_rng(0).random((2, contract.inputs, 64, 48), dtype=np.float32),
        pip_requirements=["torch"],
    )


def copy_code(folder: Path, contract: Contract) -> str:
    """Copies the code of the image model as one package that imports no other code of the project.

    Args:
        folder: where the package is written.
        contract: of the model; it says which modules are needed.

    Returns:
        The name of the package, ``eqreg_image_model_HASH``.
    """
    entries = ("components.inference.image_model", *_ENTRIES[contract.kind])
    package = f"eqreg_image_model_{deciding_hash(*entries)}"
    for name in deciding_files(*entries):
        target = folder / package / Path(name).relative_to("components")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(r"\bcomponents(?=\.)", package, (ROOT / name).read_text(encoding="utf-8")), "utf-8")
    for inner in (folder / package, *(path for path in (folder / package).rglob("*") if path.is_dir())):
        (inner / "__init__.py").touch()
    return package


def requirements(package: Path) -> list[str]:
    """Lists what a copied package needs to run, MLflow and torch included, as ``name==version``."""
    imported = {"mlflow", "torch"}
    for path in package.rglob("*.py"):
        for node in running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    names = packages_distributions()
    libraries = imported - sys.stdlib_module_names - {package.name}
    distributions = {each if each in names[each] else names[each][0] for each in libraries}
    return sorted(f"{name.lower()}=={version(name).split('+')[0]}" for name in distributions)
