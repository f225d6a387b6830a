"""``eqreg export``: a model as a file that others run: ONNX, torch.export, AOTInductor, chaiNNer.

Every file is compared with its model before it gets its name, and says in its own metadata what was found.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from components.brief import first_line
from components.registry import find
from pipeline.commands.exporting import FORMATS
from pipeline.commands.exporting.comparison import Comparison, compare
from pipeline.commands.exporting.form import Form
from pipeline.commands.exporting.source import Source, load_source
from pipeline.console import console
from pipeline.errors import UserError, fault_of_machine

BOUND, BOUND_OF_DEVICE = 2e-5, 1e-4
"""Largest difference between file and model: on the CPU, on another device. For outputs of at most 1; in proportion for
larger ones. On the CPU it is four times what was measured (docs/results/exports.md); no GPU was."""


@dataclass(frozen=True)
class Export:
    """A file that was written.

    Attributes:
        path: of the file.
        comparison: with the model.
        description: what its metadata hold.
    """

    path: Path
    comparison: Comparison
    description: dict[str, object]


def export(model: str, kind: str, out: Path, device: str = "cpu") -> Export:
    """Writes a model in a format, after comparing it with the model. An older file of the name is replaced.

    Args:
        model: ``model.safetensors``, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        kind: name of the format, a key of ``FORMATS``.
        out: file to write.
        device: for which a file of the formats pt2 and aoti is.

    Raises:
        UserError: an argument is wrong, a library or a compiler is missing, the format cannot hold the network, or the
            file differs from the model. No file is left, and an older one is unchanged.
    """
    form = _checked(model, kind, out, device)
    with _folder_beside(out) as folder:
        path = Path(folder) / out.name
        source = load_source(model)
        with _one_line(model, kind):
            form.write(source, path, device)
            comparison = _compared(form, source, path, device)
        if fault := comparison.fault(_bound(device)):
            raise UserError(f"{model}: as {kind} it {fault}\n{out} was not written")
        description = _description(source, kind, device, comparison)
        with _one_line(model, kind):
            form.describe(path, json.dumps(description, sort_keys=True))
            form.read(path, source, device)(source.example())  # the description has left it readable
            path.chmod(0o644)  # safetensors gives its files to their owner alone
            path.replace(out)
    _show(out, kind, source, comparison, device)
    return Export(out, comparison, description)


@contextmanager
def _one_line(model: str, kind: str) -> Iterator[None]:
    """Raises a UserError of one line for whatever exporters, runtimes and disks raise in the block."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if os.environ.get("EQREG_DEBUG"):
            raise
        raise UserError(
            f"{model}: cannot be exported as {kind} ({fault_of_machine(error) or first_line(error)})"
        ) from error


def _checked(model: str, kind: str, out: Path, device: str) -> Form:
    """The format, if the arguments fit it and this machine has what it needs.

    Raises:
        UserError: they do not, or it has not.
    """
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: use one of {', '.join(FORMATS)}")
    form: Form = find(FORMATS, "format", kind)
    if out.suffix != form.suffix:
        raise UserError(f"--out {out}: a file of the format {kind} is called NAME{form.suffix}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder")
    if out.exists() and Path(model).exists() and out.samefile(model):
        raise UserError(f"--out {out}: would overwrite the model; name another file")
    if device != "cpu":
        if not form.has_device:
            raise UserError(f"--device {device}: a file of the format {kind} is for no one device; leave it out")
        _check_device(device)
    form.check()
    return form


def _check_device(device: str) -> None:
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # builds without CUDA raise an AssertionError
        raise UserError(f"--device {device}: cannot be used here ({first_line(error)})") from error


def _folder_beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder on the disk of the file, from which it is renamed."""
    try:
        return tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error


def _compared(form: Form, source: Source, path: Path, device: str) -> Comparison:
    run = form.read(path, source, device)
    if device == "cpu":
        return compare(source, run, _bound(device))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # with TF32 all differences would be 1e-3
        return compare(source, run, _bound(device))


def _bound(device: str) -> float:
    return BOUND if device == "cpu" else BOUND_OF_DEVICE


def _description(source: Source, kind: str, device: str, comparison: Comparison) -> dict[str, object]:
    """What the metadata of the file hold, as JSON's types: neither time nor host nor path."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        eqreg = version("eqreg")
    except PackageNotFoundError:
        eqreg = ""
    return {
        "eqreg": eqreg,
        "torch": str(torch.__version__),
        "format": kind,
        "device": device,
        "model_sha256": source.sha256,
        "contract": source.contract.as_dict() | {"dtype": "float32", "range": [0, 1], "layout": "BCHW"},
        **comparison.as_dict(),
    }


def _show(out: Path, kind: str, source: Source, comparison: Comparison, device: str) -> None:
    contract = source.contract
    given = f"{contract.outputs} scores" if contract.kind == "labels" else f"(B, {contract.outputs}, H, W)"
    if contract.scale > 1:
        given = f"(B, {contract.outputs}, {contract.scale} H, {contract.scale} W)"
    sizes = ", ".join("x".join(map(str, size)) for size in comparison.sizes)
    where = "" if device == "cpu" else f" for {device}"
    for line in (
        f"{out}: {source.name} as {kind}{where}, {out.stat().st_size / 1e6:.2f} MB",
        f"input (B, {contract.inputs}, H, W) float32 in [0, 1], H and W of {comparison.least_side} or more; "
        f"output {given}",
        f"largest difference to the model: {comparison.largest_difference:.1e} (batch x height x width: {sizes})",
        f"equivariance error under {comparison.group}: {comparison.equivariance_error:.6f}, "
        f"of the model {comparison.model_equivariance_error:.6f}",
    ):
        console.print(line, markup=False)


__all__ = ["Export", "export"]
