"""Stage 2: data/raw -> data/packed/{train,val,test}: checked, split by scene, degraded where it must be fixed.

The work on the images is in packing.py, a chunk at a time, spread over the cluster.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from components.data.images import is_image_name
from components.data.items import Found, Item, Problem, find_items
from components.data.packs import Shard, write_index
from components.data.pair_names import Naming, likely_pairs
from pipeline.auxiliary import pack_auxiliary
from pipeline.cluster.spread import session_for, spread
from pipeline.console import console, progress
from pipeline.duplicates import (
    Glance,
    find_duplicates,
    glances,
    look,
    put_together,
    same_apart,
    tell_alike_apart,
    write_duplicates,
)
from pipeline.errors import UserError
from pipeline.packing import SPLITS, TEST_PACKS, Chunk, Packed, pack_chunk
from pipeline.params import ALL_CLEAN, PairPatterns, Params, Preprocess
from pipeline.paths import MANIFEST, PACKED, RAW, SCRATCH, existing, replaced_folder
from pipeline.splitting import own_split_text, split_items

OUT_OF_DISTRIBUTION = TEST_PACKS
CHUNK_ITEMS = {"images": 32, "ct": 8, "labelled": 10_000}
CHUNK_BYTES = 1 << 25  # of files: 32 MiB, some ten photographs
_SHOWN = 8  # scenes in a message
_SHOWN_PROBLEMS = 3

Piece = TypeVar("Piece", Chunk, Glance)
Result = TypeVar("Result")


def preprocess(params: Params) -> None:
    """Packs training images; fixed (degraded, clean) pairs for validation, test and out of distribution."""
    manifest = read_manifest(RAW)
    found = _found(params, list(manifest["images"]))
    if said := own_split_text(found.items, params.preprocess):
        console.print(said)
    pieces = _glances(found.items, manifest["images"], params)
    with session_for(len(pieces), params.cluster):
        seen = _spread(look, pieces, params, "comparing", len)
        duplicates = find_duplicates(found.items, [each for piece in seen for each in piece])
        items = put_together(found.items, duplicates, params.preprocess)
        split = split_items(items, params.preprocess)
        tell_alike_apart(duplicates, split)
        with replaced_folder(PACKED) as folder:
            pack_auxiliary(params, manifest["auxiliary"], folder)
            chunks = _chunks(items, split, manifest["images"], params, folder)
            packed = _spread(pack_chunk, chunks, params, "packing", lambda each: each.num_items)
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
    """What was fetched: "images" and "auxiliary" -> relative name -> (SHA-256, bytes).

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
    """What the fetched files hold."""
    reads = params.build_task().reads
    if reads == "images" and params.preprocess.pairs == "none":
        _check_all_clean(params, names)
    try:
        naming = _naming(params.preprocess)
        found = find_items(names, RAW / "images", reads, naming, params.preprocess.scene_pattern)
    except ValueError as error:
        key = "preprocess.pairs" if params.preprocess.pairs not in ALL_CLEAN else "fetch.source"
        raise UserError(f"{key}: {error}") from error
    if found.naming:
        console.print(f"{len(found.items)} pairs, named as '{found.naming}'")
    if found.left_out:
        counted = ", ".join(f"{number} {kind}" for kind, number in found.left_out.most_common())
        console.print(f"not used of {RAW / 'images'}: {counted}", markup=False)
    if not found.items:
        wanted = {"images": "images", "ct": "CT slices (npz, DICOM, h5)", "labelled": "labelled images"}[reads]
        raise UserError(
            f"{RAW / 'images'}: no {wanted} among {len(names)} files, which task {params.task} needs: "
            "set fetch.source to some"
        )
    return found


def _check_all_clean(params: Params, names: Sequence[str]) -> None:
    """Refuses names by which half of the images are likely the degraded ones of pairs."""
    likely = likely_pairs(name for name in names if is_image_name(Path(name)))
    if likely is None:
        return
    pair = likely.pairs[0]
    takes_pairs = params.build_task().channels(3) == (3, 3)
    remedy = f"set preprocess.pairs: {likely.naming} to use them" if takes_pairs else "take the degraded images away"
    raise UserError(
        f"preprocess.pairs: none, but the names are those of {len(likely.pairs)} pairs, as {pair.degraded} and "
        f"{pair.clean}\n{remedy}, or preprocess.pairs: clean if all images are clean"
    )


def _chunks(
    items: Sequence[Item],
    split: Mapping[str, str],
    files: Mapping[str, tuple[str, int]],
    params: Params,
    folder: Path,
) -> list[Chunk]:
    """The items of each part, in the order of their names, in pieces of some size; CT slices of one file together."""
    most, values = CHUNK_ITEMS[params.build_task().reads], params.model_dump(by_alias=True, mode="json")
    chunks: list[Chunk] = []
    for part in SPLITS:
        chosen: list[Item] = []
        size = 0

        def close(part: str = part) -> None:
            nonlocal chosen, size
            if chosen:
                sums = _sums(chosen, files)
                place = (RAW / "images").resolve(), folder.resolve()
                chunks.append(Chunk(len(chunks), part, tuple(chosen), sums, *place, values))
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
    """The SHA-256 of every file that items are read from; one of them may be a folder."""
    roots = {root for item in items for root in item.files}
    if roots <= files.keys():
        return {file: files[file][0] for file in roots}
    inside = tuple("" if root == "." else f"{root}/" for root in roots)
    return {file: sha256 for file, (sha256, _) in files.items() if file.startswith(inside) or file in roots}


def _glances(items: Sequence[Item], files: Mapping[str, tuple[str, int]], params: Params) -> list[Glance]:
    reads = params.build_task().reads
    raw = (RAW / "images").resolve()
    return glances(items, files, raw, reads, params.preprocess.colour, CHUNK_ITEMS[reads])


def _spread(
    function: Callable[[Piece], Result],
    pieces: Sequence[Piece],
    params: Params,
    what: str,
    count: Callable[[Result], int],
) -> list[Result]:
    total = sum(len(piece.items) for piece in pieces)
    with progress() as bars:
        bar = bars.add_task(what, total=total, note="")
        return spread(function, pieces, params.cluster, lambda result: bars.update(bar, advance=count(result)))


def _judge(problems: Sequence[Problem], params: Params, folder: Path) -> None:
    """Refuses, or reports and goes on, as ``preprocess.unusable`` says.

    Raises:
        UserError: there are problems, and they are to be refused.
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
    """Writes the index of every pack.

    Raises:
        UserError: a part has no image left.
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
    """Refuses a class that training does not know."""
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


__all__ = ["OUT_OF_DISTRIBUTION", "SPLITS", "preprocess", "read_manifest"]
