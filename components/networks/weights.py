"""Read published weights: files of weights that other projects wrote, into the published module of a network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.data.readers.quiet import no_warnings

WRAPPERS = ("params_ema", "params", "state_dict")
"""Keys under which files hold the weights; of several in one file, the first one here is read."""

PREFIX = "module."
"""Prefix of the names of a network that was wrapped for several GPUs."""

PICKLES = (b"PK", b"\x80")
"""How files of ``torch.save`` begin: an archive, and formerly a pickle."""

SAFETENSORS = b"\0\0\0\0{"
"""Bytes 4 to 8 of a file in the format safetensors: the upper half of its header's length, and the header's begin."""

_MOST = 3  # tensors that a message names
_LONGEST = 80  # characters of the name of a tensor in a message


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file of published weights into the published module of a network; every parameter must be there.

    Tensors that the published module computes itself (its attribute ``computed`` has the ends of their names) may be in
    the file or not. Those that it holds, too, must have its values.

    Args:
        network: of ``build_network``; its weights are replaced, all or none.
        path: as of `read_weights`.

    Raises:
        ValueError: the file cannot be read, or its tensors are not those of the network.

    Example:
        >>> from tempfile import mkdtemp
        >>> from components.networks import build_network
        >>> file, network = Path(mkdtemp(), "weights.pth"), build_network("dncnn", depth=3, width=8, norm="none")
        >>> ones = {f"module.{name}": torch.ones_like(value) for name, value in network.state_dict().items()}
        >>> torch.save({"params": ones}, file)
        >>> load_weights(network, file)
        >>> network.model[0].bias.sum().item()
        8.0
    """
    published = getattr(network, "published", network)
    own: dict[str, Tensor] = published.state_dict()
    weights = {
        name: value for name, value in read_weights(path).items() if name in own or not _is_computed(name, published)
    }
    # Of the other tensors only a count of training steps may be missing: old files have none, and no output depends on
    # it.
    missing = [
        name
        for name in own
        if name not in weights and not name.endswith("num_batches_tracked") and not _is_computed(name, published)
    ]
    unknown = [name for name in weights if name not in own]
    if missing or unknown:
        raise ValueError(
            f"{path}: not the weights of this network with these settings; "
            + "; ".join(
                f"{what}: {_listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
            )
        )
    other = [
        f"{name} {tuple(value.shape)}, here {tuple(own[name].shape)}"
        for name, value in weights.items()
        if value.shape != own[name].shape
    ]
    constants = [name for name in weights if _is_computed(name, published)]
    other = other or [name for name in constants if not torch.equal(weights[name].to(own[name]), own[name])]
    if other:
        raise ValueError(f"{path}: weights of other settings; {_listed(other)}")
    # As they are stored here: a number of float64 can be too large for float32.
    weights = {name: value.to(own[name].dtype) for name, value in weights.items()}
    if broken := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{path}: values that are not finite; {_listed(broken)}")
    published.load_state_dict(weights, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, by name.

    Args:
        path: a file in the format safetensors, or a file of ``torch.save`` with tensors alone, which lie at the top or
            under one of `WRAPPERS`. Its content says which, not its name. The names of the tensors may begin with
            ``module.``.

    Raises:
        ValueError: there is no such file, or it holds something else; no code of a file is run.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    is_safetensors = start[4:9] == SAFETENSORS
    if not is_safetensors and (reason := _foreign(start)):
        raise ValueError(f"{path}: no weights, but {reason}")
    try:
        if is_safetensors:
            held: Any = import_module("safetensors.torch").load_file(path)
        else:
            # An opened file, because torch looks at the end of a name. The warning about the protocol of a pickle is of
            # no use to the user.
            with path.open("rb") as file, no_warnings:
                held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a foreign file, any
        reason = "not a file of weights, or a damaged one"
        is_refused = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower()
        if is_refused and start.startswith(PICKLES):
            reason = (
                "a pickle of more than tensors, such as a whole module, which would run the code of a stranger: "
                "ask for its state_dict"
            )
        raise ValueError(f"{path}: {reason}") from error
    return _tensors(held, path)


def _foreign(start: bytes) -> str:
    """What a file is that begins with these bytes, if it is a common mistake; "" otherwise."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: run 'git lfs pull' where it came from"
    if re.match(rb"(\xef\xbb\xbf)?\s*<[!?a-z]", start, re.IGNORECASE):  # the first three bytes say that it is UTF-8
        return "a page of the web: download the file itself"
    if start.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return "an image"
    if start.startswith(b"\x89HDF"):
        return "HDF5, as MATLAB writes it: convert it to .safetensors"
    return ""


def _tensors(held: Any, path: Path) -> dict[str, Tensor]:
    """Take the weights out of what a file holds."""
    if isinstance(held, Mapping):
        held = next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), held)
    if not isinstance(held, Mapping) or not held:
        raise ValueError(f"{path}: holds {type(held).__name__}, where names and tensors are wanted")
    if other := [str(name) for name, value in held.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{path}: {_listed(other)}: no tensors; the weights lie at the top or under {', '.join(WRAPPERS)}"
        )
    if other := [str(name) for name, value in held.items() if not _is_plain(value)]:
        raise ValueError(
            f"{path}: {_listed(other)}: sparse, quantised, complex or empty, where real numbers are wanted"
        )
    names = [str(name) for name in held]
    cut = len(PREFIX) if all(name.startswith(PREFIX) for name in names) else 0
    return {name[cut:]: value for name, value in zip(names, held.values(), strict=True)}


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds real numbers, one for each place of its shape, on the CPU."""
    is_dense = value.layout == torch.strided and not value.is_nested and value.device.type == "cpu"
    return is_dense and not (value.is_quantized or value.is_complex())


def _is_computed(name: str, published: nn.Module) -> bool:
    """Whether the published module computes the tensor of this name from its settings or from other tensors."""
    ends: tuple[str, ...] = getattr(published, "computed", ())
    return any(f".{name}".endswith(f".{end}") for end in ends)


def _listed(names: list[str]) -> str:
    """The first names in one line; a file may hold any text as a name."""
    more = len(names) - _MOST
    shown = [name if name.isprintable() else ascii(name) for name in names[:_MOST]]
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in shown]
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
