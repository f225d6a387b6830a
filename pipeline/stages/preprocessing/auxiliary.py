"""Packs the auxiliary data of degradations (streak layers, blur kernels, masks) in data/packed/auxiliary/{train,fixed}.

"train" is for training images, "fixed" for the fixed (degraded, clean) pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components.data.own_split import Part, folder_parts, part_of
from components.data.packs import Entry, ShardWriter, file_sha256, write_index
from components.data.readers.images import pixels_sha256
from pipeline.config.schema import Params
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.paths import RAW

_FEW_AUXILIARY = 100


def pack_auxiliary(params: Params, files: Mapping[str, tuple[str, int]], folder: Path) -> None:
    """Packs auxiliary data for training and for the fixed pairs, if a degradation of the task needs them.

    Args:
        params: params of the run.
        files: files of data/raw/auxiliary: name -> (SHA-256, size in bytes).
        folder: folder of the packs.

    Raises:
        UserError: there are no auxiliary data of the required kind, or a file is missing, altered or not of that kind.
    """
    section = params.task_params
    if not any(each.needs_auxiliary for each in (section.degradation, *section.out_of_distribution.values())):
        return
    task, source = params.build_task(), (RAW / "auxiliary").resolve()
    for name, (sha256, _) in files.items():
        if not (source / name).is_file() or file_sha256(source / name) != sha256:
            path = RAW / "auxiliary" / name
            raise UserError(f"{path}: missing or altered since it was fetched; run 'eqreg fetch' again")
    parts = ("train", "fixed")
    writers = {part: ShardWriter(_made(folder / "auxiliary" / part)) for part in parts}
    number, stated = 0, folder_parts(files)
    seen: dict[str, str] = {}  # SHA-256 of the content -> "train" or "fixed"
    few: list[tuple[str, np.ndarray]] = []  # all arrays, as long as there are at most _FEW_AUXILIARY
    try:
        for number, (name, array) in enumerate(task.read_auxiliary(source, sorted(files)), start=1):
            few = [*few, (name, array)] if number <= _FEW_AUXILIARY else []
            # The same content under another name goes to the same side as the first one.
            own = seen.setdefault(pixels_sha256(array), _auxiliary_part(name, stated)) if task.splits_auxiliary else ""
            for part in [own] if own else parts:
                _add(writers[part], name, array)
    except ValueError as error:
        raise UserError(f"fetch.auxiliary: {error}") from error
    what = task.auxiliary_title
    if not number:
        raise UserError(f"fetch.auxiliary: {params.fetch.auxiliary}: no {what} in it, which tasks.{params.task} wants")
    shards = {part: writer.close() for part, writer in writers.items()}
    # If one side is empty, the first content in the order of the hash goes to "fixed" and the rest to "train"; a single
    # content goes to both.
    if not all(shards.values()):
        if not few:  # more arrays than are kept: their folders or their content put all of them on one side
            side = next(part for part, files_of in shards.items() if files_of)
            raise UserError(
                f"fetch.auxiliary: {params.fetch.auxiliary}: all {number} {what} are for '{side}', by their folders or "
                "because they have the same content: add others"
            )
        few.sort(key=lambda each: place_of(each[0]))
        first = pixels_sha256(few[0][1])
        fixed, rest = (
            [each for each in few if (pixels_sha256(each[1]) == first) == wanted] for wanted in (True, False)
        )
        for part, chosen in zip(parts, (rest or fixed[:1], fixed), strict=True):
            writer = ShardWriter(folder / "auxiliary" / part)
            for name, array in chosen:
                _add(writer, name, array)
            shards[part] = writer.close()
    for part in parts:
        write_index(folder / "auxiliary" / part, shards[part])
    own = ", split by their folders" if stated and task.splits_auxiliary else ""
    console.print(f"{number} {what} of '{params.fetch.auxiliary}'{own}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _add(writer: ShardWriter, name: str, array: np.ndarray) -> None:
    flat = name.replace("/", "__")
    writer.add(Entry(flat, flat, *array.shape[-2:]), array)


def _auxiliary_part(name: str, stated: dict[str, Part]) -> str:
    """Returns "train" or "fixed" for a file.

    The folders of the file decide if they name a split; test and validation files are for the fixed pairs. Otherwise
    one file in five is "fixed", by the hash of its name.
    """
    if part := part_of([name], stated):
        return "train" if part == "train" else "fixed"
    return "fixed" if place_of(name) < 0.2 else "train"


def place_of(name: str) -> float:
    """Returns a hash of the name as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
