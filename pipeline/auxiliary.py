"""What degradations are made of beside clean images: packed in data/packed/auxiliary/{train,fixed}, and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.data.images import pixels_sha256
from components.data.own_split import Part, folder_parts, part_of
from components.data.packs import Entry, Pack, ShardWriter, file_sha256, write_index
from components.tasks import Auxiliary
from pipeline.console import console
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import RAW

_AUXILIARY = {"derain": "streak layers", "deblur": "blur kernels", "inpaint": "masks"}
_FEW_AUXILIARY = 100


def pack_auxiliary(params: Params, files: Mapping[str, tuple[str, int]], folder: Path) -> None:
    """Packs auxiliary data for training and for the fixed pairs, if any degradation of the task wants them.

    Args:
        params: of the run.
        files: of data/raw/auxiliary: name -> (SHA-256, bytes).
        folder: of the packs.

    Raises:
        UserError: there is nothing of the kind, or a file is missing, altered or not what it should be.
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
    seen: dict[str, str] = {}  # SHA-256 of the content -> part
    few: list[tuple[str, np.ndarray]] = []  # kept as long as they are few
    try:
        for number, (name, array) in enumerate(task.read_auxiliary(source, sorted(files)), start=1):
            few = [*few, (name, array)] if number <= _FEW_AUXILIARY else []
            # The same content under another name goes where the first went.
            own = seen.setdefault(pixels_sha256(array), _auxiliary_part(name, stated)) if task.splits_auxiliary else ""
            for part in [own] if own else parts:
                _add(writers[part], name, array)
    except ValueError as error:
        raise UserError(f"fetch.auxiliary: {error}") from error
    what = _AUXILIARY.get(params.task, "data")
    if not number:
        raise UserError(f"fetch.auxiliary: {params.fetch.auxiliary}: no {what} in it, which tasks.{params.task} wants")
    shards = {part: writer.close() for part, writer in writers.items()}
    if not all(shards.values()):  # the hash left one side empty: the first by it goes there, a lone one to both
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
    """What its folders say (test and validation are for the fixed pairs); else one in five, by the hash of the name."""
    if part := part_of([name], stated):
        return "train" if part == "train" else "fixed"
    return "fixed" if place_of(name) < 0.2 else "train"


def place_of(name: str) -> float:
    """A place in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def read_auxiliary(packed: Path, part: str) -> Auxiliary | None:
    """What degradations are made of beside clean images, for "train" or for the "fixed" pairs; None if nothing is."""
    folder = packed / "auxiliary" / part
    return PackedArrays(Pack(folder)) if folder.is_dir() else None


class PackedArrays(Sequence[np.ndarray]):
    """The arrays ``(h, w)`` of a pack in the type they are stored in, read when they are asked for."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def __len__(self) -> int:
        return len(self._pack)

    def __getitem__(self, index: Any) -> Any:
        return self._pack.stored(int(index))[0]
