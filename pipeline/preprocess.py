"""Stage 2: data/raw -> data/packed/{train,val,test}: checked, split by scene, degraded where it must be fixed."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from pathlib import Path, PurePosixPath

import numpy as np

from components.data.images import read_image, to_float
from components.data.packs import Entry, file_sha256, write_pack
from components.data.randomness import Stream, generator
from components.data.sampler import Degradation
from components.degradations import build_degradation
from pipeline.console import console, track
from pipeline.errors import UserError
from pipeline.params import Params, Preprocess
from pipeline.paths import MANIFEST, PACKED, RAW, existing, replaced_folder

SPLITS = ("train", "val", "test")
OUT_OF_DISTRIBUTION = "out_of_distribution"


def preprocess(params: Params) -> None:
    """Packs clean images for training; fixed (degraded, clean) pairs for validation, test and out of distribution."""
    images = read_raw(RAW)
    scenes = {name: scene_of(name, params.preprocess.scene_pattern) for name in images}
    split = split_scenes(sorted(set(scenes.values())), params.preprocess)
    smallest = min(images.values(), key=lambda image: min(image.shape[-2:]))
    if params.train.patch_size > min(smallest.shape[-2:]):
        name = next(name for name, image in images.items() if image is smallest)
        raise UserError(
            f"train.patch_size: {params.train.patch_size} is larger than {name} "
            f"({smallest.shape[-1]}x{smallest.shape[-2]} pixels): use {min(smallest.shape[-2:])} or less, "
            "or take the image away"
        )
    degradation = build_degradation(params.task, params.task_params.degradation.model_dump())
    with replaced_folder(PACKED) as folder:
        chosen = {
            part: {name: images[name] for name in sorted(images) if split[scenes[name]] == part} for part in SPLITS
        }
        (folder / "train").mkdir()
        entries = [_entry(name, scenes[name], image) for name, image in chosen["train"].items()]
        write_pack(folder / "train", entries, list(chosen["train"].values()))
        draws = params.preprocess.draws
        _write_pairs(folder / "val", "val", chosen["val"], scenes, degradation, draws.val, params)
        _write_pairs(folder / "test", "test", chosen["test"], scenes, degradation, draws.test, params)
        for name, shifted in params.task_params.out_of_distribution.items():
            other = build_degradation(params.task, shifted.model_dump())
            target = folder / OUT_OF_DISTRIBUTION / name
            _write_pairs(target, name, chosen["test"], scenes, other, draws.test, params)
    for part in SPLITS:
        named = sorted(scene for scene in split if split[scene] == part)
        console.print(f"{part:5} {len(named)} scenes: {', '.join(named)}")


def read_raw(raw: Path) -> dict[str, np.ndarray]:
    """Every image of the manifest, ``(3, H, W)`` uint8, by its name without suffix.

    Raises:
        UserError: the manifest or a file is missing, altered or unreadable, or two images would have one name.
    """
    manifest = existing(raw / MANIFEST.name, "fetch")
    try:
        sums = {record["name"]: record["sha256"] for record in json.loads(manifest.read_bytes())["images"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest}: damaged ({error}); run 'eqreg fetch' again") from error
    images: dict[str, np.ndarray] = {}
    for file in track(sums, "reading"):
        path = raw / "images" / file
        if not path.is_file() or file_sha256(path) != sums[file]:
            raise UserError(f"{path}: missing or altered since it was fetched; run 'eqreg fetch' again")
        name = str(PurePosixPath(file).with_suffix("")).replace("/", "__")
        if name in images:
            raise UserError(f"{path}: another image would also be called {name}; rename one of them")
        images[name] = read_image(path)
    return images


def scene_of(name: str, pattern: str) -> str:
    """The scene that an image shows: the pattern's first group where it matches, else the name."""
    match = re.search(pattern, name)
    return match.group(1) if match and match.re.groups and match.group(1) else name


def split_scenes(scenes: list[str], settings: Preprocess) -> dict[str, str]:
    """scene -> train, val or test: as listed, else dealt out by the hash of the scene's name.

    Dealing by hash keeps each scene on its side when others come or go.

    Raises:
        UserError: a scene is listed twice, or a split stays empty.
    """
    split: dict[str, str] = {}
    for scene in scenes:
        listed = [part for part in SPLITS if any(fnmatch.fnmatchcase(scene, p) for p in getattr(settings.splits, part))]
        if len(listed) > 1:
            raise UserError(f"preprocess.splits: scene '{scene}' is in {' and '.join(listed)}: keep one of them")
        split[scene] = listed[0] if listed else ""
    rest = sorted((s for s in scenes if not split[s]), key=lambda s: hashlib.sha256(s.encode()).digest())
    for scene in rest:
        place = int.from_bytes(hashlib.sha256(scene.encode()).digest()[:8]) / 2**64
        shares = settings.remaining
        split[scene] = "val" if place < shares.val else "test" if place < shares.val + shares.test else "train"
    # With few scenes the hash may leave a split empty: the scenes next in the order of hashes go there.
    for part in SPLITS:
        movable = [s for s in rest if sum(split[other] == split[s] for other in scenes) > 1]
        if part not in split.values() and movable:
            split[movable[0]] = part
    if missing := [part for part in SPLITS if part not in split.values()]:
        raise UserError(
            f"preprocess.splits: no scene for {' and '.join(missing)} among {len(scenes)} scenes: "
            "bring at least 3, or name them in preprocess.splits"
        )
    return split


def centre_crop(image: np.ndarray, side: int) -> np.ndarray:
    """The central part of ``(C, H, W)`` of at most ``side`` x ``side``."""
    height, width = (min(size, side) for size in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return np.ascontiguousarray(image[:, top : top + height, left : left + width])


def _write_pairs(
    folder: Path,
    key: str,
    images: dict[str, np.ndarray],
    scenes: dict[str, str],
    degradation: Degradation,
    draws: int,
    params: Params,
) -> None:
    folder.mkdir(parents=True)
    entries, clean, degraded = [], [], []
    for name, image in images.items():
        crop = centre_crop(image, params.preprocess.crop)
        for draw in range(draws):
            # Keyed by the name, so that a pair stays as it is when other images come or go.
            number = int.from_bytes(hashlib.sha256(f"{key}/{name}".encode()).digest()[:8])
            random = generator(params.seed, Stream.FIXED_PAIR, number, draw)
            entries.append(_entry(f"{name}-{draw}", scenes[name], crop))
            clean.append(crop)
            degraded.append(degradation(to_float(crop), random))
    write_pack(folder, entries, clean, degraded)


def _entry(name: str, scene: str, image: np.ndarray) -> Entry:
    return Entry(name, scene, image.shape[-2], image.shape[-1])
