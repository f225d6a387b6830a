"""The model card: the description of a registered version, in Markdown, from the facts of its registration.

``card_facts`` collects the facts. They are stored as JSON in a tag of the version, so that ``eqreg models show`` needs
no results folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.formats import KEY
from components.inference.contract import Contract

FORMAT = 1
"""Version of the facts."""

FACTS_TAG = "eqreg.facts"

MOST_CHARACTERS = 5000
"""Length of a description that MLflow's databases take."""

_GROUPS = {
    "test": "test",
    "rotated": "test, turned",
    "out_of_distribution": "out of distribution",
}
_METRICS = 2
_LAYERS = (24, 16, 8, 4, 0)
"""Numbers of layers to list, the first with which the card is short enough."""


def model_card(facts: Mapping[str, Any], name: str, version: str, lineage: Mapping[str, str]) -> str:
    """Returns the card of a version, at most ``MOST_CHARACTERS`` long.

    Args:
        facts: from ``collect_facts``.
        name: of the model.
        version: its number.
        lineage: the lineage tags of the version.
    """
    before = [_head(facts, name, version), _contract(facts["contract"]), _quality(facts)]
    after = [_cost(facts), _untested(facts), _use(facts, name, version), _origin(lineage)]
    texts = ("\n\n".join(filter(None, [*before, _equivariance(facts, most), *after])) + "\n" for most in _LAYERS)
    card = ""
    for card in texts:
        if len(card) <= MOST_CHARACTERS:
            return card
    return card[: MOST_CHARACTERS - 4].rsplit("\n", 1)[0] + "\n...\n"


