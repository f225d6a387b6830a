"""``eqreg restore``: restores image files with a registered model or a model file.

torch is imported after the arguments are checked, so that a wrong argument is refused at once.
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.restoring.memory import Memory, memory_of
from pipeline.commands.restoring.model import check_model, load_restorer
from pipeline.commands.restoring.places import is_remote, remove_partial_files, write
from pipeline.commands.restoring.plan import Item, plan
from pipeline.console import console, progress
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.commands.restoring.request import Request
    from pipeline.commands.restoring.worker import Outcome

_SHOWN = 20
"""Failed images that the console lists; all are in the report."""


def restore(
    source: Path | str | Sequence[str],
    target: Path | str,
    model: str,
    tile: int = 512,
    overlap: int = 64,
    self_ensemble: int = 1,
    mask: Path | None = None,
    *,
    form: str | None = None,
    device: str = "auto",
    report: Path | None = None,
    workers: int = 0,
    address: str = "local",
    metal_threshold: float = 2500.0,
    noise_level: float | None = None,
) -> int:
    """Restores images; a file that cannot be restored is listed, and the others are restored.

    Args:
        source: files, folders, patterns, or prefixes ``s3://BUCKET/PREFIX``.
        target: file for one file, else folder or prefix for the results.
        model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a model file.
        tile: largest side of a tile in pixels.
        overlap: least overlap of neighbouring tiles in pixels.
        self_ensemble: number of transformed images that are averaged: 1, 4 or 8.
        mask: mask for models of the task inpaint. It is an image that is white where pixels are missing, or a folder
            with a mask for each input, of the same name and in the same subfolder. For models for CT it is white where
            there is metal, and is not needed.
        form: format of the results (`plan.FORMATS`); None: by the suffix of a target file, PNG in a folder.
        device: of the network; "auto" is a GPU where there is one.
        report: CSV file that is written with a line for each image.
        workers: number of Ray actors that restore; 0: this process alone.
        address: Ray cluster of the workers.
        metal_threshold: a pixel of a CT slice above it is metal, in Hounsfield units, if there is no mask.
        noise_level: standard deviation of the noise in grey levels of 255, for models that take it; None: the middle of
            the range of training.

    Returns:
        The number of images that were not restored.

    Raises:
        UserError: the input holds no image, the output cannot be written, or the model is unknown. Also the reason
            why the only image of a call cannot be restored.
    """
    sources = [source] if isinstance(source, str) else [str(source)] if isinstance(source, Path) else list(source)
    place = str(target)
    items = plan(sources, place, form, str(mask) if mask else None)
    check_model(model)
    if not -1000 < metal_threshold < float("inf"):
        raise UserError(f"--metal-threshold {metal_threshold:g}: use Hounsfield units above -1000, such as 2500")
    if noise_level is not None and not 0 <= noise_level <= 255:
        raise UserError(f"--noise-level {noise_level:g}: use 0 to 255, the standard deviation in grey levels of 255")
    from components.inference.restorer import Options
    from components.inference.tiles import check_tiles
    from pipeline.commands.restoring.request import Request

    check_tiles(tile, overlap, self_ensemble)
    options = Options(
        tile=tile,
        overlap=overlap,
        self_ensemble=self_ensemble,
        metal_threshold=metal_threshold,
        noise_level=noise_level,
    )
    request = Request(model=model, mask=mask, options=options, device=device, workers=workers, address=address)
    with memory_of(place) if len(items) > 1 else nullcontext(Memory(None)) as memory:
        if not is_remote(place):
            remove_partial_files(Path(place))
        results = _outcomes(items, request, memory)
        outcomes = list(_shown(_recorded(results, memory), items))
    if report is not None:
        _write_report(report, outcomes)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed and len(items) == 1:
        raise UserError(failed[0].reason)
    if outcomes and all(outcome.status == "left out" for outcome in outcomes):
        raise UserError(outcomes[0].reason)
    _say(outcomes, failed, place)
    return len(failed)


def _outcomes(items: list[Item], request: Request, memory: Memory) -> Iterator[Outcome]:
    """Restores the images one after another, or by actors."""
    if request.workers:
        from pipeline.commands.restoring.actors import restore_by_actors

        return restore_by_actors(items, request, memory)
    from pipeline.commands.restoring.worker import restore_item

    restorer, digest = load_restorer(request.model, request.device, request.mask, request.options.noise_level)
    return (restore_item(item, restorer, request.options, digest, memory) for item in items)


def _recorded(outcomes: Iterator[Outcome], memory: Memory) -> Iterator[Outcome]:
    """Passes the outcomes on, and records each image that is restored."""
    for outcome in outcomes:
        if outcome.status == "restored":
            memory.add(outcome.item.target, outcome.fingerprint, outcome.sha256)
        yield outcome


def _shown(outcomes: Iterator[Outcome], items: list[Item]) -> Iterator[Outcome]:
    """Passes the outcomes on, with a progress bar for several images: megapixels of input a second."""
    if len(items) == 1:
        yield from outcomes
        return
    start, megapixels = time.monotonic(), 0.0
    with progress() as bars:
        bar = bars.add_task("restoring", total=len(items), note="")
        for outcome in outcomes:
            yield outcome
            megapixels += outcome.megapixels
            bars.update(bar, advance=1, note=f"{megapixels / (time.monotonic() - start):.2f} megapixels/s")


def _say(outcomes: list[Outcome], failed: list[Outcome], target: str) -> None:
    counts = Counter(outcome.status for outcome in outcomes)
    said = [f"{counts['restored']} restored"]
    said += [f"{counts['done before']} done before"] if counts["done before"] else []
    said += [f"{len(failed)} failed"] if failed else []
    said += [f"{counts['left out']} of another kind left out"] if counts["left out"] else []
    console.print(f"{', '.join(said)}: {target}", markup=False)
    for dropped, count in Counter(each for outcome in outcomes for each in outcome.dropped).most_common():
        images = "1 image" if count == 1 else f"{count} images"
        console.print(f"  not in the results of {images}: {dropped}", markup=False)
    for note, count in Counter(each for outcome in outcomes for each in outcome.notes).most_common():
        console.print(f"  of {'1 slice' if count == 1 else f'{count} slices'}: {note}", markup=False)
    for outcome in failed[:_SHOWN]:
        console.print(f"  failed: {outcome.reason}", markup=False)
    if len(failed) > _SHOWN:
        console.print(f"  and {len(failed) - _SHOWN} more; --report FILE lists all", markup=False)


def _write_report(report: Path, outcomes: list[Outcome]) -> None:
    """Writes a CSV file with a line for each image.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "result", "status", "reason", "dropped", "megapixels", "seconds", "notes"])
    for each in outcomes:
        result = "" if each.status in ("failed", "left out") else each.item.target
        dropped, numbers = "; ".join(each.dropped), (f"{each.megapixels:.3f}", f"{each.seconds:.3f}")
        table.writerow([each.item.source, result, each.status, each.reason, dropped, *numbers, "; ".join(each.notes)])
    write(str(report), text.getvalue().encode())
