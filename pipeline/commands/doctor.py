"""``eqreg doctor``: diagnoses the equivariance of a network.

The command shows how equivariant each layer is, what prevents exact equivariance, and whether the output can be
equivariant.
"""

from __future__ import annotations

import hashlib
import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

from components.brief import first_line
from components.data.packs import Pack
from components.equivariance import Diagnosis, diagnose
from components.equivariance.diagnosis.incompatibilities import Incompatibility
from components.networks import NETWORKS, build_network
from components.registry import nearest, similar
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import MODEL, PACKED, PARAMS

NUM_IMAGES = 3
MIN_SIZE = 8
GROUPS = ("C2", "C4", "D4")
_CHANNELS = 3
_WIDTH = 100
_MOST_UNTIED = 8
_CHECKPOINT = "step-*.pt"


def doctor(name: str, size: int, group: str) -> Diagnosis:
    """Prints the result of `diagnose` for a network, and returns it.

    Args:
        name: ``params``, the name of a network, ``models:/NAME@ALIAS``, a model file, or a training checkpoint or its
            folder.
        size: side of the square test images in pixels.
        group: name of the group, C2, C4 or D4.

    Raises:
        UserError: the group is unknown, the size is below ``MIN_SIZE``, there is no such network, or the network fails
            on images of this size.
    """
    if group not in GROUPS:
        raise UserError(f"--group {group}: use one of {', '.join(GROUPS)}")
    if size < MIN_SIZE:
        raise UserError(f"--size {size}: on so few pixels everything looks symmetric, use {MIN_SIZE} or more")
    network, title = _load(name)
    # The packs do not say which images they stack. Those of a network of another task may have as many channels.
    needs_others = name in NETWORKS and len(getattr(network, "needs", None) or ()) > 1
    images, source = _images(size, _channels(network), None if needs_others else PACKED / "val")
    try:
        with torch.no_grad():
            network(images[:1])
    except Exception as error:  # a user's network may raise any exception
        reason = first_line(error)
        raise UserError(f"{name}: it fails on images of {size}x{size} pixels ({reason})\ntry another --size") from error
    diagnosis = diagnose(network, images, group)
    console.print(f"{title}; {group}; {source}", markup=False)
    _show(diagnosis)
    return diagnosis


# ------------------------------------------------------------------------------------------------ networks and images


def _load(name: str) -> tuple[nn.Module, str]:
    """Loads the network in evaluation mode on the CPU, where the residuals are exact.

    Returns:
        (network, its description).
    """
    if name == "params":
        from pipeline.config.schema import load_params

        return _initial(load_params()).eval(), f"{PARAMS}: its network with initial weights"
    if name in NETWORKS and not Path(name).exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_network(name).eval(), f"{name}: with its published settings and random weights"
    if name.startswith("models:/"):
        from pipeline.tracking.models.loading import load_registered
        from pipeline.tracking.store import tracking_uri

        try:
            return load_registered(name, tracking_uri(), "cpu"), name
        except UserError as error:
            raise UserError(str(error).removeprefix("--model ")) from error
    path = Path(name).expanduser()
    if path.is_dir():
        held = [path / MODEL.name, *sorted(path.glob(_CHECKPOINT), reverse=True)]
        if not (held := [file for file in held if file.is_file()]):
            raise UserError(f"{name}: neither {MODEL.name} nor {_CHECKPOINT} in this folder")
        path = held[0]
    if not path.is_file():
        if similar(name, list(NETWORKS)):
            raise UserError(f"{name}: no such file, folder or network{nearest(name, list(NETWORKS))}")
        raise UserError(
            f"{name}: no such file or folder; give params, a network ({', '.join(NETWORKS)}), models:/NAME@ALIAS, "
            f"{MODEL} or a checkpoint"
        )
    if path.match(_CHECKPOINT):
        return _checkpoint(path), f"{path}: averaged weights of a checkpoint"
    from pipeline.model_file import load_model

    return load_model(path)[0], str(path)


def _initial(params: Any) -> nn.Module:
    from pipeline.training_job import TrainingJob

    return TrainingJob(params, PACKED.absolute()).network()


def _checkpoint(path: Path) -> nn.Module:
    """Loads the averaged weights of a training checkpoint into the network of params.yaml.

    A checkpoint does not record the settings of its network.
    """
    from pipeline.config.schema import load_params

    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != path.stem.rpartition("_")[2]:
        raise UserError(f"{path}: damaged or incomplete, its SHA-256 is not the one in its name")
    network = _initial(load_params())
    try:
        averaged = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["averaged"]
        prefix = "module."
        network.load_state_dict({k.removeprefix(prefix): v for k, v in averaged.items() if k.startswith(prefix)})
    except Exception as error:  # for example a foreign pickle, other keys or other shapes
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: does not fit the network of {PARAMS} ({reason})\n"
            f"set network in {PARAMS} as it was in training, or give {MODEL}"
        ) from error
    return network.eval()


