"""How many copies of photographs preprocess recognises, and how many pairs of different ones it takes for copies.

    python benchmarks/near_duplicates.py [FOLDER] [--among FOLDER ...]

FOLDER holds photographs of which none are alike; without it they are the built-in ones. One JSON line a change: of how
many changed photographs the original was found, and how many were taken for another one, of all pairs. Then one line a
folder of --among: in how many pairs its images were taken for photographs of FOLDER, and how many of these the smaller
image confirms, as a template that correlates by 0.9 or more with a part of the larger one, at full resolution.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from skimage.feature import match_template

from components.data.near_duplicates import Fingerprint, fingerprint, near_duplicates
from components.data.readers.images import is_image_name, read_image
from pipeline.sources.kinds.builtin import BuiltinPhotographs

CONFIRMED = 0.9
CHANGED = "changed "  # before the name of an original


def coded(image: Image.Image, format: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return Image.open(file).convert("RGB")


def sized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cut(image: Image.Image, share: float, random: np.random.Generator) -> Image.Image:
    """A part anywhere in the image, each of its sides a share of the whole's."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = random.integers(0, image.width - width + 1), random.integers(0, image.height - height + 1)
    return image.crop((left, top, left + width, top + height))


def noisy(image: Image.Image, sigma: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) + random.normal(0, sigma, (image.height, image.width, 3))
    return Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))


Change = Callable[[Image.Image, np.random.Generator], Image.Image]
CHANGES: dict[str, Change] = {
    "JPEG, quality 75": lambda image, _: coded(image, "JPEG", 75),
    "JPEG, quality 20": lambda image, _: coded(image, "JPEG", 20),
    "WebP, quality 50": lambda image, _: coded(image, "WEBP", 50),
    "half the size": lambda image, _: sized(image, 0.5),
    "a quarter of the size": lambda image, _: sized(image, 0.25),
    "1.5 times the size": lambda image, _: sized(image, 1.5),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "brightness 0.7, contrast 1.3": lambda image, _: ImageEnhance.Contrast(
        ImageEnhance.Brightness(image).enhance(0.7)
    ).enhance(1.3),
    "noise of 10 grey levels": lambda image, random: noisy(image, 10, random),
    "sides cut to 0.9": lambda image, random: cut(image, 0.9, random),
    "sides cut to 0.8": lambda image, random: cut(image, 0.8, random),
    "sides cut to 0.7": lambda image, random: cut(image, 0.7, random),
    "sides cut to 0.6": lambda image, random: cut(image, 0.6, random),
    "sides cut to 0.5": lambda image, random: cut(image, 0.5, random),
    "sides cut to 0.4": lambda image, random: cut(image, 0.4, random),
    "cut to 0.7, half the size, JPEG 50": lambda image, random: coded(sized(cut(image, 0.7, random), 0.5), "JPEG", 50),
    "mirrored": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90 degrees": lambda image, _: image.transpose(Image.Transpose.ROTATE_90),
}


def grey(path: Path) -> np.ndarray:
    return read_image(path, "grey")[0].astype(np.float32)


def is_confirmed(one: Path, other: Path) -> bool:
    small, large = sorted((grey(one), grey(other)), key=lambda image: image.size)
    if small.shape[0] > large.shape[0] or small.shape[1] > large.shape[1]:
        return False
    return bool(match_template(large, small).max() >= CONFIRMED)


def photographs(folder: Path | None) -> dict[str, Path]:
    if folder is None:
        source = BuiltinPhotographs()
        return {name: source._path(name) for name in source.names() if name != "motorcycle_right.png"}
    files = sorted(file for file in folder.rglob("*") if is_image_name(file))
    return {str(file.relative_to(folder)): file for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--among", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    files = photographs(arguments.folder)
    images = {name: read_image(path) for name, path in files.items()}
    start = time.process_time()
    originals = {name: fingerprint(image) for name, image in images.items()}
    hashed = time.process_time()
    pairs = search(originals)
    searched = time.process_time()
    count = len(files)
    title = arguments.folder.name if arguments.folder else "builtin"
    base = {"benchmark": "near_duplicates", "photographs": title, "images": count}
    costs = {"ms_hash": 1e3 * (hashed - start) / count, "ms_search": 1e3 * (searched - hashed) / count}
    emit(base | {"change": "none", "false": len(pairs), "of_pairs": count * (count - 1) // 2, "which": pairs} | costs)
    for name, change in CHANGES.items():
        random = np.random.default_rng(0)
        changed = {
            f"{CHANGED}{own}": fingerprint(
                np.asarray(change(Image.fromarray(image.transpose(1, 2, 0)), random)).transpose(2, 0, 1)
            )
            for own, image in images.items()
        }
        pairs = search(originals | changed)
        right = sum(one.removeprefix(CHANGED) == other.removeprefix(CHANGED) for one, other in pairs)
        figures = {"found": right, "of": count, "false": len(pairs) - right, "of_pairs": 2 * count * (count - 1)}
        emit(base | {"change": name} | figures)
    for folder in arguments.among:
        more = photographs(folder)
        names = {f"{folder.name}/{name}": path for name, path in more.items()}
        pairs = search(originals | {name: fingerprint(read_image(path)) for name, path in names.items()})
        paths = files | names
        across = [(one, other) for one, other in pairs if (one in names) != (other in names)]
        doubted = [pair for pair in across if not is_confirmed(*(paths[name] for name in pair))]
        figures = {"found": len(across), "of": len(names), "confirmed": len(across) - len(doubted), "others": doubted}
        emit(base | {"among": folder.name, "within": len(pairs) - len(across)} | figures)


def search(fingerprints: Mapping[str, Fingerprint | None]) -> list[tuple[str, str]]:
    """The pairs that are taken for one picture, each image being a scene of its own."""
    return near_duplicates(
        {name: each for name, each in fingerprints.items() if each}, {name: name for name in fingerprints}
    )


def emit(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
