"""What the regulariser costs on one GPU, and whether everything runs there and agrees with the CPU.

    python benchmarks/gpu.py --images DIR --out gpu.jsonl [--minutes 6] [--device cuda] [--toy]

For a machine lent for a few minutes: needs torch, numpy, pillow, scipy, scikit-image and a checkout, and none of
the project's other dependencies. DIR holds images; those smaller than a patch (128 pixels) are left out.

One JSON line a figure, written as soon as it is known. A figure that is in the file already (same name, sizes, device
and torch) is not measured again, so the same command goes on where it was stopped; one that failed is tried again.
Name another file for other code. What does not fit into the minutes is skipped, and named in a last line. The order:

1. ``"figure": "check"``: the same in float32, without TF32, on the CPU and on the device: forward and gradients, every
   penalty with its gradient, the cap, tiles, and exported programs moved to the device. ``difference`` is the largest
   norm of a difference relative to the norm of the tensor (of one parameter's gradient: to 1e-3 of the whole
   gradient's if that is more), ``where`` names the tensor, ``ok`` says whether it is at most 1e-4. What raises an error
   has ``ok: false`` and, as ``error``, the last line of the traceback.
2. ``"figure": "step"``: a training step (pairs, forward, loss, penalty, backward, AdamW), with params.yaml's default
   and with all layers (k = B/4), each beside a plain run of its own: ``ms``, ``plain_ms``, ``ratio`` are medians over
   rounds in which the two take some steps in turn, with quartiles; ``memory`` is the most bytes allocated at once for
   weights, optimiser, batch and step. Float32 is as torch has it by default, with TF32 in convolutions if ``tf32``.
   The published networks are measured with their published settings and a batch of 8.
   Compiled runs are measured one after the other (``interleaved: false``), since networks of one class share compiled
   code. ``loss`` and ``penalty`` are of the third step, to compare settings by.
3. ``"figure": "profile"``: the operations with the most time of their own on the device, in a step. They are measured
   before the compiled steps, which take longest.

``--toy --device cpu`` measures small networks in seconds, for the test; its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()  # importing torch counts
NEEDED = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "scipy": "scipy", "skimage": "scikit-image"}


def refuse_without_modules() -> None:
    """Says what is needed, and ends here if some of it is missing."""
    print(f"needs {', '.join(NEEDED.values())}", flush=True)
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")


if __name__ == "__main__":  # before the imports that would fail
    sys.path.insert(0, str(Path(__file__).parents[1]))
    refuse_without_modules()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.export.passes import move_to_device_pass  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from components.data.readers.images import image_size, is_image_name, read_image, to_float  # noqa: E402
from components.equivariance import EquivarianceRegularizer  # noqa: E402
from components.equivariance.autograd.fused import is_available  # noqa: E402
from components.inference.tiles import restore  # noqa: E402
from components.networks import NETWORKS, build_network, network_class, takes_named_inputs  # noqa: E402

WEIGHT = 0.01
TOLERANCE = 1e-4
DEFAULT: dict[str, Any] = {  # of params.yaml, which needs other packages to be read; a test compares the two
    "penalty": "regular",
    "group": "C4",
    "layers": "auto",
    "layer_weights": {"profile": "geometric", "decay": 0.9},
    "sample_layers": 0.2,
    "sample_fields": None,
    "max_gradient_ratio": 0.3,
    "normalise": "relative",
    "scale_gradient": False,
    "pairing": "replace",
    "pair_fraction": 0.25,
}
CASES: dict[str, dict[str, Any] | None] = {"plain": None, "default": DEFAULT, "all layers": {"pair_fraction": 0.25}}
CHECKED: dict[str, tuple[dict[str, Any], float]] = {  # name -> options and weight of the penalty
    **{
        penalty: ({"penalty": penalty}, 1.0)
        for penalty in ("regular", "rotation", "channel", "rotation+channel", "paper")
    },
    "projection": ({"penalty": "projection", "pairing": "none"}, 1.0),
    "cap": ({"max_gradient_ratio": 0.3, "measure_gradients": True}, 1000.0),
    "default": (DEFAULT, 1.0),
}
PRECISIONS = {"bf16": torch.bfloat16, "float32": None}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
SETTINGS = (  # (precision, layout), the most telling first
    ("bf16", "channels_last"),
    ("float32", "contiguous"),
    ("float32", "channels_last"),
    ("bf16", "contiguous"),
)


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        networks: name -> settings, of the steps.
        batch, patch: images a step, and their side.
        published: networks whose steps are measured in the first of the settings alone.
        published_batch: images of one of their steps.
        checked: settings beside the network's name, of the checks, whose batch is 8 and whose patch is `checked_patch`.
        small: the same of published networks, which are checked with the default penalty alone.
        rounds, steps: of a measured step; steps are those of a round that are timed.
        eager: (precision, layout) of the steps.
        compiled: (network, precision, layout) of the compiled steps.
        backend: of torch.compile.
        seconds: what a figure is expected to take before the first of its kind is known.
    """

    networks: dict[str, dict[str, Any]]
    batch: int
    patch: int
    published: dict[str, dict[str, Any]]
    published_batch: int
    checked: dict[str, dict[str, Any]]
    small: dict[str, dict[str, Any]]
    checked_patch: int
    rounds: int
    steps: int
    eager: Sequence[tuple[str, str]]
    compiled: Sequence[tuple[str, str, str]]
    backend: str
    seconds: dict[str, float]


