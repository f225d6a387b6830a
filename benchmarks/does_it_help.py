"""Does equivariance regularisation help? Grey denoising, every control arm of `eqreg ablate`, at equal steps.

    python benchmarks/does_it_help.py --data FOLDER --out FOLDER [--phase select|compare|tables|all] [--arms ...]

FOLDER of --data holds grey images of one size. A finished run is one line of OUT/runs.jsonl and is never repeated: to
go on after a stop, give the same command again. Weights are selected on validation images with seed 0; seeds 1, 2, ...
are then compared on the test images. OUT/tables.md and OUT/tables.jsonl are written from whatever is finished.

Legend: N images, B images of a batch, H rows, W columns.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import lock_descriptor
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from components.data.randomness import Stream, generator, torch_generator
from components.data.readers.images import is_image_name, to_float
from components.equivariance import EquivarianceRegularizer, equivariance_error, rotate
from components.evaluation.metrics import as_saved, psnr
from components.evaluation.statistics import clustered_interval
from components.networks import build_network

SIGMA = 25
TEST_SETS = {"test": "test", "turned": "test, turned", "sigma15": "sigma 15", "sigma35": "sigma 35"}
PATCH_SIZE = 40
LARGEST_RATE = 2e-3
TASK_SCALE = 100.0
NUM_TEST, NUM_VALIDATION, SPLIT_SEED = 40, 30, 0
REGIMES = ("4", "all")
SELECTION_SEED = 0
USUAL_WEIGHTS = (0.001, 0.003, 0.01, 0.03)
CANDIDATES: dict[str, tuple[float, ...]] = {
    "rotation": USUAL_WEIGHTS,
    "channel": USUAL_WEIGHTS,
    "rotation+channel": USUAL_WEIGHTS,
    "regular": USUAL_WEIGHTS,
    "projection": (0.001, 0.01, 0.1, 1.0),
    "paper": (1e-6, 1e-5, 1e-4, 1e-3),  # a sum over the whole tensor, so its values are large
    "cheap": USUAL_WEIGHTS,
}
# "pairs" makes pairs of half of the images and watches nothing; "cheap" is "regular" as params.yaml has it.
CHEAP: dict[str, Any] = {
    "penalty": "regular",
    "pair_fraction": 0.25,
    "sample_layers": 0.2,
    "max_gradient_ratio": 0.3,
    "layer_weights": {"profile": "geometric", "decay": 0.9},
}
REFERENCES = ("plain", "pairs", "pairs/4")
ARMS = ("none", *REFERENCES, *CANDIDATES)
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training and what is measured after it; all fields together are its key."""

    phase: str
    regime: str
    arm: str
    weight: float
    seed: int
    steps: int
    batch: int
    precision: str

    def __str__(self) -> str:
        weight = f" weight {self.weight:g}" if self.arm in CANDIDATES else ""
        return f"{self.phase} regime {self.regime} {self.arm}{weight} seed {self.seed}"


# ---- the images


@dataclass(frozen=True)
class Split:
    """The images, ``(N, H, W)`` in [0, 1] in the order of their names, and which are for what (indices)."""

    names: list[str]
    images: np.ndarray
    test: list[int]
    validation: list[int]
    train: list[int]

    def training_images(self, regime: str) -> np.ndarray:
        return self.images[self.train if regime == "all" else self.train[: int(regime)]]

    def described(self) -> Record:
        parts = {part: [self.names[index] for index in getattr(self, part)] for part in ("test", "validation", "train")}
        return {"pixels_sha256": hashlib.sha256(self.images.tobytes()).hexdigest(), **parts}


