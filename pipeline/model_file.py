"""Model files: a network's weights with the settings to build it again, and their SHA-256.

Importing this module does not import torch, and loading a network imports its architecture and nothing of training.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from components.brief import first_line
from components.formats import KEY, NewerFormatError, check_format

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1
"""Version of the metadata of a model file."""


def save_model(path: Path, network: nn.Module, metadata: dict[str, Any]) -> None:
    """Writes the weights of a network, and the settings to build it again, to a safetensors file.

    A tensor with several names, as one that several layers share, is written under each of them. The file must be a
    function of data, params and code. The metadata must therefore hold no commit, time or path.
    Settings that decide the initial weights alone, as the path of a file of them, are left out.

    Args:
        path: of the file.
        network: whose weights are written.
        metadata: ``metadata["network"]`` holds the arguments of ``build_network``, ``metadata["task"]`` the task.

    Raises:
        ValueError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in memory else tensor  # safetensors takes no two tensors in one memory
        memory.add(place)
    initial = getattr(getattr(network, "Settings", None), "initial", ())
    settings = {name: value for name, value in metadata["network"].items() if name not in initial}
    try:
        save_file(tensors, path, {"eqreg": json.dumps({KEY: FORMAT, **metadata, "network": settings}, sort_keys=True)})
    except SafetensorError as error:  # for example a full disk
        raise ValueError(f"{path}: cannot be written ({first_line(error)})") from error


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Reads a file that ``save_model`` wrote.

    Returns:
        The network in evaluation mode, and the metadata.

    Raises:
        ValueError: the file was not written by ``save_model``, or by a newer one.
    """
    from safetensors import safe_open

    from components.networks import build_network

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads(file.metadata()["eqreg"])
            check_format(metadata, FORMAT, str(path))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        network = build_network(**metadata["network"])
        network.load_state_dict(weights)
    except NewerFormatError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a model of eqreg ({first_line(error)}); run 'eqreg train'") from error
    return network.eval(), metadata


def model_sha256(path: Path) -> str:
    """SHA-256 of the tensors, the network settings and the task in a model file.

    The other entries of the header (hashes, steps) are left out.

    Raises:
        ValueError: the file is not a model of eqreg.
    """
    with path.open("rb") as file:
        header, metadata = _header(file, path)
        identity = {"tensors": header, "network": metadata["network"], "task": metadata["task"]}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_metadata(path: Path) -> dict[str, Any]:
    """The metadata that ``save_model`` wrote: "network", "task" and, for a trained model, "hashes" and "steps".

    Of a classification it also holds "classes", their names, and "image_size", (height, width) of the training images.

    Raises:
        ValueError: the file is not a model of eqreg.
    """
    with path.open("rb") as file:
        return _header(file, path)[1]


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads (name -> dtype, shape and offsets of each tensor, metadata), and leaves the file at the tensors' bytes.

    A safetensors file holds the header's length (8 bytes, little endian), the header as JSON, and the tensors' bytes.
    """
    try:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata: dict[str, Any] = json.loads(header.pop("__metadata__")["eqreg"])
        if not {"network", "task"} <= metadata.keys():
            raise ValueError("its header names no network and task")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path}: not a model of eqreg ({error}); run 'eqreg train'") from error
    check_format(metadata, FORMAT, str(path))
    return header, metadata
