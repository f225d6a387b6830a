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
    for read_from, write_to in track(files, "restoring") if len(files) > 1 else files:
        image = torch.from_numpy(to_float(read_image(read_from))).to(device)
        restored = restore_image(network, image, tile=tile, overlap=overlap, self_ensemble=self_ensemble)
        try:
            write_to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{write_to.parent}: cannot be written ({error.strerror})") from error
        write_image(write_to, np.asarray(restored.cpu()))
    console.print(f"{len(files)} restored: {target}")


def _plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(input, output) of every file."""
    if source.is_dir():
        found = sorted(file for file in source.rglob("*") if file.is_file() and is_image_name(file))
        if not found:
            raise UserError(f"{source}: no image in this folder (png, jpg, bmp, tif, webp)")
        if target.is_file():
            raise UserError(f"{target}: is a file; for a folder of images name a folder")
        plan = [(file, (target / file.relative_to(source)).with_suffix(".png")) for file in found]
        outputs = [output for _, output in plan]
        if len(set(outputs)) < len(outputs):
            twice = next(output for output in outputs if outputs.count(output) > 1)
            raise UserError(f"{twice}: two images of {source} would be written there; rename one of them")
        return plan
    if not source.is_file():
        raise UserError(f"{source}: there is no such file or folder")
    if target.is_dir():
        target = target / source.with_suffix(".png").name
    elif not is_image_name(target):
        raise UserError(f"{target}: '{target.suffix}' is no image format that can be written; use for instance .png")
    if target.resolve() == source.resolve():
        raise UserError(f"{target}: would overwrite the input; name another file")
    return [(source, target)]


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
