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
from pipeline.storage.names import skipped_text
from pipeline.storage.tree import read_tree


def restore(
    source: Path, target: Path, model: str, tile: int, overlap: int, self_ensemble: bool, mask: Path | None = None
) -> None:
    """Restores one image to a file, or every image of a folder to a folder (as PNG).

    ``mask`` is for models of the task inpaint: an image that is white where pixels are missing, or a folder with one of
    the same name for each input.

    Raises:
        UserError: the input is missing or holds no image, the output cannot be written, or the model is unknown.
    """
    files = _plan(source, target)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, channels = _load(model, device)
    colours = _colours(channels, model, mask)
    for read_from in track(files, "restoring") if len(files) > 1 else files:
        pixels = to_float(read_image(read_from, "grey" if colours == 1 else "rgb"))
        holes = None if mask is None else _holes(mask / read_from.name if mask.is_dir() else mask, pixels)
        image = torch.from_numpy(pixels if holes is None else _filled(pixels, holes)).to(device)
        write_to = files[read_from]
        try:
            restored = restore_image(network, image, tile=tile, overlap=overlap, self_ensemble=self_ensemble)
        except RuntimeError as error:
            size = f"{image.shape[-1]}x{image.shape[-2]}"
            raise UserError(f"{read_from}: {size} pixels, which this model fails on ({_first_line(error)})") from error
        try:
            write_to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{write_to.parent}: cannot be written ({error.strerror})") from error
        result = np.asarray(restored.cpu())
        write_image(write_to, result if holes is None else np.where(holes, result, pixels))
    console.print(f"{len(files)} restored: {target}")


def _filled(pixels: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The input of a model that fills holes."""
    from components.degradations.holes import with_holes  # with SciPy, which others do without

    return with_holes(pixels, holes)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _plan(source: Path, target: Path) -> dict[Path, Path]:
    """Every input with its output."""
    if source.is_dir():
        if target.is_file():
            raise UserError(f"{target}: is a file; for a folder of images name a folder")
        if target.resolve() == source.resolve():
            raise UserError(f"{target}: would overwrite the input; name another folder")
        tree = read_tree(source)
        names = [Path(file) for file in tree.files if is_image_name(Path(file))]
        if left_out := skipped_text(tree.left_out()):
            console.print(f"{source}: left out: {left_out}", markup=False)
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


def _colours(channels: int, model: str, mask: Path | None) -> int:
    """The channels of an image that the model restores.

    Raises:
        UserError: the model wants something else than an image, or than an image and a mask.
    """
    if channels in (1, 3) and mask is None:
        return channels
    if channels in (2, 4) and mask is not None:
        return channels - 1
    if mask is not None:
        raise UserError(f"--mask {mask}: model {model} takes an image alone")
    wanted = "an image and a mask: add --mask" if channels in (2, 4) else f"{channels} channels: call it from Python"
    raise UserError(f"--model {model}: it wants {wanted}")


def _holes(path: Path, image: np.ndarray) -> np.ndarray:
    """``(H, W)`` bool: where a mask image is lighter than middle grey."""
    grey = to_float(read_image(path, "grey"))[0]
    if grey.shape != image.shape[-2:]:
        sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in (grey, image)]
        raise UserError(f"{path}: {sizes[0]} pixels, its image has {sizes[1]}")
    return grey > 0.5


def _load(model: str, device: torch.device) -> tuple[nn.Module, int]:
    """The network on the device, and the channels that it is given."""
    if model.startswith("models:/"):
        from pipeline.tracking.registry import load_registered, registered_shapes
        from pipeline.tracking.store import tracking_uri

        network, (inputs, outputs) = load_registered(model, tracking_uri(), device), registered_shapes(model)
        return network, _checked(inputs, outputs, model)
    from pipeline.job import load_model

    path = Path(model)
    if not path.is_file():
        raise UserError(f"--model {model}: neither models:/NAME@ALIAS nor a file")
    network = load_model(path)[0].to(device)
    channels = int(network.in_channels)  # type: ignore[arg-type]
    return network, _checked((-1, channels, -1, -1), _result(network), model)


def _result(network: nn.Module) -> tuple[int, ...]:
    return (-1, -1) if hasattr(network, "classes") else (-1, int(network.out_channels), -1, -1)  # type: ignore[arg-type]


def _checked(inputs: tuple[int, ...], outputs: tuple[int, ...], model: str) -> int:
    """The channels of the input.

    Raises:
        UserError: the model gives no image, or is one whose three inputs are no colours.
    """
    if len(outputs) != 4:
        raise UserError(f"--model {model}: it recognises images and restores none: call it from Python")
    if inputs[1] == 3 and outputs[1] == 1:
        raise UserError(
            f"--model {model}: it wants a scan's LI image, artifact image and metal mask: call it from Python with "
            "(B, 3, H, W)"
        )
    return inputs[1]