def _channels(network: nn.Module) -> int:
    """Returns the number of input channels.

    It is the attribute ``in_channels`` of the network, else that of the first 4-D weight, else 3.
    """
    declared = getattr(network, "in_channels", None)
    if isinstance(declared, int):
        return declared
    first = next((weight for weight in network.parameters() if weight.ndim == 4), None)
    return _CHANNELS if first is None else int(first.shape[1])


def _images(size: int, channels: int, folder: Path | None) -> tuple[Tensor, str]:
    """Returns test images ``(B, C, size, size)`` and their description.

    The images are central crops of validation inputs, if the folder has any of this size and number of channels.
    Otherwise they are random and smooth.
    """
    found: list[Tensor] = []
    if folder and folder.is_dir():
        pack = Pack(folder)
        large = [i for i, entry in enumerate(pack.entries) if min(entry.height, entry.width) >= size]
        if large and (pack.degraded(large[0]).shape[0] != channels or min(pack.degraded(large[0]).shape[1:]) < size):
            large = []  # these packs belong to another task
        for index in large[:: max(1, len(large) // NUM_IMAGES)][:NUM_IMAGES]:
            image = torch.from_numpy(pack.degraded(index))  # (C, H, W)
            if min(image.shape[1:]) < size:  # an input of super-resolution is smaller than its target
                continue
            top, left = ((side - size) // 2 for side in image.shape[-2:])
            found.append(image[:, top : top + size, left : left + size])
    if found:
        return torch.stack(found), f"{len(found)} validation images of {size}x{size} pixels"
    return smooth_images(channels, size), f"{NUM_IMAGES} random smooth images of {size}x{size} pixels"


def smooth_images(channels: int, size: int) -> Tensor:
    """Returns random smooth images ``(B, channels, size, size)`` with values in [0, 1], always the same ones."""
    noise = torch.rand(NUM_IMAGES, channels, size, size, generator=torch.Generator().manual_seed(0))
    coarse = F.interpolate(F.avg_pool2d(noise, 4, ceil_mode=True), size=(size, size), mode="bilinear")
    return 0.7 * coarse + 0.3 * noise


# ------------------------------------------------------------------------------------------------------------ printing


def _show(diagnosis: Diagnosis) -> None:
    numbers: dict[tuple[str, str], int] = {}  # (what, hint) -> number of the note

    def number(what: str, hint: str = "") -> int:
        return numbers.setdefault((what, hint), len(numbers) + 1)

    def of(incompatibilities: Iterable[Incompatibility]) -> list[str]:
        return [
            f"{'FATAL ' if each.is_fatal else ''}{each.kind} ({number(each.reason, each.hint)})"
            for each in incompatibilities
        ]

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("field", no_wrap=True)
    table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("what prevents it", no_wrap=True)
    for layer in diagnosis.layers:
        notes = [f"note ({number(note)})" for note in layer.notes]
        cells = (layer.name, layer.kind, f"{layer.inputs} > {layer.outputs}", layer.field, _figure(layer.residual))
        table.add_row(*map(Text, cells), Text("\n".join([*of(layer.incompatibilities), *notes])))
    is_image = diagnosis.output == "image"
    table.add_section()
    table.add_row("output", "", "", "trivial" if is_image else "invariant", _figure(diagnosis.output_residual), "")
    console.print(table, width=min(console.width, _WIDTH))
    for finding in diagnosis.findings:
        console.print(f"{finding.where}: {of([finding.incompatibility])[0]}", markup=False)
    if diagnosis.findings:
        console.print()
    for (what, hint), n in numbers.items():
        _say(f"({n}) {what}." + (f" Remedy: {hint}." if hint else ""), indent=4)
    if numbers:
        console.print()
    if diagnosis.untied:
        shown = [f"{each.name} {each.inequality:.2f}" for each in diagnosis.untied[:_MOST_UNTIED]]
        more = len(diagnosis.untied) - len(shown)
        _say(
            f"{len(diagnosis.untied)} biases, scales, statistics differ inside regular fields (0 tied, 1 not at all): "
            f"{', '.join(shown)}{f' and {more} more' if more else ''}. Weights, not structure: training may tie them."
        )
        console.print()
    _say("residual: relative, now; 0 is exact, 1.41 unrelated. FATAL: forbids it for the output, whatever the weights.")
    _say(f"Verdict: {diagnosis.verdict}.")


def _say(text: str, indent: int = 0) -> None:
    """Prints a paragraph, wrapped to the width of the console."""
    width = min(console.width, _WIDTH)
    console.print(textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False), markup=False)


def _figure(residual: float | None) -> str:
    if residual is None:
        return "-"
    return "0" if residual == 0 else f"{residual:.3f}" if residual >= 1e-3 else f"{residual:.0e}"


__all__ = ["doctor", "smooth_images"]