SMALL: dict[str, dict[str, Any]] = {
    "prenet": {"width": 8, "stages": 2},
    "nafnet": {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "restormer": {"width": 8, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "heads": (1, 2, 2, 2)},
    "swinir": {"width": 8, "groups": 1, "depth": 2, "heads": 2, "window": 4},
}
"""Small settings of the published networks that are measured."""

FULL = Sizes(
    {
        "dncnn": {"width": 64, "depth": 17, "norm": "none"},
        "unet": {"width": 64, "depth": 5, "norm": "batch"},
    },
    batch=32,
    patch=128,
    published={name: {} for name in SMALL},
    published_batch=8,
    checked={"dncnn": {"width": 32, "depth": 8, "norm": "none"}, "unet": {"width": 16, "depth": 3, "norm": "batch"}},
    small=SMALL,
    checked_patch=48,
    rounds=9,
    steps=5,
    eager=SETTINGS,
    compiled=[
        *((network, *SETTINGS[0]) for network in ("dncnn", "unet", *SMALL)),
        *((network, *setting) for setting in SETTINGS[1:] for network in ("dncnn", "unet")),
    ],
    backend="inductor",
    seconds={"check": 5, "step": 10, "profile": 10, "compiled step": 60},
)
TOY = Sizes(
    {"dncnn": {"width": 8, "depth": 3, "norm": "none"}, "unet": {"width": 8, "depth": 2, "norm": "batch"}},
    batch=4,
    patch=16,
    published={"prenet": SMALL["prenet"]},
    published_batch=4,
    checked={"dncnn": {"width": 8, "depth": 3, "norm": "none"}, "unet": {"width": 8, "depth": 2, "norm": "batch"}},
    small={"prenet": SMALL["prenet"]},
    checked_patch=16,
    rounds=3,
    steps=1,
    eager=SETTINGS[:2],
    compiled=[("dncnn", *SETTINGS[0]), ("prenet", *SETTINGS[0])],
    backend="eager",
    seconds={},
)


class Results:
    """The figures of a file, by key; a last line that was cut short is dropped."""

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self._path, self._common, self._lock = path, common, threading.Lock()
        self._keys: set[str] = set()
        whole = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            whole.append(line)
            if "key" in row and "error" not in row:
                self._keys.add(row["key"])
        if whole:
            path.write_text("\n".join(whole) + "\n")

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, row: dict[str, Any]) -> None:
        """Writes a line at once."""
        line = json.dumps(row | self._common)
        with self._lock, self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        if "key" in row:
            self._keys.add(row["key"])
        print(line, flush=True)


@dataclass(frozen=True)
class Figure:
    """Something to measure: its kind (for how long it may take), what names it, and how."""

    kind: str
    name: dict[str, Any]
    measure: Callable[[], dict[str, Any]]


class Clock:
    """The time that is left, and what figures of a kind have taken."""

    def __init__(self, minutes: float, expected: dict[str, float]) -> None:
        self._end = BEGAN + 60 * minutes
        self._expected = dict(expected)

    @property
    def left(self) -> float:
        """In seconds."""
        return self._end - time.monotonic()

    def has_time_for(self, kind: str) -> bool:
        """Whether a figure of a kind fits, if it takes as long as the longest so far."""
        return self.left > self._expected.get(kind, 0.0)

    def note(self, kind: str, seconds: float, is_first: bool) -> None:
        """Learns from one that was measured."""
        self._expected[kind] = seconds if is_first else max(seconds, self._expected.get(kind, 0.0))