@functools.cache
def read_split(folder: Path) -> Split:
    """Reads and splits a folder.

    Raises:
        ValueError: too few images, images of several sizes, or one content in two parts.
    """
    paths = sorted((path for path in folder.glob("*") if is_image_name(path)), key=lambda path: path.name)
    if len(paths) < NUM_TEST + NUM_VALIDATION + 4:
        raise ValueError(f"{folder}: {len(paths)} images; at least {NUM_TEST + NUM_VALIDATION + 4} are needed")
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("L")))  # (H, W)
    if len({image.shape for image in pixels}) != 1:
        raise ValueError(f"{folder}: the images differ in size; crop them to one")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(paths)).tolist()
    bounds = (NUM_TEST, NUM_TEST + NUM_VALIDATION)
    parts = order[: bounds[0]], order[bounds[0] : bounds[1]], order[bounds[1] :]
    part_of: dict[str, int] = {}
    for part, indices in enumerate(parts):
        for index in indices:
            digest = hashlib.sha256(pixels[index].tobytes()).hexdigest()
            if part_of.setdefault(digest, part) != part:
                raise ValueError(f"{paths[index]}: the same picture is in two parts of the split; take one away")
    return Split([path.name for path in paths], to_float(np.stack(pixels)), *parts)


def training_batch(
    images: np.ndarray, seed: int, step: int, batch_size: int, turned: bool = True
) -> tuple[Tensor, Tensor]:
    """(noisy, clean) ``(B, 1, 40, 40)``: a function of seed and step; not `turned` differs in the turns alone."""
    draws = generator(seed, Stream.TRAINING_IMAGE, step)
    chosen = draws.integers(len(images), size=batch_size)
    rows = draws.integers(images.shape[1] - PATCH_SIZE + 1, size=batch_size)
    columns = draws.integers(images.shape[2] - PATCH_SIZE + 1, size=batch_size)
    turns = draws.integers(4, size=batch_size)
    noise = draws.standard_normal((batch_size, 1, PATCH_SIZE, PATCH_SIZE), dtype=np.float32)
    patches = [
        np.rot90(images[i, row : row + PATCH_SIZE, column : column + PATCH_SIZE], n if turned else 0)
        for i, row, column, n in zip(chosen, rows, columns, turns, strict=True)
    ]
    clean = torch.from_numpy(np.stack(patches)[:, None])  # (B, H, W) -> (B, 1, H, W)
    return clean + torch.from_numpy(noise) * (SIGMA / 255), clean


def evaluation_pairs(split: Split, indices: Sequence[int], sigma: float) -> tuple[Tensor, Tensor]:
    """(noisy, clean) ``(N, 1, H, W)``; an image's noise depends on its index alone, and scales with sigma."""
    clean = torch.from_numpy(split.images[indices][:, None])  # (N, H, W) -> (N, 1, H, W)
    shape = clean.shape[1:]
    noise = [generator(0, Stream.FIXED_PAIR, i).standard_normal(shape, dtype=np.float32) for i in indices]
    return clean + torch.from_numpy(np.stack(noise)) * (sigma / 255), clean


# ---- a single run


def build_regularizer(arm: str, network: nn.Module) -> EquivarianceRegularizer | None:
    """The regulariser of an arm, or None where there are no pairs."""
    if arm in ("none", "plain"):
        return None
    if arm == "cheap":
        return EquivarianceRegularizer(network, **CHEAP)
    if arm in ("pairs", "pairs/4"):  # given a copy, it makes pairs and watches nothing
        return EquivarianceRegularizer(copy.deepcopy(network), pair_fraction=0.5 if arm == "pairs" else 0.25)
    return EquivarianceRegularizer(network, penalty=arm, pair_fraction=0.5)  # type: ignore[arg-type]


