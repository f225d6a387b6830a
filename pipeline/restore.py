"""``eqreg restore``: image files in, restored image files out, by a registered model or a model file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from components.data.images import is_image_name, read_image, to_float, write_image
from components.evaluation.restoration import restore as restore_image
from pipeline.console import console, track
from pipeline.errors import UserError


def restore(source: Path, target: Path, model: str, tile: int, overlap: int, self_ensemble: bool) -> None:
    """Restores one image to a file, or every image of a folder to a folder (as PNG).

    Raises:
        UserError: the input is missing or holds no image, the output cannot be written, or the model is unknown.
    """
    files = _plan(source, target)
    network = _load(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    for read_from in track(files, "restoring") if len(files) > 1 else files:
        image, write_to = torch.from_numpy(to_float(read_image(read_from))).to(device), files[read_from]
        try:
            restored = restore_image(network, image, tile=tile, overlap=overlap, self_ensemble=self_ensemble)
        except RuntimeError as error:
            size = f"{image.shape[-1]}x{image.shape[-2]}"
            raise UserError(f"{read_from}: {size} pixels, which this model fails on ({_first_line(error)})") from error
        try:
            write_to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{write_to.parent}: cannot be written ({error.strerror})") from error
        write_image(write_to, np.asarray(restored.cpu()))
    console.print(f"{len(files)} restored: {target}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _plan(source: Path, target: Path) -> dict[Path, Path]:
    """Every input with its output."""
    if source.is_dir():
        if target.is_file():
            raise UserError(f"{target}: is a file; for a folder of images name a folder")
        if target.resolve() == source.resolve():
            raise UserError(f"{target}: would overwrite the input; name another folder")
        names = [file.relative_to(source) for file in source.rglob("*") if file.is_file() and is_image_name(file)]
        # A target inside the source holds what an earlier run restored.
        is_inside = target.resolve().is_relative_to(source.resolve())
        plan = {
            source / name: (target / name).with_suffix(".png")
            for name in sorted(names)
            if not any(part.startswith(".") for part in name.parts)
            and not (is_inside and (source / name).resolve().is_relative_to(target.resolve()))
        }
        if not plan:
            raise UserError(f"{source}: no image in this folder (png, jpg, bmp, tif, webp)")
        outputs = list(plan.values())
        if len(set(outputs)) < len(outputs):
            twice = next(output for output in outputs if outputs.count(output) > 1)
            raise UserError(f"{twice}: two images of {source} would be written there; rename one of them")
        overwritten = {file.resolve() for file in plan} & {output.resolve() for output in outputs}
        if overwritten:
            raise UserError(f"{min(overwritten)}: an input would be overwritten; name another folder")
        return plan
    if not source.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if target.is_dir():
        target = target / source.with_suffix(".png").name
    elif not is_image_name(target):
        raise UserError(f"{target}: its suffix names no image format that can be written; use for instance .png")
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: would overwrite the input; name another file")
    return {source: target}


def _load(model: str) -> nn.Module:
    if model.startswith("models:/"):
        from pipeline.tracking.registry import load_registered
        from pipeline.tracking.store import tracking_uri

        return load_registered(model, tracking_uri())
    from pipeline.job import load_model

    path = Path(model)
    if not path.is_file():
        raise UserError(f"--model {model}: neither models:/NAME@ALIAS nor a file")
    return load_model(path)[0]
