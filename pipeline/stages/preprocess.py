"""Stage 2: packs the images of data/raw in data/packed/{train,val,test}.

The stage checks the images, splits them by scene, and degrades those whose degradation must be fixed. packing.py
processes the images in chunks, as a parallel map over the cluster.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from components.data.items import Found, Item, Problem, find_items
from components.data.packs import Shard, write_index
from components.data.pair_names import Naming, likely_pairs
from components.data.readers.images import is_image_name
from pipeline.cluster.parallel_map import parallel_map, session_for
from pipeline.config.rules import ALL_CLEAN
from pipeline.config.schema import Params
from pipeline.config.sections import PairPatterns, Preprocess
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.paths import MANIFEST, PACKED, RAW, SCRATCH, existing, replaced_folder
from pipeline.stages.preprocessing.auxiliary import pack_auxiliary
from pipeline.stages.preprocessing.duplicates import (
    SearchChunk,
    find_duplicates,
    glances,
    look,
    put_together,
    same_apart,
    tell_alike_apart,
    write_duplicates,
)
from pipeline.stages.preprocessing.packing import SPLITS, Chunk, Packed, pack_chunk
from pipeline.stages.preprocessing.splitting import own_split_text, split_items

CHUNK_ITEMS = {"images": 32, "ct": 8, "labelled": 10_000}
CHUNK_BYTES = 1 << 25  # 32 MiB of files, about ten photographs
_SHOWN = 8  # number of scenes that a message names
_SHOWN_PROBLEMS = 3

Piece = TypeVar("Piece", Chunk, SearchChunk)
Result = TypeVar("Result")


def preprocess(params: Params) -> None:
    """Packs the training images, and fixed (degraded, clean) pairs for validation, test and out of distribution."""
    manifest = read_manifest(RAW)
    found = _found(params, list(manifest["images"]))
    if said := own_split_text(found.items, params.preprocess):
        console.print(said)
    pieces = _search_chunks(found.items, manifest["images"], params)
    with session_for(len(pieces), params.cluster):
        seen = _parallel_map(look, pieces, params, "comparing", len)
        duplicates = find_duplicates(found.items, [each for piece in seen for each in piece])
        items = put_together(found.items, duplicates, params.preprocess)
        split = split_items(items, params.preprocess)
        tell_alike_apart(duplicates, split)
        with replaced_folder(PACKED) as folder:
            pack_auxiliary(params, manifest["auxiliary"], folder)
            chunks = _chunks(items, split, manifest["images"], params, folder)
            packed = _parallel_map(pack_chunk, chunks, params, "packing", lambda each: each.num_items)
            problems = list(found.unused) + [problem for each in packed for problem in each.problems]
            unreadable = {problem.name for problem in problems}
            problems += [each for each in same_apart(duplicates, split) if each.name not in unreadable]
            _judge(problems, params, folder)
            dropped = {problem.name for problem in problems}
            _join(packed, dropped, folder)
            write_duplicates(duplicates, split, folder / "duplicates.csv")
    for part in SPLITS:
        scenes = sorted({item.scene for item in items if split[item.name] == part and item.name not in dropped})
        shown = ", ".join(scenes[:_SHOWN]) + (", ..." if len(scenes) > _SHOWN else "")
        console.print(f"{part:5} {len(scenes)} scenes: {shown}")


def read_manifest(raw: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """Reads the manifest of the fetched files.

    Returns:
        "images" and "auxiliary" -> relative name -> (SHA-256, size in bytes).

    Raises:
        UserError: the manifest is missing or damaged.
    """
    manifest = existing(raw / MANIFEST.name, "fetch")
    try:
        content = json.loads(manifest.read_bytes())
        return {
            kind: {record["name"]: (str(record["sha256"]), int(record["bytes"])) for record in records}
            for kind, records in (("images", content["images"]), ("auxiliary", content.get("auxiliary", [])))
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest}: damaged ({error}); run 'eqreg fetch' again") from error


def _naming(settings: Preprocess) -> str | Naming | None:
    if isinstance(settings.pairs, PairPatterns):
        return Naming(settings.pairs.degraded, settings.pairs.clean)
    return None if settings.pairs in ALL_CLEAN else settings.pairs


def _found(params: Params, names: Sequence[str]) -> Found:
    """Finds the items (images, pairs, CT slices or labelled images) among the fetched files."""
    input_kind = params.build_task().input_kind
    if input_kind == "images" and params.preprocess.pairs == "none":
        _check_all_clean(params, names)
    try:
        naming = _naming(params.preprocess)
        found = find_items(names, RAW / "images", input_kind, naming, params.preprocess.scene_pattern)
    except ValueError as error:
        key = "preprocess.pairs" if params.preprocess.pairs not in ALL_CLEAN else "fetch.source"
        raise UserError(f"{key}: {error}") from error
    if found.naming:
        console.print(f"{len(found.items)} pairs, named as '{found.naming}'")
    if found.left_out:
        counted = ", ".join(f"{number} {kind}" for kind, number in found.left_out.most_common())
        console.print(f"not used of {RAW / 'images'}: {counted}", markup=False)
    if not found.items:
        wanted = {"images": "images", "ct": "CT slices (npz, DICOM, h5)", "labelled": "labelled images"}[input_kind]
        raise UserError(
            f"{RAW / 'images'}: no {wanted} among {len(names)} files, which task {params.task} needs: "
            "set fetch.source to some"
        )
    return found


def _check_all_clean(params: Params, names: Sequence[str]) -> None:
    """Refuses file names that look like pairs, because half of such images are likely degraded."""
    likely = likely_pairs(name for name in names if is_image_name(Path(name)))
    if likely is None:
        return
    pair = likely.pairs[0]
    takes_pairs = params.build_task().takes_pairs
    hint = f"set preprocess.pairs: {likely.naming} to use them" if takes_pairs else "take the degraded images away"
    raise UserError(
        f"preprocess.pairs: none, but the names are those of {len(likely.pairs)} pairs, as {pair.degraded} and "
        f"{pair.clean}\n{hint}, or preprocess.pairs: clean if all images are clean"
    )


def _chunks(
    items: Sequence[Item],
    split: Mapping[str, str],
    files: Mapping[str, tuple[str, int]],
    params: Params,
    folder: Path,
) -> list[Chunk]:
    """Groups the items of each split into chunks, in the order of their names.

    A chunk is full when it has ``CHUNK_ITEMS`` items or ``CHUNK_BYTES`` bytes of files. A CT slice that is not the
    first of its file joins a chunk only if the last item there is from the same file. Otherwise it starts a new chunk.
    """
    most = CHUNK_ITEMS[params.build_task().input_kind]
    chunks: list[Chunk] = []
    for part in SPLITS:
        chosen: list[Item] = []
        size = 0

        def close(part: str = part) -> None:
            nonlocal chosen, size
            if chosen:
                sums = _sums(chosen, files)
                place = (RAW / "images").resolve(), folder.resolve()
                chunks.append(Chunk(len(chunks), part, tuple(chosen), sums, *place, params))
            chosen, size = [], 0

        for item in sorted((item for item in items if split[item.name] == part), key=lambda item: item.name):
            is_full = len(chosen) >= most or size >= CHUNK_BYTES
            if is_full or (item.number and chosen and chosen[-1].files != item.files):
                close()
            chosen.append(item)
            size += sum(files[file][1] for file in item.files if file in files) if not item.number else 0
        close()
    return chunks


def _sums(items: Sequence[Item], files: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Returns the SHA-256 of every file that the items are read from; an item's path may also be a folder."""
    roots = {root for item in items for root in item.files}
    if roots <= files.keys():
        return {file: files[file][0] for file in roots}
    inside = tuple("" if root == "." else f"{root}/" for root in roots)
    return {file: sha256 for file, (sha256, _) in files.items() if file.startswith(inside) or file in roots}