# --------------------------------------------------------------------------------------------------------------- images


def patches(images: Sequence[np.ndarray], count: int, side: int, seed: int) -> Tensor:
    """Random crops ``(count, 3, side, side)`` in [0, 1]."""
    generator, crops = np.random.default_rng(seed), []
    for _ in range(count):
        image = images[generator.integers(len(images))]
        top, left = (int(generator.integers(size - side + 1)) for size in image.shape[1:])
        crops.append(image[:, top : top + side, left : left + side])
    return torch.from_numpy(np.stack(crops))


def read_images(folder: Path, side: int, most: int = 24) -> list[np.ndarray]:
    """Images ``(3, H, W)`` in [0, 1], no side below `side`.

    Raises:
        SystemExit: there is none.
    """
    found: list[np.ndarray] = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file() and is_image_name(file)):
        try:
            if min(image_size(path)) >= side:
                found.append(to_float(read_image(path)))
        except ValueError as error:
            print(f"left out: {path}: {error}", flush=True)
        if len(found) == most:
            break
    if not found:
        sys.exit(f"{folder}: no image of at least {side} x {side} pixels there (png, jpg, bmp, tif, webp)")
    return found


def noisy(clean: Tensor) -> Tensor:
    """With noise of standard deviation 0.1."""
    return clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


def random_network(name: str, **settings: Any) -> nn.Module:
    """The same at every call; not the identity that a new one is, so gradients reach every layer."""
    torch.manual_seed(0)
    if name not in SMALL:
        settings = {"norm": "none", **settings}
    network = build_network(name, **settings)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


# --------------------------------------------------------------------------------------------------------------- checks

Tensors = dict[str, Tensor]


def difference(expected: Tensors, found: Tensors) -> tuple[float, str]:
    """The largest relative difference, and where.

    Norms are relative to the expected tensor's, or to 1e-3 of that of all tensors that share its name up to a slash, if
    that is more: a gradient that is zero but for rounding is as good as zero.
    """
    assert expected.keys() == found.keys()
    groups: dict[str, float] = {}
    for name, tensor in expected.items():
        group = name.split("/")[0]
        groups[group] = groups.get(group, 0.0) + float(tensor.double().square().sum())
    differences = {}
    for name, tensor in expected.items():
        scale = max(float(tensor.double().norm()), 1e-3 * groups[name.split("/")[0]] ** 0.5, 1e-30)
        differences[name] = float((found[name].detach().cpu().double() - tensor.double()).norm()) / scale
    worst = max(differences, key=lambda name: (not np.isfinite(differences[name]), differences[name]))
    return differences[worst], worst


def check(reference: Callable[[], Tensors], on_device: Callable[[], Tensors]) -> Callable[[], dict[str, Any]]:
    """Measures the difference, in full float32."""

    def measure() -> dict[str, Any]:
        allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            expected = {name: tensor.detach().cpu() for name, tensor in reference().items()}
            found, where = difference(expected, on_device())
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
        return {"difference": found, "where": where, "ok": found <= TOLERANCE}

    return measure


def forward_backward(name: str, settings: dict[str, Any], clean: Tensor, device: str) -> Tensors:
    """Output and gradients of a plain step."""
    network = random_network(name, **settings).to(device)
    output = network(noisy(clean).to(device))
    F.mse_loss(output, clean.to(device)).backward()
    return {"output": output, **gradients(network, "gradient")}


def penalised(
    name: str, settings: dict[str, Any], options: dict[str, Any], weight: float, clean: Tensor, device: str
) -> Tensors:
    """Penalties and gradients of the first step, which is traced, and of the second, of the same weights."""
    network = random_network(name, **settings).to(device)
    regularizer = EquivarianceRegularizer(network, **options)
    generator, found = torch.Generator().manual_seed(2), {}
    for step in ("first", "second"):
        network.zero_grad()
        batch = regularizer.pair(noisy(clean).to(device), clean.to(device), generator=generator)
        loss = F.mse_loss(network(batch.inputs), batch.targets)
        penalty = regularizer.penalty()
        (loss + weight * penalty).backward()
        found[f"penalty of the {step} step"] = penalty
        layers = regularizer.layer_penalties()
        found[f"layers of the {step} step"] = torch.tensor(list(layers.values()), dtype=torch.float64)
        found |= gradients(network, f"gradient of the {step} step")
        if norms := regularizer.gradient_norms():
            found[f"norms of the {step} step"] = torch.stack((norms.arriving, norms.own))
    return found


