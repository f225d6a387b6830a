"""Prints what ``eqreg models`` shows: versions, one version, and the history of champions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.console import console
from pipeline.tracking.models.champions import Champion
from pipeline.tracking.models.loading import FILES_TAG
from pipeline.tracking.models.model_card import cost_rows, figures, read_facts
from pipeline.tracking.models.registry import REASON
from pipeline.tracking.models.versions import Record
from pipeline.tracking.store import MODEL_TAG

_LINEAGE = {
    "commit": "eqreg.git_commit",
    "uncommitted": "eqreg.git_dirty",
    "data": "eqreg.data_hash",
    "params": "eqreg.params_hash",
    "lineage": "eqreg.lineage",
    "training": "eqreg.training",
    "model": MODEL_TAG,
    "files": FILES_TAG,
}
"""Title -> tag of a version."""

_WIDE = 104
_UNKNOWN = "not recorded"


def print_versions(records: Sequence[Record], others: Sequence[str]) -> None:
    """Prints a table of versions, the newest first.

    Args:
        records: the versions of one model.
        others: names of the other models in the registry.
    """
    known = {record.number: facts for record in records if (facts := read_facts(record.tags))}
    score = next((facts["titles"][0] for facts in known.values()), ("", "score", 0))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("version", "aliases", "registered, UTC", f"test {score[1]}", "equivariance error", "multiply-adds"):
        table.add_column(title, overflow="fold", min_width=max(map(len, title.split())))
    for record in records:
        mean = _score(known.get(record.number))
        error = _number(record.tags.get("eqreg.equivariance_error"), ".4f")
        cost = _number(record.tags.get("eqreg.multiply_adds_per_pixel"), ",.0f")
        cells = (record.number, ", ".join(record.aliases), _time(record.created)[:-3], mean, error, cost)
        table.add_row(*map(Text, cells))
    console.print(table)
    if not records:
        console.print("no version is registered")
    else:
        console.print(
            f"one of them: models:/{records[0].name}/NUMBER; multiply-adds: for a pixel of the input", markup=False
        )
    if others:
        console.print(f"other models: {', '.join(others)}", markup=False)


def _number(text: str | None, form: str) -> str:
    """The number in a tag; "-" if there is none, as where another tool or a person has set the tag."""
    try:
        return f"{float(text or ''):{form}}"
    except ValueError:
        return "-"


def _score(facts: Mapping[str, Any] | None) -> str:
    """The deciding metric on the test images; "-" for a version that was registered without a model card."""
    if facts is None:
        return "-"
    key, _, digits = facts["titles"][0]
    return f"{facts['metrics']['test']['restored'][key]:.{digits}f}"


def print_version(record: Record, entries: Sequence[Champion]) -> None:
    """Prints what is known about a version.

    Args:
        record: of the version.
        entries: the history of the champions of the model.
    """
    _print_rows(
        {
            record.address: ", ".join(record.aliases) or "no alias",
            "registered": f"{_time(record.created)} UTC",
            "decision": record.tags.get(REASON, _UNKNOWN),
            "champion": "; ".join(_reigns(record.number, entries)) or "never, as far as is recorded",
        }
    )
    facts = read_facts(record.tags)
    if facts is None:
        console.print("figures and cost: registered without a model card")
    else:
        _print_figures(*figures(facts))
        error = facts["metrics"].get("equivariance_error", {}).get("output")
        shown = _UNKNOWN if error is None else f"output {error:.4f} (relative residual under quarter turns)"
        _print_rows({"equivariance error": shown, **dict(cost_rows(facts["cost"]))})
    known = {title: record.tags[tag] for title, tag in _LINEAGE.items() if tag in record.tags}
    _print_rows({**known, "MLflow run": record.run_id or _UNKNOWN})
    console.print(f"card: eqreg models card {record.address}", markup=False)


def print_history(name: str, entries: Sequence[Champion]) -> None:
    """Prints who was champion when, the oldest first.

    Args:
        name: of the model.
        entries: from ``pipeline.tracking.models.champions.history``.
    """
    if not entries:
        console.print(f"{name}: there is no champion, and no move of the alias is recorded", markup=False)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("champion", "since, UTC", "by", "command", "reason"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        version = f"version {entry.version}" if entry.version else "none"
        if entry is entries[-1]:
            version += " (now)"
        if (move := entry.move) is None:
            cells = (version, _UNKNOWN, _UNKNOWN, "-", "the alias was moved in another way, as in MLflow's pages")
        else:
            cells = (version, _moment(move.at), move.by, move.command, move.reason)
        table.add_row(*map(Text, cells))
    console.print(table)


def _print_figures(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints the figures with a section for each metric; the last column needs a wide console."""
    num_columns = len(titles) if console.width >= _WIDE else len(titles) - 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", *titles[2:num_columns]):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    metric = ""
    for images, title, *cells in rows:
        if title != metric:
            table.add_section()
            table.add_row(title)
            metric = title
        group, _, condition = images.partition(": ")
        table.add_row(*map(Text, (f"  {condition}" if condition else group, *cells[: num_columns - 2])))
    console.print(table)
    console.print("gain: restored over the other; interval: 95 % of bootstraps over scenes, too narrow with few scenes")


def _reigns(version: str, entries: Sequence[Champion]) -> list[str]:
    """When a version was champion, one text for each time."""
    found = []
    for index, entry in enumerate(entries):
        if entry.version != version:
            continue
        since = f"since {_moment(entry.move.at)} UTC" if entry.move else f"since a time that is {_UNKNOWN}"
        if index + 1 == len(entries):
            found.append(f"{since} until now")
        else:
            following = entries[index + 1].move
            found.append(
                f"{since} until {f'{_moment(following.at)} UTC' if following else f'a time that is {_UNKNOWN}'}"
            )
    return found


def _print_rows(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for title, text in rows.items():
        console.print(f"{title:{width}}  {text}", markup=False)


def _moment(text: str) -> str:
    """A time of the history as the tables show it; as it is if somebody changed it so that it is no time."""
    try:
        return _time(datetime.fromisoformat(text))
    except ValueError:
        return text


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


__all__ = ["print_history", "print_version", "print_versions"]
