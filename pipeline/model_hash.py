"""The identity of a model: its weights and its architecture, not the file that carries them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def model_sha256(path: Path) -> str:
    """SHA-256 of a model file's tensors and network settings, without what else its header says (commit, lineage).

    A safetensors file is the header's length (8 bytes, little endian), the header as JSON, and the tensors' bytes.

    Raises:
        ValueError: the file is not a model of eqreg.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            metadata = json.loads(header.pop("__metadata__")["eqreg"])
            identity = {"tensors": header, "network": metadata["network"], "task": metadata["task"]}
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(f"{path}: not a model of eqreg ({error}); run 'eqreg train'") from error
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