def gradients(network: nn.Module, name: str) -> Tensors:
    """``NAME/PARAMETER`` -> its gradient, a copy."""
    return {
        f"{name}/{parameter}": value.grad.clone()
        for parameter, value in network.named_parameters()
        if value.grad is not None
    }


def tiled(name: str, settings: dict[str, Any], image: Tensor, self_ensemble: int, device: str) -> Tensors:
    """An image restored in tiles."""
    network = random_network(name, **settings).eval().to(device)
    return {"image": restore(network, image.to(device), tile=32, overlap=16, self_ensemble=self_ensemble)}


def evaluated(network: nn.Module, images: Tensor) -> Tensors:
    """The output."""
    with torch.inference_mode():
        return {"output": network(images)}


def exported(network: nn.Module, images: Tensor, device: str) -> Tensors:
    """The output of the exported network, moved to the device as a registered model is."""
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    program = torch.export.export(network, (torch.rand(2, 3, 64, 48),), dynamic_shapes=[dynamic])
    moved = move_to_device_pass(program, device).module()
    return evaluated(moved, images.to(device))


def checks(images: Sequence[np.ndarray], sizes: Sizes, device: str) -> Iterator[Figure]:
    """Everything that has to agree with the CPU."""
    clean = patches(images, 8, sizes.checked_patch, 0)
    image = torch.from_numpy(images[0][:, :90, :71].copy())

    def figure(name: str, network: str, reference: Callable[[], Tensors], found: Callable[[], Tensors]) -> Figure:
        return Figure("check", {"figure": "check", "check": name, "network": network}, check(reference, found))

    def both(name: str, network: str, result: Callable[[str], Tensors]) -> Figure:
        return figure(name, network, lambda: result("cpu"), lambda: result(device))

    small = sizes.checked | sizes.small
    for name, settings in small.items():
        yield both(
            "forward and backward", name, lambda on, name=name, settings=settings: forward_backward(
                name, settings, clean, on
            )
        )  # fmt: skip
    for label, (options, weight) in CHECKED.items():
        for name, settings in (small if label == "default" else sizes.checked).items():
            yield both(
                label if label in ("cap", "default") else f"penalty {label}",
                name,
                lambda on, given=(name, settings, options, weight): penalised(*given, clean, on),
            )
    for self_ensemble in (1, 4):
        label = "tiles, self-ensemble" if self_ensemble > 1 else "tiles"
        for name, settings in sizes.checked.items():
            yield both(label, name, lambda on, given=(name, settings, image, self_ensemble): tiled(*given, on))
    odd = clean[:3, :, :-3, :-8]
    for name in (name for name in NETWORKS if name in small or not takes_named_inputs(network_class(name))):
        network = random_network(name, **small.get(name, {"width": 8, "depth": 2})).eval()
        yield figure(
            "exported and moved",
            name,
            lambda network=network: evaluated(network, odd),
            lambda network=network: exported(network, odd, device),
        )


# ---------------------------------------------------------------------------------------------------------------- steps


class Run:
    """One case on one network: ``step()`` trains a step, as training does."""

    def __init__(
        self, network: str, case: str, precision: str, layout: str, is_compiled: bool, clean: Tensor,
        sizes: Sizes, device: str,
    ) -> None:  # fmt: skip
        memory_format = LAYOUTS[layout]
        self._network = random_network(network, **(sizes.networks | sizes.published)[network]).to(device)
        self._network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self._network.train()
        self._called = torch.compile(self._network, backend=sizes.backend) if is_compiled else self._network
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=1e-4)
        self._degraded, self._clean = (
            images.to(device).contiguous(memory_format=memory_format) for images in (noisy(clean), clean)
        )
        self._generator = torch.Generator().manual_seed(2)
        self._dtype, self._device = PRECISIONS[precision], device
        options = CASES[case]
        self._regularizer = None if options is None else EquivarianceRegularizer(self._network, **options)
        self.loss, self.penalty = torch.zeros(()), torch.zeros(())

    def step(self) -> None:
        """Pairs, forward, loss, penalty, backward, AdamW."""
        inputs, targets = self._degraded, self._clean
        if self._regularizer:
            batch = self._regularizer.pair(inputs, targets, generator=self._generator)
            inputs, targets = batch.inputs, batch.targets
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, self._dtype) if self._dtype else nullcontext():
            output = self._called(inputs)
        total = loss = F.mse_loss(output.float(), targets)
        if self._regularizer:
            penalty = self._regularizer.penalty()
            total = loss + WEIGHT * penalty
            self.penalty = penalty.detach()
        total.backward()
        self._optimizer.step()
        self.loss = loss.detach()


