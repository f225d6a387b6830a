"""The identity of a model: its weights and its architecture, not the file that carries them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO


def model_sha256(path: Path) -> str:
    """SHA-256 of a model file's tensors and network settings, without what else its header says (hashes, steps).

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
    """What ``save_model`` was told beside the weights: "network", "task" and, of a training, "hashes" and "steps".

    Raises:
        ValueError: the file is not a model of eqreg.
    """
    with path.open("rb") as file:
        return _header(file, path)[1]


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(name -> dtype, shape and place of each tensor, metadata); the file then stands at the tensors' bytes.

    A safetensors file is the header's length (8 bytes, little endian), the header as JSON, and the tensors' bytes.
    """
    try:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata: dict[str, Any] = json.loads(header.pop("__metadata__")["eqreg"])
        if not {"network", "task"} <= metadata.keys():
            raise ValueError("its header names no network and task")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path}: not a model of eqreg ({error}); run 'eqreg train'") from error
    return header, metadata
