"""How fast training data are made, and in how much memory: one JSON line a figure.

    python benchmarks/data.py pairs [--images FOLDER]       finished training pairs a second, task by task
    python benchmarks/data.py crops [--images FOLDER]       crops from a pack, beside decoding the same PNG files
    python benchmarks/data.py memory [--gigabytes 10]       own memory of a training on 0.2 GB and on much more
    python benchmarks/data.py preprocess [--number 1000]    seconds to preprocess photographs of 2 megapixels

Run it in a folder with params.yaml. Without --images the built-in photographs are used. All speeds are of one thread,
as one worker has one for its data; of the training step, too: only ratios within a run mean anything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from components.data.packs import Entry, Pack, ShardWriter, write_index, write_pack
from components.data.readers.images import read_image
from components.data.sampler import PatchSampler
from components.tasks import TASKS
from pipeline.config.schema import Params, check_params
from pipeline.config.values import read_values, set_value
from pipeline.sources.kinds.builtin import BuiltinPhotographs
from pipeline.training_job import TrainingJob

ROUNDS = 5
MEGAPIXELS = (1200, 1680)  # height, width: 2.0
MEMORY_LIMIT = 4 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pairs", "crops", "memory", "preprocess", "train-on"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--pack", type=Path, help=argparse.SUPPRESS)  # of train-on, which memory starts
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "pairs":
        measure_pairs(arguments.images)
    elif arguments.what == "crops":
        measure_crops(arguments.images)
    elif arguments.what == "memory":
        measure_memory(arguments.gigabytes)
    elif arguments.what == "preprocess":
        measure_preprocess(arguments.number)
    else:
        train_on(arguments.pack)


# ------------------------------------------------------------------------------------------------- pairs a second


def measure_pairs(images: Path | None) -> None:
    """Pairs that one thread finishes in a second / images that one thread trains on in a second, for each task."""
    with _scratch() as folder:
        pack = _pack_of(_photographs(images), folder)
        for name in TASKS:
            params = _params(name)
            task = params.build_task()
            if task.input_kind == "images":
                sampler: Any = PatchSampler(
                    pack,
                    task.degradation(is_training=True),
                    params.train.patch_size,
                    params.rotations,
                    0,
                    task.scale,
                )
            else:
                sampler = _given(params, folder)
            consumed = _training_speed(params, sampler)
            made = _speed(lambda step, sampler=sampler: sampler.batch(step, range(8)), 8)
            _tell(
                "pairs",
                task=name,
                pairs_per_second=round(made),
                trained_per_second=round(consumed, 1),
                ratio=round(made / consumed, 1),
            )


def _given(params: Params, folder: Path) -> Any:
    """The sampler of a task whose pairs or labelled images are stored."""
    random, target = np.random.default_rng(0), folder / params.task
    target.mkdir()
    if params.build_task().input_kind == "ct":
        size = 416
        entries = [Entry(f"s{n}", f"s{n}", size, size) for n in range(16)]
        clean = [random.random((1, size, size), dtype=np.float32) for _ in entries]
        write_pack(target, entries, clean, [random.random((3, size, size), dtype=np.float32) for _ in entries])
        return PatchSampler(Pack(target), None, params.train.patch_size, params.rotations, 0)
    from components.data.sampler import LabelledSampler

    entries = [Entry(f"s{n}", f"s{n}", 32, 32, n % 100) for n in range(1000)]
    write_pack(target, entries, [random.integers(0, 256, (3, 32, 32), dtype=np.uint8) for _ in entries])
    return LabelledSampler(Pack(target), params.build_task().degradation(is_training=True), params.rotations, 0)


def _training_speed(params: Params, sampler: Any) -> float:
    """Images drawn a second by the default training step of this task in one thread, its batches ready at hand."""
    batches = [sampler.batch(step, range(params.train.batch_size)) for step in range(4)]
    with _scratch() as folder:
        _write_targets(params, folder)
        job = TrainingJob(params, folder)
        share = len(job.worker_batch(0, 1).indices)  # drawn; the copies are turned, not drawn

        class Ready:
            def batch(self, step: int, indices: tuple[int, ...]) -> Any:
                inputs, targets = batches[step % len(batches)]
                return inputs[: len(indices)], targets[: len(indices)]

        speeds: list[float] = []

        class Timed(TrainingJob):
            def sampler(self) -> Any:
                return Ready()

            def validate(self, network: Any, worker: Any) -> dict[str, float]:
                return {"val_score": 0.0}

        def report(step: int, metrics: dict[str, float]) -> None:
            speeds.append(metrics["images_per_second"])

        Timed(params, folder).run(report, lambda state, metrics: None)
    trained = statistics.median(speeds[1:])
    return trained * share / params.train.batch_size


def _write_targets(params: Params, folder: Path) -> None:
    """The packs that a job asks for its number of classes."""
    (folder / "train").mkdir()
    write_pack(folder / "train", [Entry("a", "a", 32, 32, 99)], [np.zeros((3, 32, 32), np.uint8)])


# --------------------------------------------------------------------------------------------- crops beside files


def measure_crops(images: Path | None) -> None:
    """Crops of 48 x 48 a second: from a pack; decoding the PNG for each, as a loader of folders does; and a peer."""
    with _scratch() as folder:
        photographs = _photographs(images)
        pack, random = _pack_of(photographs, folder), np.random.default_rng(0)
        files = []
        for number, image in enumerate(photographs):
            files.append(folder / f"{number}.png")
            Image.fromarray(image.transpose(1, 2, 0)).save(files[-1])

        def place(height: int, width: int) -> tuple[int, int]:
            return int(random.integers(height - 47)), int(random.integers(width - 47))

        def from_pack(_: int) -> None:
            index = int(random.integers(len(pack)))
            pack.clean_crop(index, *place(pack.entries[index].height, pack.entries[index].width), 48)

        def from_png(_: int) -> None:
            image = read_image(files[int(random.integers(len(files)))])
            top, left = place(*image.shape[-2:])
            np.ascontiguousarray(image[:, top : top + 48, left : left + 48]).astype(np.float32)

        packed, decoded = _speed(from_pack, 1), _speed(from_png, 1)
        line = {"pack_per_second": round(packed), "png_per_second": round(decoded), "ratio": round(packed / decoded)}
        _tell("crops", **line, **_peer(files, photographs, packed, folder))


def _peer(files: list[Path], photographs: list[np.ndarray], packed: float, folder: Path) -> dict[str, Any]:
    """webdataset reading the same PNGs from a tar in order, each cropped once; nothing where it is not installed."""
    try:
        import webdataset
    except ImportError:
        return {"webdataset": "not installed"}
    archive = folder / "images.tar"
    with webdataset.TarWriter(str(archive)) as writer:
        for number, file in enumerate(files):
            writer.write({"__key__": f"{number:05d}", "png": file.read_bytes()})
    data = webdataset.WebDataset(str(archive), shardshuffle=False).decode("rgb8").to_tuple("png")
    stream = itertools.chain.from_iterable(data for _ in itertools.count())

    def crop(_: int) -> None:
        (image,) = next(stream)
        np.ascontiguousarray(image[:48, :48]).astype(np.float32)

    speed = _speed(crop, 1)
    return {"webdataset_per_second": round(speed), "ratio_to_webdataset": round(packed / speed)}


# ----------------------------------------------------------------------------------------------------------- memory


def measure_memory(gigabytes: float) -> None:
    """Peak of own memory (anonymous, shared) of a training on a small pack, a large one, and the large one limited."""
    found = {}
    with _scratch() as folder:
        for title, size in (("small", 0.2), ("large", gigabytes)):
            target = folder / title
            _noise_pack(target, int(size * 1e9))
            found[title] = _peak(target, None)
            if title == "large":
                limited = _peak(target, MEMORY_LIMIT)
        _tell(
            "memory",
            gigabytes=gigabytes,
            small_mb=round(found["small"] / 1e3, 1),
            large_mb=round(found["large"] / 1e3, 1),
            ratio=round(found["large"] / found["small"], 4),
            limited_to_gib=MEMORY_LIMIT >> 30,
            limited_mb=round(limited / 1e3, 1),
        )


def _noise_pack(folder: Path, size: int) -> None:
    """Packs of random photographs of 2 megapixels, and one small image to validate on."""
    height, width = MEGAPIXELS
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    random, writer = np.random.default_rng(0), ShardWriter(folder / "train")
    for number in range(max(1, size // (3 * height * width))):
        image = np.frombuffer(random.bytes(3 * height * width), dtype=np.uint8).reshape(3, height, width)
        writer.add(Entry(f"i{number}", f"i{number}", height, width), image)
    write_index(folder / "train", writer.close())
    clean = random.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    write_pack(folder / "val", [Entry("v", "v", 64, 64)], [clean], [clean.astype(np.float32) / 255])


def _peak(pack: Path, limit: int | None) -> int:
    """The greatest RssAnon + RssShmem of a training process and its children, in kB."""

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, __file__, "train-on", "--pack", str(pack)]
    process = subprocess.Popen(command, preexec_fn=limited)
    highest = 0
    while process.poll() is None:
        highest = max(highest, _own_memory(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"training on {pack} ended with {process.returncode}")
    return highest


def _own_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    rows = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    own = sum(int(rows[key].split()[0]) for key in ("RssAnon", "RssShmem") if key in rows)
    return own + sum(_own_memory(int(child)) for child in children)


def train_on(pack: Path) -> None:
    """Every image of the pack is cropped from a few times: 500 steps of the default training."""
    values = _values("denoise")
    for key, value in {"train.steps": 500, "train.validate_every": 500, "train.checkpoint_every": 500}.items():
        set_value(values, key, value)
    TrainingJob(check_params(values, "params"), pack).run(lambda step, metrics: None, lambda state, metrics: None)


# ------------------------------------------------------------------------------------------------------- preprocess


def measure_preprocess(number: int) -> None:
    """Seconds that `eqreg preprocess` takes for photographs of 2 megapixels (JPEG), on all cores."""
    with _scratch() as folder:
        source = folder / "source"
        source.mkdir()
        height, width = MEGAPIXELS
        photographs = _photographs(None)
        random = np.random.default_rng(0)
        for index in range(number):
            image = Image.fromarray(photographs[index % len(photographs)].transpose(1, 2, 0)).resize((width, height))
            pixels = np.asarray(image).astype(np.int16) + random.integers(-6, 7, (height, width, 1))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(source / f"p{index:05d}.jpg", quality=92)
        values = _values("denoise")
        set_value(values, "fetch.source", str(source))
        (folder / "params.yaml").write_text(json.dumps(values))
        seconds = {}
        for stage in ("fetch", "preprocess"):
            start = time.monotonic()
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
            subprocess.run([sys.executable, "-m", "pipeline.cli", stage], cwd=folder, env=environment, check=True)
            seconds[stage] = round(time.monotonic() - start, 1)
        size = sum(file.stat().st_size for file in source.iterdir())
        _tell("preprocess", images=number, jpeg_megabytes=round(size / 1e6), seconds=seconds)


# ------------------------------------------------------------------------------------------------------------ parts


def _values(task: str) -> dict[str, Any]:
    values = read_values(Path("params.yaml"))
    for key, value in {"task": task, "tune.trials": 0, "train.steps": 60, "train.report_every": 10}.items():
        set_value(values, key, value)
    return values


def _params(task: str) -> Params:
    return check_params(_values(task), "params")


def _photographs(folder: Path | None) -> list[np.ndarray]:
    """``(3, H, W)`` uint8 each."""
    if folder is not None:
        return [read_image(file) for file in sorted(folder.iterdir())[:200]]
    with _scratch() as target:
        source = BuiltinPhotographs()
        for name in source.names():
            source.copy(name, target / name)
        return [read_image(file) for file in sorted(target.iterdir())]


def _pack_of(photographs: list[np.ndarray], folder: Path) -> Pack:
    target = folder / "pack"
    target.mkdir()
    entries = [Entry(f"i{n}", f"i{n}", *image.shape[-2:]) for n, image in enumerate(photographs)]
    write_pack(target, entries, photographs)
    return Pack(target)


def _speed(function: Callable[[int], object], pieces: int) -> float:
    """Pieces a second: the median of several rounds of at least half a second, after one that is not counted."""
    found, step = [], 0
    for _ in range(ROUNDS + 1):
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < 0.5:
            function(step)
            step, calls = step + 1, calls + 1
        found.append(calls * pieces / (time.perf_counter() - start))
    return statistics.median(found[1:])


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _tell(what: str, **figures: Any) -> None:
    print(json.dumps({"benchmark": f"data {what}", **figures}), flush=True)


if __name__ == "__main__":
    main()