def synchronize(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(step: Callable[[], None], steps: int, device: str) -> float:
    """Of a step: the mean over some in a row, on the device's own clock."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / steps
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return 1e3 * (time.perf_counter() - began) / steps


@dataclass(frozen=True)
class Start:
    """What the first steps of a run gave: the third one's loss and penalty, and the peak of memory in bytes."""

    loss: float
    penalty: float
    memory: int


def warmed_up(make: Callable[[], Run], device: str) -> tuple[Run, Start]:
    """A run after its first steps; its memory is not known on the CPU, and 0."""
    held = torch.cuda.memory_allocated() if device == "cuda" else 0
    run = make()
    for _ in range(3):  # the first is traced, and the second compiled
        run.step()
    loss, penalty = float(run.loss), float(run.penalty)
    if device != "cuda":
        return run, Start(loss, penalty, 0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        run.step()
    torch.cuda.synchronize()
    return run, Start(loss, penalty, torch.cuda.max_memory_allocated() - held)


def measure_step(
    make: Callable[[str], Run], case: str, is_compiled: bool, sizes: Sizes, device: str, clock: Clock
) -> dict[str, Any]:
    """Time and memory of a case beside a plain run."""
    times: dict[str, list[float]] = {"plain": [], case: []}
    starts: dict[str, Start] = {}
    if is_compiled:
        for name in times:
            torch.compiler.reset()
            run, starts[name] = warmed_up(lambda name=name: make(name), device)
            times[name] = [milliseconds(run.step, sizes.steps, device) for _ in range(sizes.rounds)]
            del run
    else:
        runs = {}
        for name in times:
            runs[name], starts[name] = warmed_up(lambda name=name: make(name), device)
        for number in range(sizes.rounds):
            if number >= 3 and clock.left < 2:
                break
            for name in reversed(times) if number % 2 else times:
                runs[name].step()  # not timed: caches are still those of the other
                synchronize(device)
                times[name].append(milliseconds(runs[name].step, sizes.steps, device))
    own, plain = starts[case], starts["plain"]
    ratios = [of_case / of_plain for of_plain, of_case in zip(times["plain"], times[case], strict=True)]
    return {
        **quartiles("ms", times[case]),
        **quartiles("plain_ms", times["plain"]),
        **quartiles("ratio", ratios),
        "memory": own.memory,
        "plain_memory": plain.memory,
        "memory_ratio": round(own.memory / plain.memory, 4) if plain.memory else None,
        "rounds": len(ratios),
        "steps": sizes.steps,
        "interleaved": not is_compiled,
        "loss": own.loss,
        "plain_loss": plain.loss,
        "penalty": own.penalty,
        "tf32": bool(torch.backends.cudnn.allow_tf32),
    }


def quartiles(name: str, values: Sequence[float]) -> dict[str, Any]:
    """The median and the quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {name: round(median, 4), f"{name}_quartiles": [round(low, 4), round(high, 4)]}


def measure_profile(
    make: Callable[[str], Run], case: str, device: str, rows: int = 20, steps: int = 3
) -> dict[str, Any]:
    """The operations with the most time of their own, in a step."""
    run = make(case)
    for _ in range(3):
        run.step()
    synchronize(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            run.step()
        synchronize(device)
    own = {
        event.key: (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    }
    total = sum(microseconds for microseconds, _ in own.values()) or 1.0
    top = sorted(own.items(), key=lambda item: -item[1][0])[:rows]
    return {
        "step_ms": round(total / steps / 1e3, 4),
        "rows": [
            {
                "operation": name,
                "ms": round(microseconds / steps / 1e3, 4),
                "share": round(microseconds / total, 4),
                "calls": count / steps,
            }
            for name, (microseconds, count) in top
        ],
    }


def steps(images: Sequence[np.ndarray], sizes: Sizes, device: str, clock: Clock) -> Iterator[Figure]:
    """Steps, profiles, compiled steps."""
    clean = patches(images, sizes.batch, sizes.patch, 0)

    def maker(network: str, precision: str, layout: str, is_compiled: bool) -> Callable[[str], Run]:
        batch = clean[: sizes.published_batch] if network in sizes.published else clean
        return lambda case: Run(network, case, precision, layout, is_compiled, batch, sizes, device)

    def figure(network: str, case: str, precision: str, layout: str, is_compiled: bool) -> Figure:
        make = maker(network, precision, layout, is_compiled)
        name = {"figure": "step", "network": network, "case": case, "precision": precision, "layout": layout}
        kind, mode = ("compiled step", f"compile ({sizes.backend})") if is_compiled else ("step", "eager")
        return Figure(kind, name | {"mode": mode}, lambda: measure_step(make, case, is_compiled, sizes, device, clock))

    for precision, layout in sizes.eager:
        for network in (*sizes.networks, *(sizes.published if (precision, layout) == SETTINGS[0] else ())):
            for case in ("default", "all layers"):
                yield figure(network, case, precision, layout, False)
    precision, layout = SETTINGS[0]
    for network in sizes.networks:
        for case in CASES:
            make = maker(network, precision, layout, False)
            name = {"figure": "profile", "network": network, "case": case, "precision": precision, "layout": layout}
            yield Figure("profile", name, lambda make=make, case=case: measure_profile(make, case, device))
    for network, precision, layout in sizes.compiled:
        for case in ("default", "all layers"):
            yield figure(network, case, precision, layout, True)


# ---------------------------------------------------------------------------------------------------------- the whole


def last_line(error: Exception) -> str:
    """What a traceback would end with."""
    said = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[-1].strip()[:300]}" if said else type(error).__name__


def measure_all(figures: Sequence[Figure], results: Results, clock: Clock, suffix: str, device: str) -> None:
    """Measures what is not known and fits; then says what did not."""
    pending = {f"{' | '.join(map(str, figure.name.values()))} | {suffix}": figure for figure in figures}
    pending = {key: figure for key, figure in pending.items() if key not in results}

    def give_up() -> None:
        """Ends the process in the midst of a figure that takes longer than there is time."""
        results.add(
            {"figure": "skipped", "keys": list(pending), "reason": "the time was over while measuring the first"}
        )
        os._exit(0)

    guard = threading.Timer(max(clock.left, 0.1), give_up)
    guard.daemon = True
    guard.start()
    known: set[str] = set()
    skipped = []
    for key, figure in list(pending.items()):
        if not clock.has_time_for(figure.kind):
            skipped.append(key)
            continue
        began = time.monotonic()
        try:
            found = figure.measure()
        except Exception as error:  # of whatever is being tried: it is a result
            found = {"ok": False, "error": last_line(error)}
        del pending[key]
        seconds = time.monotonic() - began
        clock.note(figure.kind, seconds, figure.kind not in known)
        known.add(figure.kind)
        results.add({"key": key} | figure.name | found | {"seconds": round(seconds, 2)})
        if device == "cuda":
            torch.cuda.empty_cache()
    guard.cancel()
    if skipped:
        results.add({"figure": "skipped", "keys": skipped, "reason": "no time left"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="a file of JSON lines, gone on with if it is there")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--toy", action="store_true", help="small networks")
    arguments = parser.parse_args()
    sizes, device = TOY if arguments.toy else FULL, arguments.device
    clock = Clock(arguments.minutes, sizes.seconds)
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: --device cpu measures the CPU")
    images = read_images(arguments.images, max(sizes.patch, sizes.checked_patch))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    common = {
        "device": name,
        "torch": torch.__version__,
        "sizes": "toy" if arguments.toy else "full",
        "batch": sizes.batch,
        "patch": sizes.patch,
        "networks": sizes.networks,
        "fused_on_cpu": is_available(),
    }
    results = Results(arguments.out, common)
    figures = [*checks(images, sizes, device), *steps(images, sizes, device, clock)]
    suffix = " | ".join((common["sizes"], name, torch.__version__))
    measure_all(figures, results, clock, suffix, device)


if __name__ == "__main__":
    main()