def _search_chunks(items: Sequence[Item], files: Mapping[str, tuple[str, int]], params: Params) -> list[SearchChunk]:
    input_kind = params.build_task().input_kind
    raw = (RAW / "images").resolve()
    return glances(items, files, raw, input_kind, params.preprocess.colour, CHUNK_ITEMS[input_kind])


def _parallel_map(
    function: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    params: Params,
    what: str,
    count: Callable[[Result], int],
) -> list[Result]:
    total = sum(len(piece.items) for piece in pieces)
    with progress() as bars:
        bar = bars.add_task(what, total=total, note="")
        return parallel_map(function, pieces, params.cluster, lambda result: bars.update(bar, advance=count(result)))


def _judge(problems: Sequence[Problem], params: Params, folder: Path) -> None:
    """Reports the images that cannot be used, as ``preprocess.unusable`` says.

    With "refuse" the stage ends; with "skip" it continues without these images.

    Raises:
        UserError: there are problems, and ``preprocess.unusable`` is "refuse".
    """
    if not problems:
        return
    is_refused = params.preprocess.unusable == "refuse"
    listed = SCRATCH / "unusable.csv" if is_refused else folder / "unusable.csv"
    listed.parent.mkdir(exist_ok=True)
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "reason"])
        writer.writerows([problem.name, problem.reason] for problem in problems)
    shown = "; ".join(f"{problem.name}: {problem.reason}" for problem in problems[:_SHOWN_PROBLEMS])
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    if is_refused:
        raise UserError(
            f"{len(problems)} of the images cannot be used, listed in {listed} (preprocess.unusable: skip leaves them "
            f"out)\n{shown}{more}"
        )
    console.print(f"{len(problems)} left out, listed in {PACKED / listed.name}: {shown}{more}", markup=False)


def _join(packed: Sequence[Packed], dropped: set[str], folder: Path) -> None:
    """Writes the index of every pack, without the dropped items.

    Raises:
        UserError: a split has no image left.
    """
    shards: dict[str, list[Shard]] = {}
    for each in packed:
        for pack, written in each.shards.items():
            shards.setdefault(pack, [])
            for shard in written:
                entries = tuple(entry for entry in shard.entries if each.owners[pack, entry.name] not in dropped)
                shards[pack].append(replace(shard, entries=entries))
    for part in SPLITS:
        if not any(shard.entries for shard in shards.get(part, [])):
            raise UserError(f"preprocess.splits: no usable image for {part} is left: see the names above")
    _check_labels(shards)
    for pack, written in shards.items():
        if kept := [shard for shard in written if shard.entries]:
            write_index(folder / pack, kept)
        else:
            shutil.rmtree(folder / pack)
            console.print(f"{pack} is left out: these pairs are given, and cannot be degraded otherwise")


def _check_labels(shards: Mapping[str, Sequence[Shard]]) -> None:
    """Refuses a class of the validation or test split that has no image in the training split."""
    labels = {
        part: {entry.label: entry.name for shard in shards[part] for entry in shard.entries if entry.label is not None}
        for part in SPLITS
    }
    for part in SPLITS[1:]:
        if unknown := labels[part].keys() - labels["train"].keys():
            name = labels[part][min(unknown)]
            raise UserError(
                f"preprocess.splits: {len(unknown)} classes of {part} have no image in train, the first is that of "
                f"{name}: bring more images of each class, or lower preprocess.remaining"
            )


__all__ = ["SPLITS", "preprocess", "read_manifest"]