def build_denoiser(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.set_rng_state(torch_generator(seed, Stream.INITIAL_WEIGHTS).get_state())
        return build_network("dncnn", in_channels=1, out_channels=1, width=32, depth=8, norm="none")


def train(run: Run, images: np.ndarray) -> tuple[nn.Module, Record]:
    """(trained network, figures of the last step); ends early when the loss is no longer finite."""
    half = run.precision == "bfloat16"
    network = build_denoiser(run.seed).train()
    if half:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    regularizer = build_regularizer(run.arm, network)
    optimizer = torch.optim.Adam(network.parameters(), lr=LARGEST_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LARGEST_RATE, total_steps=run.steps)
    figures: Record = {"diverged": False}
    for step in range(run.steps):
        inputs, targets = training_batch(images, run.seed, step, run.batch, turned=run.arm != "none")
        if regularizer is not None:
            pairs = regularizer.pair(inputs, targets, generator=torch_generator(run.seed, Stream.TURN, step))
            inputs, targets = pairs.inputs, pairs.targets
        if half:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = network(inputs)
        loss = task_loss = TASK_SCALE * F.mse_loss(outputs.float(), targets)
        if regularizer is not None and run.arm in CANDIDATES:
            penalty = regularizer.penalty()
            loss = task_loss + run.weight * penalty
            figures["last_penalty"] = penalty.item()
        figures["last_task_loss"] = task_loss.item()
        if not math.isfinite(loss.item()):
            figures = {"diverged": True, "diverged_at_step": step}
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if regularizer is not None:
        regularizer.detach()
    return network.eval(), figures


@torch.inference_mode()
def image_psnr(network: nn.Module, noisy: Tensor, clean: Tensor) -> np.ndarray:
    """PSNR of each restored image in dB, as saved in 8 bits; what is not a number counts as black."""
    restored = torch.cat([network(images) for images in noisy.split(1)]).nan_to_num()  # one by one is fastest
    return psnr(as_saved(restored), clean).numpy()


def test_figures(network: nn.Module, split: Split) -> Record:
    """PSNR of every test image on each test set, and the equivariance error."""
    noisy, clean = evaluation_pairs(split, split.test, SIGMA)
    turned = [image_psnr(network, rotate(noisy, turns), rotate(clean, turns)) for turns in (1, 2, 3)]
    psnr_of = {
        "test": image_psnr(network, noisy, clean),
        "turned": np.mean(turned, axis=0),
        "sigma15": image_psnr(network, *evaluation_pairs(split, split.test, 15)),
        "sigma35": image_psnr(network, *evaluation_pairs(split, split.test, 35)),
    }
    errors = equivariance_error(network, noisy[:8])
    hidden = list(errors.values())[:-2]  # without the last convolution and the output
    return {
        "psnr": {name: [round(float(value), 5) for value in values] for name, values in psnr_of.items()},
        "output_error": finite_or_none(errors["output"]),
        "hidden_error": finite_or_none(float(np.mean(hidden))),
    }


def finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def carry_out(run: Run, folder: Path) -> Record:
    """Train and measure: the record of a run."""
    split = read_split(folder)
    start = time.perf_counter()
    network, figures = train(run, split.training_images(run.regime))
    trained = time.perf_counter()
    figures["validation"] = float(image_psnr(network, *evaluation_pairs(split, split.validation, SIGMA)).mean())
    if run.phase == "compare":
        figures |= test_figures(network, split)
    seconds = {"train_seconds": trained - start, "evaluation_seconds": time.perf_counter() - trained}
    return asdict(run) | figures | {name: round(value, 2) for name, value in seconds.items()}


def prepare_worker() -> None:
    """One thread; and end when the parent is gone, however it went."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


# ---- finished runs


class Records:
    """OUT/runs.jsonl: a finished run a line; only this process writes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        if not lock_descriptor(self._file.fileno(), blocking=False):
            raise ValueError(f"{path}: another process is writing it; wait for it, or give another --out")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)  # a line cut short by a kill
        self.finished = {run_of(record): record for record in parse_records(content)}

    def add(self, record: Record) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self.finished[run_of(record)] = record


def parse_records(content: bytes) -> list[Record]:
    """The whole lines; what follows the last line end was cut short."""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def run_of(record: Record) -> Run:
    return Run(**{field.name: record[field.name] for field in fields(Run)})


def chosen_weight(arm: str, runs: Iterable[Record]) -> float | None:
    """The weight with the best validation PSNR among an arm's selection runs, or None before all have finished."""
    if arm not in CANDIDATES:
        return 0.0
    validation = {record["weight"]: record["validation"] for record in runs if record["arm"] == arm}
    if not set(CANDIDATES[arm]) <= set(validation):
        return None
    return max(CANDIDATES[arm], key=lambda weight: validation[weight])


