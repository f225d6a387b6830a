"""The page of the networks: what each takes and has, and whether its structure permits an equivariant output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.equivariance import C4, Diagnosis, diagnose
from components.equivariance.diagnosis.equivariance_error import specs_of
from components.equivariance.layers.spec import channels_incompatibility
from components.equivariance.layers.tracing import tracing
from components.networks import NETWORKS, build_network, network_class
from docs.generate.markdown import code, first_paragraph, in_yaml, table, text

SIDE = 32
"""Height and width of the images of the diagnosis, a size that all poolings divide."""

VARIANTS: dict[str, dict[str, Any]] = {
    "acdnet": {"maps": 8, "dual_channels": 35},
    "dicdnet": {"dual_channels": 35},
    "oscnet": {"kernels": 8, "orientations": 4, "dual_channels": 35},
    "rcdnet": {"form": "simple", "dual_channels": 33},
}
"""Network -> settings of a second line: those whose channels divide into regular fields."""


REDUCED: dict[str, dict[str, Any]] = {
    **{name: {"stages": 2, "residual_blocks": 1} for name in ("acdnet", "dicdnet", "oscnet")},
    **{name: {"width": 16, "depth": 4} for name in ("c4_dncnn", "d4_dncnn")},
    **{name: {"width": 16, "depth": 3} for name in ("c4_unet", "d4_unet")},
    "drunet": {"width": 16, "blocks": 1},
    "fbpconvnet": {"width": 8},
    "mprnet": {"orsnet_blocks": 1},
    "nafnet": {"encoder_blocks": [1, 1, 1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1, 1, 1]},
    "rcdnet": {"stages": 3, "residual_blocks": 1},
    "restormer": {"blocks": [1, 1, 1, 1], "refinement_blocks": 1},
    "swinir": {"groups": 1, "depth": 2},
    "unet": {"width": 16},
}
"""Network -> settings of the diagnosis alone: fewer of the same layers, which take less time."""


@cache
def networks_page(root: Path) -> str:
    """Returns the text of networks.md."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the images are small: several threads wait for each other
    try:
        return "\n\n".join(_parts()) + "\n"
    finally:
        torch.set_num_threads(threads)


def _parts() -> Iterator[str]:
    yield "<!-- written by 'make docs' from the code; do not edit -->"
    yield "# Networks"
    yield (
        "Every network with its published settings: [params.md](params.md#networks) has all settings, [Add a network]"
        "(../how-to/add-a-network.md) how to write one. `eqreg doctor NAME` prints the whole diagnosis, layer by layer."
    )
    rows, found = [], {}
    for name in NETWORKS:
        for settings in ({}, *([VARIANTS[name]] if name in VARIANTS else [])):
            network, diagnosis = _diagnosed(name, settings)
            title = f"{name} {in_yaml(settings)}" if settings else name
            found[title] = diagnosis
            rows.append((code(title), *_facts(network), _fields(network), _exact(diagnosis)))
    yield table(("Network", "Parameters", "Needs", "Scales", "Layers as fields", "Exactly equivariant output"), rows)
    yield (
        '*Needs*: what the task must give; "any" is the whole stack of any task. *Layers as fields*: how `diagnose` '
        "compares the layers under C4. The penalty `regular` leaves out the hidden layers that can only be trivial "
        "fields, and those that no module calls, as the dictionary of `rcdnet`. *Exactly equivariant output*: what "
        f"`diagnose` finds at {SIDE}x{SIDE} pixels with symmetric weights. If the structure forbids it, no weights can "
        "give it."
    )
    for title, diagnosis in found.items():
        name = title.partition(" ")[0]
        yield f"## {title}"
        if title == name:
            yield text(first_paragraph(sys.modules[network_class(name).__module__]))
        fewer = f" (Diagnosed with {code(in_yaml(REDUCED[name]))}.)" if name in REDUCED else ""
        yield text(diagnosis.verdict[0].upper() + diagnosis.verdict[1:]) + "." + fewer
        limits = _limits(diagnosis)
        yield table(("What limits it", "Where", "What mends it"), limits) if limits else "Nothing limits a layer."


def _diagnosed(name: str, settings: dict[str, Any]) -> tuple[nn.Module, Diagnosis]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(name, **settings).eval()
        diagnosed = build_network(name, **settings, **REDUCED.get(name, {})).eval()
    return network, diagnose(diagnosed, _images(network))


def _images(network: nn.Module) -> Tensor:
    """One random image with the channels of the network's input."""
    channels = int(network.in_channels)  # type: ignore[arg-type]
    return torch.rand(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def _facts(network: nn.Module) -> tuple[str, str, str]:
    """(parameters, needs, scales)."""
    number = f"{sum(value.numel() for value in network.parameters()):,}"
    if network.is_classifier:
        return number, "image", "class scores"
    needs: Any = network.needs
    scales: Any = network.scales
    return number, ", ".join(needs) if needs else "any", ", ".join(map(str, scales))


def _fields(network: nn.Module) -> str:
    """In which fields the layers are compared that have a place in the image."""
    with torch.no_grad(), tracing(network) as trace:
        network(_images(network))
    specs = [spec for spec in specs_of(trace).values() if not spec.has_no_place]
    regular = sum(spec.field == "regular" and channels_incompatibility(spec, C4) is None for spec in specs)
    return f"{regular} regular, {len(specs) - regular} trivial"


def _exact(diagnosis: Diagnosis) -> str:
    return {True: "possible", False: "impossible", None: "undecided"}[diagnosis.can_be_exact]


def _limits(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """One row for each reason, with the layers that it holds for."""
    places: dict[tuple[str, str], list[str]] = {}
    everything = [(layer.name, each) for layer in diagnosis.layers for each in layer.incompatibilities]
    for where, each in [*everything, *((finding.where, finding.incompatibility) for finding in diagnosis.findings)]:
        places.setdefault((f"{each.kind}: {each.reason}", each.hint), []).append(where)
    return [
        (text(reason), _listed(list(dict.fromkeys(where))), text(hint or "nothing"))
        for (reason, hint), where in places.items()
    ]


def _listed(names: list[str], most: int = 3) -> str:
    shown = ", ".join(map(code, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