def facts_as_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the facts as one tag of the version, and those to search for as tags of their own."""
    error = facts["metrics"].get("equivariance_error", {}).get("output")
    few = {
        "eqreg.parameters": str(facts["cost"]["parameters"]),
        "eqreg.multiply_adds_per_pixel": f"{facts['cost']['multiply_adds_per_pixel']:.0f}",
    }
    if error is not None:
        few["eqreg.equivariance_error"] = f"{error:.6f}"
    return few | {FACTS_TAG: json.dumps(facts)}


def read_facts(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the facts in the tags of a version; None if it was registered without."""
    try:
        facts: dict[str, Any] = json.loads(tags[FACTS_TAG])
    except (KeyError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get(KEY) == FORMAT else None


def model_title(task: str) -> str:
    """Returns the description of a registered model: one line."""
    return (
        f"Networks of eqreg for the task {task}. The alias champion points to the one to use; each version has a card."
    )


def figures(facts: Mapping[str, Any], most: int = _METRICS) -> tuple[list[str], list[list[str]]]:
    """Returns the table of figures: (titles of the columns, rows of text).

    Args:
        facts: from ``collect_facts``.
        most: number of metrics.
    """
    titles = ["images", "metric", "degraded", "classical", "restored", "gain over degraded", "gain over classical"]
    return titles, [
        [shown, title, *means, _gain(group, key, "over_input", digits), _gain(group, key, "over_classical", digits)]
        for key, title, digits in facts["titles"][:most]
        for shown, group in _conditions(facts["metrics"])
        if (means := _means(group, key, digits))
    ]


def _conditions(metrics: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields (title, means) of each group, and of each out-of-distribution condition."""
    for name, title in _GROUPS.items():
        if group := metrics.get(name):
            yield title, group
            if name == "out_of_distribution":
                yield from (
                    (f"{title}: {condition}", means) for condition, means in group.get("conditions", {}).items()
                )


def _means(group: Mapping[str, Any], key: str, digits: int) -> list[str]:
    if key not in group.get("restored", {}):
        return []
    return [f"{group[method][key]:.{digits}f}" for method in ("input", "classical", "restored")]


def _gain(group: Mapping[str, Any], key: str, over: str, digits: int) -> str:
    gain = group.get("gain", {}).get(key, {}).get(over)
    if gain is None:
        return ""
    shown = f"{gain['mean']:+.{digits}f}"
    return shown if gain["low"] is None else f"{shown} [{gain['low']:.{digits}f}, {gain['high']:.{digits}f}]"


def _head(facts: Mapping[str, Any], name: str, version: str) -> str:
    network, data, training = facts["network"], facts["data"], facts["training"]
    settings = ", ".join(f"{key} {value}" for key, value in network.items() if key != "name" and value is not None)
    penalty = training["penalty"]
    trained = (
        f"with the equivariance penalty `{penalty['penalty']}`, group {penalty['group']}, weight {penalty['weight']:g}"
        if penalty.get("weight")
        else "without an equivariance penalty"
    )
    pairs = "pairs of given files" if data.get("has_given_pairs") else "degradations that were simulated"
    splits = ", ".join(
        f"{data[split]['images']} {title} images of {data[split]['scenes']} scenes"
        for split, title in (("train", "training"), ("val", "validation"), ("test", "test"))
        if split in data
    )
    source = f"`{data['source']}`, " if data.get("source") else ""
    return "\n\n".join(
        [
            f"# {name}, version {version}",
            f"Task `{facts['task']}`. Network `{network['name']}` ({settings}), trained {trained}.",
            f"**Trained for**: {_settings(training['degradation'])}; {pairs}.",
            f"**Data**: {source}hash `{data['hash']}`{'; ' if splits else ''}{splits}.",
        ]
    )


def _contract(values: dict[str, Any] | None) -> str:
    lines = Contract.from_dict(values).text().splitlines() if values else []
    return "\n".join(["## Takes and gives\n", *(f"- {line}" for line in lines)]) if lines else ""


def _settings(values: Mapping[str, Any] | None) -> str:
    shown = ", ".join(f"`{key}: {value}`" for key, value in (values or {}).items() if value is not None)
    return shown or "no settings are recorded"


def _quality(facts: Mapping[str, Any]) -> str:
    titles, rows = figures(facts)
    scenes = facts["metrics"]["test"].get("scenes")
    note = f"Means over images{f' of {scenes} scenes' if scenes else ''}; turned by 90, 180 and 270 degrees. "
    note += "In brackets: 95 % of bootstraps over scenes, too narrow with few scenes."
    named = facts["metrics"].get("classical_method")
    if named:
        note += f" Classical: {', '.join(str(value).replace('_', ' ') for value in named.values())}."
    return f"## Quality\n\n{_table(titles, rows)}\n\n{note}" if rows else ""


def _equivariance(facts: Mapping[str, Any], most: int) -> str:
    errors = dict(facts["metrics"].get("equivariance_error") or {})
    if "output" not in errors:
        return ""
    output = errors.pop("output")
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:most]
    listed = ", ".join(f"`{name}` {errors[name]:.3f}" for name in errors if name in worst)
    if listed and len(worst) < len(errors):
        listed += f"; {len(errors) - len(worst)} layers with smaller errors are left out"
    lines = f"Relative error under quarter turns (0 exact, 1.41 unrelated): output **{output:.4f}**."
    return f"## Equivariance\n\n{lines}" + (f" Layers: {listed}." if listed else "")


def _cost(facts: Mapping[str, Any]) -> str:
    return f"## Cost\n\n{_table(('', ''), cost_rows(facts['cost']))}"


def cost_rows(cost: Mapping[str, Any]) -> list[list[str]]:
    """Returns the rows (what, how much) of the cost in the facts."""
    measured = cost["measured"]
    rows = [
        ["parameters", f"{cost['parameters']:,}"],
        ["multiply-adds a pixel", f"{cost['multiply_adds_per_pixel']:,.0f}"],
        ["model file", f"{cost['file_bytes'] / 1e6:.2f} MB"],
        ["time a megapixel", f"{_short(measured['seconds_per_megapixel'])} s"],
    ]
    if (peak := measured["peak_bytes_per_megapixel"]) is not None:
        rows.append(["peak memory a megapixel", f"{peak / 1e6:.0f} MB"])
    return [*rows, ["measured on", measured["machine"]]]


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _untested(facts: Mapping[str, Any]) -> str:
    """The list of what the figures say nothing about."""
    data, items = facts["data"], []
    known = ["the one of training", *facts["others"]]
    items.append(f"degradations other than {', '.join(known)}")
    if not data.get("has_given_pairs"):
        items.append("real degraded images: all degradations were simulated")
    if test := data.get("test"):
        items.append(f"scenes other than the {test['scenes']} of the test images")
        items.append(f"sides of less than {test['smallest']} or more than {test['largest']} pixels")
    colour = facts["training"]["colour"]
    if facts["task"] != "ct_mar" and colour in ("rgb", "grey"):
        items.append("grey images" if colour == "rgb" else "colour images")
    items.append("other seeds: this is one training")
    return "## Not tested\n\n" + "\n".join(f"- {item}" for item in items)


def _use(facts: Mapping[str, Any], name: str, version: str) -> str:
    address, contract = f"models:/{name}/{version}", facts["contract"] or {}
    store = 'mlflow.set_tracking_uri("ADDRESS")  # of this registry'
    image = 'Path("PHOTO.png").read_bytes()'
    mask = 'params={"mask": base64.b64encode(Path("MASK.png").read_bytes()).decode()}'
    load = f'model = mlflow.pyfunc.load_model("{address}")'
    files = ["import base64, mlflow", "from pathlib import Path", store, load]
    lines = {
        "image": [*files, f'Path("CLEAN.png").write_bytes(model.predict([{image}])[0])'],
        "masked_image": [*files, f'Path("CLEAN.png").write_bytes(model.predict([{image}], {mask})[0])'],
        "ct": [*files, 'Path("CLEAN.dcm").write_bytes(model.predict([Path("SLICE.dcm").read_bytes()])[0])'],
        "labels": [*files, f"scores = model.predict([{image}])[0]"],
    }.get(
        contract.get("kind", ""),
        [
            "import mlflow, torch",
            store,
            f'network = mlflow.pytorch.load_model("{address}")',
            f"inputs = torch.rand(1, {facts['network'].get('in_channels', 3)}, 480, 640)  # (B, C, H, W) in [0, 1]",
            "restored = network(inputs)",
        ],
    )
    text = "\n".join(
        lines if contract.get("kind") == "masked_image" else [each.replace("base64, ", "") for each in lines]
    )
    command = {
        "image": f"restore PHOTO.png CLEAN.png --model {address}{facts['options']}",
        "masked_image": f"restore PHOTO.png CLEAN.png --model {address}{facts['options']}",
        "ct": f"restore SLICE.dcm CLEAN.dcm --model {address}",
        "labels": f"classify FOLDER --out predictions.csv --model {address}",
    }.get(contract.get("kind", ""))
    shown = f"\n\nOr `eqreg {command}`." if command else ""
    return f"## Use\n\n```python\n{text}\n```{shown}"


def _origin(lineage: Mapping[str, str]) -> str:
    shown = ", ".join(
        f"{title} `{lineage[key]}`"
        for key, title in (
            ("eqreg.git_commit", "commit"),
            ("eqreg.data_hash", "data"),
            ("eqreg.params_hash", "params"),
            ("eqreg.lineage", "lineage"),
        )
        if key in lineage
    )
    return f"## Origin\n\n{shown}." if shown else ""


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
