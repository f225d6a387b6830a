"""Compares a network with the stored fingerprint of a reference: names and shapes, and numbers under a stated fill.

A JSON file beside this module holds what the reference gave in float64, and no code of it. With
``u(i, j) = 2 ((7919 i + 31 j^2 + 104729 j) mod 65537) / 65536 - 1``, the value at flat index j of parameter i
(``named_parameters`` order, n elements, shape s) is

- ``gain sqrt(3 s[0] / n) u(i, j)`` with two or more dimensions;
- ``1 + 0.1 u(i, j)`` where the last part of the name has "weight" in it (scales of normalisations),
  ``0.25 + 0.1 u(i, j)`` if it is one number (slopes of PReLU);
- ``0.1 u(i, j)`` otherwise (biases and other vectors).

Buffers keep their defaults. Input t is, with j the flat index,
``lo + (hi - lo) (0.5 + 0.2 sin(0.31 y + 0.5 c + b) + 0.2 cos(0.17 x - 0.7 c) + 0.1 u(999 + t, j))``.

Legend: b image, c channel, y row, x column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent
GRADIENT = "grad_of_mean_square_of_first_output"


def load(name: str) -> dict[str, Any]:
    """Read the fingerprint called ``name``."""
    fingerprint: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return fingerprint


def modes(fingerprint: Mapping[str, Any]) -> list[str]:
    """The modes that a fingerprint has: "eval", and "train" of networks with batch statistics."""
    return list(fingerprint["fingerprint"])


def u(i: int, n: int) -> np.ndarray:
    """``u(i, j)`` for j from 0 to n - 1, ``(n,)``, in [-1, 1]."""
    j = np.arange(n, dtype=np.int64)
    return 2.0 * ((7919 * i + 31 * j * j + 104729 * j) % 65537) / 65536.0 - 1.0


def fill(network: nn.Module, gain: float) -> None:
    """Give each parameter the stated values."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(network.named_parameters()):
            n, values = parameter.numel(), u(i, parameter.numel())
            is_scale = "weight" in name.rpartition(".")[2]
            if parameter.dim() >= 2:
                values = gain * math.sqrt(3.0 * parameter.shape[0] / n) * values
            elif is_scale:
                values = (1.0 if n > 1 else 0.25) + 0.1 * values
            else:
                values = 0.1 * values
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def make_input(shape: tuple[int, int, int, int], lo: float, hi: float, t: int) -> Tensor:
    """Input number t of this shape, in float64."""
    b, c, y, x = np.ogrid[tuple(map(slice, shape))]
    values = 0.5 + 0.2 * np.sin(0.31 * y + 0.5 * c + b) + 0.2 * np.cos(0.17 * x - 0.7 * c)
    values = values + 0.1 * u(999 + t, math.prod(shape)).reshape(shape)
    return torch.from_numpy(lo + (hi - lo) * values)


def inputs(fingerprint: Mapping[str, Any]) -> list[Tensor]:
    """All inputs of a fingerprint, before what its note asks for."""
    return [make_input(tuple(each["shape"]), each["lo"], each["hi"], each["t"]) for each in fingerprint["inputs"]]


def stats(output: Tensor) -> dict[str, Any]:
    """Shape, moments, extremes and seven values of an output."""
    flat = output.detach().double().flatten()
    n = flat.numel()
    return {
        "shape": list(output.shape),
        "mean": flat.mean().item(),
        "std": flat.std(unbiased=False).item(),
        "min": flat.min().item(),
        "max": flat.max().item(),
        "probe": [flat[k].item() for k in (0, 1, 2, n // 3, n // 2, 2 * n // 3, n - 1)],
    }


def structure(network: nn.Module) -> dict[str, Any]:
    """What a fingerprint says of a network without running it; compare with ``stored_structure``."""
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "parameters": [[name, list(parameter.shape)] for name, parameter in network.named_parameters()],
        "buffers": [[name, list(buffer.shape)] for name, buffer in network.named_buffers()],
    }


def stored_structure(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The count, names and shapes in a fingerprint."""
    return {key: fingerprint[key] for key in ("params", "parameters", "buffers")}


def deviations(
    fingerprint: Mapping[str, Any], network: nn.Module, outputs: Mapping[str, Tensor], mode: str
) -> dict[str, float]:
    """Compare the outputs of a filled network, and the gradients of the mean square of the first of them.

    A value of an output counts relative to the stored standard deviation of that output, a norm of gradients relative
    to the stored norm.

    Args:
        fingerprint: of the reference.
        network: with gradients cleared; this function computes them.
        outputs: of the network in this mode, named as in the fingerprint; the first is the network's result.
        mode: "eval" or "train".

    Returns:
        The largest deviation of each output, and of the gradients if they are stored; infinite where a shape differs,
        or where other parameters have no gradient.
    """
    stored = dict(fingerprint["fingerprint"][mode])
    stored_gradient = stored.pop(GRADIENT, None)
    assert list(outputs) == list(stored), "an output has another name than in the fingerprint"
    found = {name: _of_output(stats(output), stored[name]) for name, output in outputs.items()}
    if stored_gradient is None:  # of the largest networks
        return found

    loss = next(iter(outputs.values())).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norms = [gradient.norm().item() for gradient in gradients.values()]
    own = {
        "loss": loss.item(),
        "total_l2": math.hypot(*norms),
        "l2_first_param": norms[0],
        "l2_last_param": norms[-1],
    }
    found[GRADIENT] = max(abs(value - stored_gradient[key]) / stored_gradient[key] for key, value in own.items())
    without = [name for name, _ in network.named_parameters() if name not in gradients]
    if without != stored_gradient["params_without_grad"]:
        found[GRADIENT] = math.inf
    return found


def _of_output(own: Mapping[str, Any], stored: Mapping[str, Any]) -> float:
    if own["shape"] != stored["shape"]:
        return math.inf
    pairs = [(own[key], stored[key]) for key in ("mean", "std", "min", "max")]
    pairs += zip(own["probe"], stored["probe"], strict=True)
    return max(abs(a - b) for a, b in pairs) / stored["std"]