# ---- the study


@dataclass(frozen=True)
class Settings:
    """What all runs of a study have in common."""

    steps: int
    batch: int
    precision: str

    def records(self, finished: Iterable[Record], phase: str, regime: str) -> list[Record]:
        wanted = (phase, regime, *astuple(self))
        keys = ("phase", "regime", "steps", "batch", "precision")
        return [record for record in finished if tuple(record[key] for key in keys) == wanted]

    def run(self, phase: str, regime: str, arm: str, weight: float, seed: int) -> Run:
        return Run(phase, regime, arm, weight, seed, self.steps, self.batch, self.precision)


def planned_runs(
    phase: str, regime: str, arms: Sequence[str], seeds: int, settings: Settings, finished: Iterable[Record]
) -> list[Run]:
    """The runs of a phase in the order of work: one trial of every arm, then the next of every arm."""
    penalties = [arm for arm in arms if arm in CANDIDATES]
    if phase == "select":
        trials = [(arm, CANDIDATES[arm][trial]) for trial in range(len(USUAL_WEIGHTS)) for arm in penalties]
        return [settings.run(phase, regime, arm, weight, SELECTION_SEED) for arm, weight in trials]
    selection = settings.records(finished, "select", regime)
    weights = {arm: chosen_weight(arm, selection) for arm in arms}
    for arm in (arm for arm in arms if weights[arm] is None):
        print(f"regime {regime} {arm}: not compared, its selection is not finished", flush=True)
    return [
        settings.run(phase, regime, arm, weight, seed)
        for seed in range(1, seeds + 1)
        for arm, weight in weights.items()
        if weight is not None
    ]


