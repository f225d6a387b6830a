"""``eqreg restore``: restores image files with a registered model or a model file.

torch is imported after the arguments are checked, so that a wrong argument is refused at once.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.brief import first_line
from components.data.readers.images import is_image_name, read_image, to_float, write_image
from pipeline.console import console, track
from pipeline.errors import UserError
from pipeline.sources.folder_listing import read_tree
from pipeline.sources.names import skipped_text

if TYPE_CHECKING:
    import torch
    from torch import nn


def restore(
    source: Path, target: Path, model: str, tile: int, overlap: int, self_ensemble: bool, mask: Path | None = None
) -> None:
    """Restores one image to a file, or every image of a folder to a folder (as PNG).

    Args:
        source: image file, or folder of images.
        target: file or folder for the restored images.
        model: ``models:/NAME@ALIAS`` or a model file.
        tile: largest side of a tile in pixels.
        overlap: least overlap of neighbouring tiles in pixels.
        self_ensemble: whether the output is averaged over the quarter turns of the input.
        mask: mask for models of the task inpaint. It is an image that is white where pixels are missing, or a folder
            with a mask for each input, of the same name and in the same subfolder.

    Raises:
        UserError: the input is missing or holds no image, the output cannot be written, or the model is unknown or
            fails on an image.
    """
    files = _plan(source, target)
    masks = _masks(list(files), source, mask) if mask else {}
    _check_model(model)
    import torch

    from components.inference.tiles import restore as restore_image

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, channels = _load(model, device)
    colours = _colours(channels, model, mask)
    for read_from in track(files, "restoring") if len(files) > 1 else files:
        pixels = to_float(read_image(read_from, "grey" if colours == 1 else "rgb"))
        holes = _holes(masks[read_from], pixels) if masks else None
        image = torch.from_numpy(pixels if holes is None else _filled(pixels, holes)).to(device)
        write_to = files[read_from]
        try:
            restored = restore_image(network, image, tile=tile, overlap=overlap, self_ensemble=self_ensemble)
        except RuntimeError as error:
            size = f"{image.shape[-1]}x{image.shape[-2]}"
            raise UserError(f"{read_from}: {size} pixels, which this model fails on ({first_line(error)})") from error
        try:
            write_to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{write_to.parent}: cannot be written ({error.strerror})") from error
        result = np.asarray(restored.cpu())
        write_image(write_to, result if holes is None else np.where(holes, result, pixels))
    console.print(f"{len(files)} restored: {target}")


def _filled(pixels: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Returns the input of an inpainting model: the image with its missing pixels filled, and the mask as a channel."""
    from components.degradations.holes import with_holes  # imports SciPy, which other tasks do not need

    return with_holes(pixels, holes)


def _plan(source: Path, target: Path) -> dict[Path, Path]:
    """Maps every input file to its output file.

    Raises:
        UserError: there is no input, or an output cannot be used.
    """
    if source.is_dir():
        if target.is_file():
            raise UserError(f"{target}: is a file; for a folder of images name a folder")
        if target.resolve() == source.resolve():
            raise UserError(f"{target}: would overwrite the input; name another folder")
        tree = read_tree(source)
        names = [Path(file) for file in tree.files if is_image_name(Path(file))]
        if left_out := skipped_text(tree.left_out()):
            console.print(f"{source}: left out: {left_out}", markup=False)
        # A target folder inside the source folder may hold the outputs of an earlier run; they are no inputs.
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
    """Returns the number of channels of an image that the model restores.

    Raises:
        UserError: the model needs a mask that is not given, takes no mask, or needs an input of another kind.
    """
    if channels in (1, 3) and mask is None:
        return channels
    if channels in (2, 4) and mask is not None:
        return channels - 1
    if mask is not None:
        raise UserError(f"--mask {mask}: model {model} takes an image alone")
    wanted = "an image and a mask: add --mask" if channels in (2, 4) else f"{channels} channels: call it from Python"
    raise UserError(f"--model {model}: it wants {wanted}")


def _masks(images: list[Path], source: Path, mask: Path) -> dict[Path, Path]:
    """Maps each image to its mask: in the same subfolder as the image, else directly in the folder of masks.

    Raises:
        UserError: a mask is not in the same subfolder, and several images have the same name.
    """
    if not mask.is_dir():
        return dict.fromkeys(images, mask)
    counts = Counter(image.name for image in images)
    masks = {}
    for image in images:
        relative = image.relative_to(source) if source.is_dir() else Path(image.name)
        is_nested = (mask / relative).is_file()
        if not is_nested and counts[image.name] > 1:
            raise UserError(
                f"--mask {mask}: {relative} is not there, and {counts[image.name]} images are called {image.name}: put "
                "masks into the same subfolders as the images"
            )
        masks[image] = mask / (relative if is_nested else image.name)
    return masks


def _holes(path: Path, image: np.ndarray) -> np.ndarray:
    """Reads a mask as ``(H, W)`` bool; it is True where the mask image is lighter than middle grey.

    Raises:
        UserError: the mask and its image have different sizes.
    """
    grey = to_float(read_image(path, "grey"))[0]
    if grey.shape != image.shape[-2:]:
        sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in (grey, image)]
        raise UserError(f"{path}: {sizes[0]} pixels, its image has {sizes[1]}")
    return grey > 0.5


def _check_model(model: str) -> None:
    """Checks that the model file, or the registry of a ``models:/`` address, exists.

    Raises:
        UserError: it does not exist.
    """
    if model.startswith("models:/"):
        from pipeline.tracking.registry import check_store
        from pipeline.tracking.store import tracking_uri

        check_store(model, tracking_uri())
    elif not Path(model).is_file():
        raise UserError(f"--model {model}: neither models:/NAME@ALIAS nor a file")


def _load(model: str, device: torch.device) -> tuple[nn.Module, int]:
    """Loads the network onto the device.

    Returns:
        (network, number of its input channels).
    """
    if model.startswith("models:/"):
        from pipeline.tracking.registry import load_registered, registered_shapes
        from pipeline.tracking.store import tracking_uri

        network, (inputs, outputs) = load_registered(model, tracking_uri(), device), registered_shapes(model)
        return network, _checked(inputs, outputs, model)
    from pipeline.model_file import load_model

    network = load_model(Path(model))[0].to(device)
    channels = int(network.in_channels)  # type: ignore[arg-type]
    return network, _checked((-1, channels, -1, -1), _result(network), model)


def _result(network: nn.Module) -> tuple[int, ...]:
    return (-1, -1) if hasattr(network, "classes") else (-1, int(network.out_channels), -1, -1)  # type: ignore[arg-type]


def _checked(inputs: tuple[int, ...], outputs: tuple[int, ...], model: str) -> int:
    """Returns the number of input channels.

    Raises:
        UserError: the output of the model is not an image, or its three input channels are not colours.
    """
    if len(outputs) != 4:
        raise UserError(f"--model {model}: it recognises images and restores none: call it from Python")
    if inputs[1] == 3 and outputs[1] == 1:
        raise UserError(
            f"--model {model}: it wants a scan's LI image, artifact image and metal mask: call it from Python with "
            "(B, 3, H, W)"
        )
    return inputs[1]