def carry_out_all(executor: ProcessPoolExecutor, runs: Sequence[Run], folder: Path, records: Records) -> int:
    """Carries out what is not finished; gives how many runs failed."""
    waiting = [run for run in runs if run not in records.finished]
    print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished, {len(waiting)} to do", flush=True)
    futures = {executor.submit(carry_out, run, folder): run for run in waiting}
    num_failed = 0
    for number, future in enumerate(as_completed(futures), start=1):
        try:
            record = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # the others go on; the run is tried again at the next start
            num_failed += 1
            print(f"{futures[future]}: failed, {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        records.add(record)
        test = f", test {np.mean(record['psnr']['test']):.3f} dB" if "psnr" in record else ""
        print(
            f"[{number}/{len(waiting)}] {futures[future]}: validation {record['validation']:.3f} dB{test}"
            f"{', DIVERGED' if record['diverged'] else ''}; {record['train_seconds']:.0f} s training, "
            f"{record['evaluation_seconds']:.0f} s evaluation",
            flush=True,
        )
    return num_failed


def check_arms(arms: Sequence[str]) -> None:
    """Refuse an arm that cannot be built before any work."""
    for arm in arms:
        try:
            build_regularizer(arm, build_denoiser(0))
        except ValueError as error:
            raise ValueError(f"--arms: {arm} cannot be built ({error}); leave it out") from error


def check_split(split: Split, path: Path) -> None:
    """Keep the split beside the runs; refuse to mix runs of two data sets."""
    described = split.described()
    if not path.exists():
        path.write_text(json.dumps(described, indent=1) + "\n")
    elif json.loads(path.read_text()) != described:
        raise ValueError(f"{path}: the runs there are of other images; give another --out")


# ---- the tables


def seed_records(runs: Iterable[Record], arm: str, weight: float | None) -> dict[int, Record]:
    """The compare runs of an arm with a weight, by seed."""
    return {r["seed"]: r for r in runs if r["arm"] == arm and r["weight"] == weight}


def difference(arm: dict[int, Record], reference: dict[int, Record], test_set: str) -> Record | None:
    """Paired per-image differences in dB over the seeds both have; all seeds of an image are one cluster."""
    seeds = sorted(set(arm) & set(reference))
    if not seeds:
        return None
    differences = np.array([arm[s]["psnr"][test_set] for s in seeds]) - [reference[s]["psnr"][test_set] for s in seeds]
    clusters = np.tile(np.arange(differences.shape[1]), len(seeds))
    interval = clustered_interval(differences.ravel(), clusters)  # (seeds, N) -> (seeds * N,)
    deviation = float(differences.mean(axis=1).std(ddof=1)) if len(seeds) > 1 else None
    return {**asdict(interval), "seed_deviation": deviation, "seeds": seeds}


def regime_rows(regime: str, seeds: int, settings: Settings, finished: Sequence[Record]) -> tuple[list[Record], str]:
    """(a record for each arm, what is missing in words)."""
    selection, compared = (settings.records(finished, phase, regime) for phase in ("select", "compare"))
    weights = {arm: chosen_weight(arm, selection) for arm in ARMS}
    runs = {arm: seed_records(compared, arm, weights[arm]) for arm in ARMS}
    rows, missing = [], []
    for arm in ARMS:
        row: Record = {"regime": regime, "arm": arm, **asdict(settings), "weight": weights[arm]}
        row["validation_by_weight"] = {
            weight: record["validation"]
            for weight in CANDIDATES.get(arm, ())
            for record in selection
            if (record["arm"], record["weight"]) == (arm, weight)
        }
        row["seeds"] = sorted(runs[arm])
        row["diverged"] = [seed for seed in row["seeds"] if runs[arm][seed]["diverged"]]
        if runs[arm]:
            of_seeds = list(runs[arm].values())
            row["validation"] = float(np.mean([record["validation"] for record in of_seeds]))
            row["psnr"] = {name: float(np.mean([record["psnr"][name] for record in of_seeds])) for name in TEST_SETS}
            for error in ("output_error", "hidden_error"):
                values = [record[error] for record in of_seeds if record[error] is not None]
                row[error] = float(np.mean(values)) if values else None
        for reference in REFERENCES:
            if arm != reference:
                row[f"minus_{reference}"] = {name: difference(runs[arm], runs[reference], name) for name in TEST_SETS}
        rows.append(row)
        absent = [f"{w:g}" for w in CANDIDATES.get(arm, ()) if w not in row["validation_by_weight"]]
        if absent:
            missing.append(f"{arm}: selection of weight {', '.join(absent)}")
        unseen = [str(seed) for seed in range(1, seeds + 1) if seed not in runs[arm]]
        if unseen:
            missing.append(f"{arm}: seed {', '.join(unseen)}")
    return rows, "; ".join(missing) or "nothing"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def markdown_difference(figures: Record | None) -> str:
    if figures is None:
        return "-"
    interval = "" if figures["low"] is None else f" [{figures['low']:+.3f}, {figures['high']:+.3f}]"
    deviation = "" if figures["seed_deviation"] is None else f" ({figures['seed_deviation']:.3f})"
    return f"{figures['mean']:+.3f}{interval}{deviation}"


def regime_markdown(regime: str, rows: Sequence[Record], missing: str) -> str:
    """The tables of a regime."""
    selected, means = [], []
    for row in rows:
        by_weight = row["validation_by_weight"]
        if row["arm"] in CANDIDATES:
            candidates = CANDIDATES[row["arm"]]
            cells = [f"{w:g}: {by_weight[w]:.3f}" if w in by_weight else f"{w:g}: -" for w in candidates]
            edge = " (at the edge)" if row["weight"] in (candidates[0], candidates[-1]) else ""
            selected.append([row["arm"], *cells, "-" if row["weight"] is None else f"{row['weight']:g}{edge}"])
        if row["seeds"]:
            errors = ["-" if row[name] is None else f"{row[name]:.4f}" for name in ("output_error", "hidden_error")]
            cells = [f"{value:.3f}" for value in (row["validation"], *row["psnr"].values())]
            diverged = f" ({len(row['diverged'])} diverged)" if row["diverged"] else ""
            weight = f"{row['weight']:g}"
            means.append([row["arm"], weight, f"{len(row['seeds'])}{diverged}", *cells, *errors])
    sets = list(TEST_SETS.values())
    parts = [f"## Training images: {regime}\n", f"Missing: {missing}.\n"]
    parts.append(f"Validation PSNR (dB) by weight, one run each, seed {SELECTION_SEED}:\n")
    parts.append(markdown_table(["arm", "", "", "", "", "chosen"], selected))
    parts.append("Means over images and runs, PSNR in dB; equivariance error relative:\n")
    head = ["arm", "weight", "runs", "validation", *sets, "output error", "hidden error"]
    parts.append(markdown_table(head, means))
    for reference in REFERENCES:
        lines = [
            [row["arm"], str(len(found["test"]["seeds"])), *(markdown_difference(found[name]) for name in TEST_SETS)]
            for row in rows
            if (found := row.get(f"minus_{reference}")) and found["test"]
        ]
        parts.append(f"Difference to `{reference}` in dB, mean [95 % interval] (deviation over seeds):\n")
        parts.append(markdown_table(["arm", "paired seeds", *sets], lines))
    return "\n".join(parts)


def write_tables(out: Path, regimes: Sequence[str], seeds: int, settings: Settings) -> None:
    """OUT/tables.md and OUT/tables.jsonl from the runs finished so far."""
    path = out / "runs.jsonl"
    finished = parse_records(path.read_bytes()) if path.exists() else []
    own = [record for record in finished if all(record[name] == value for name, value in asdict(settings).items())]
    text = (
        f"# Does it help?\n\nGrey denoising, sigma {SIGMA}, {settings.steps} steps of {settings.batch} images, "
        f"{settings.precision}; {len(own)} runs"
        f"{f', and {len(finished) - len(own)} of other settings left out' if len(own) < len(finished) else ''}.\n\n"
        "Intervals: paired bootstrap over test images, all seeds of an image together. They hold for these seeds; the "
        "deviation over seeds says how much another seed changes the mean difference. Weights were chosen on "
        "validation images; no test figure decided anything.\n"
    )
    lines = []
    for regime in regimes:
        rows, missing = regime_rows(regime, seeds, settings, own)
        text += "\n" + regime_markdown(regime, rows, missing)
        lines += [json.dumps(row) + "\n" for row in rows]
        lines.append(json.dumps({"regime": regime, "missing": missing}) + "\n")
    for name, content in (("tables.md", text), ("tables.jsonl", "".join(lines))):
        temporary = out / f".{name}.partial"
        temporary.write_text(content)
        temporary.replace(out / name)
    print(f"tables of {len(own)} runs written", flush=True)


# ---- the start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of grey images of one size (not needed for tables)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--phase", choices=("select", "compare", "tables", "all"), default="all")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--seeds", type=int, default=5, help="compared seeds: 1 to this")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--processes", type=int, default=2, help="worker processes, one thread each")
    arguments = parser.parse_args()
    if arguments.phase != "tables" and arguments.data is None:
        parser.error("--data: needed for runs")
    settings = Settings(arguments.steps, arguments.batch_size, arguments.precision)
    try:
        return study(arguments, settings)
    except ValueError as error:
        parser.error(str(error))


def study(arguments: argparse.Namespace, settings: Settings) -> int:
    """Everything asked for; the exit status."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    num_failed = 0
    if arguments.phase != "tables":
        phases = ("select", "compare") if arguments.phase == "all" else (arguments.phase,)
        check_arms(arguments.arms)
        records = Records(arguments.out / "runs.jsonl")
        folder = arguments.data.resolve()
        check_split(read_split(folder), arguments.out / "split.json")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=prepare_worker) as executor:
            for regime in (regime for regime in REGIMES if regime in arguments.regimes):
                for phase in phases:
                    finished = records.finished.values()
                    runs = planned_runs(phase, regime, arguments.arms, arguments.seeds, settings, finished)
                    num_failed += carry_out_all(executor, runs, folder, records)
                write_tables(arguments.out, REGIMES, arguments.seeds, settings)
    else:
        write_tables(arguments.out, arguments.regimes, arguments.seeds, settings)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
