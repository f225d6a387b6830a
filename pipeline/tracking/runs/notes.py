"""The note of a run, which MLflow's pages show above its metrics: Markdown with the results in a few lines.

A note has blocks, one for each writer. A block is replaced by its writer alone. Text that a person has added outside of
the blocks stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.tasks import Metric
    from pipeline.tracking.store import Store

NOTE_TAG = "mlflow.note.content"
_METHODS = {"input": "degraded", "classical": "classical", "restored": "restored"}
_GROUPS = {"test": "test", "rotated": "test, turned", "out_of_distribution": "out of distribution"}


def write_block(store: Store, run_id: str, block: str, text: str) -> None:
    """Writes one block of a run's note, and leaves the rest of the note as it is.

    Args:
        store: the store.
        run_id: the run.
        block: name of the block.
        text: Markdown.
    """
    store.set_tag(run_id, NOTE_TAG, with_block(store.tag(run_id, NOTE_TAG) or "", block, text))


def with_block(note: str, block: str, text: str) -> str:
    """A note with one block replaced, or added at the end."""
    begin, end = f"<!-- eqreg: {block} -->", f"<!-- end: {block} -->"  # not shown by MLflow's pages
    written = f"{begin}\n{text}\n{end}"
    if begin in note:
        return re.sub(f"{re.escape(begin)}.*?({re.escape(end)}|$)", lambda _: written, note, count=1, flags=re.DOTALL)
    return f"{note.rstrip()}\n\n{written}".lstrip()


def of_results(metrics: Mapping[str, Any], score: Metric) -> str:
    """The results on the test images, in Markdown.

    Args:
        metrics: content of ``results/evaluate/metrics.json``.
        score: first metric of the task.
    """
    groups = [group for group in _GROUPS if group in metrics]
    rows = [[score.title, *(_GROUPS[group] for group in groups)], ["---", *("---:" for _ in groups)]]
    for method, title in _METHODS.items():
        rows.append([title, *(f"{metrics[group][method][score.key]:.{score.digits}f}" for group in groups)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    gains = metrics["test"].get("gain", {}).get(score.key, {})
    for over, interval in gains.items():
        method = _METHODS[over.removeprefix("over_")]
        shown = f"{interval['mean']:+.{score.digits}f}"
        if interval["low"] is not None:
            shown += f" [{interval['low']:+.{score.digits}f}, {interval['high']:+.{score.digits}f}]"
        lines += ["", f"Gain over {method}, test images: {shown}"]
    if gains:
        lines += ["", f"Scenes: {metrics['test']['scenes']}; in brackets the 95 % interval over scenes."]
    if errors := metrics.get("equivariance_error"):
        lines += ["", f"Equivariance error of the output under quarter turns: {errors['output']:.4f}"]
    return "\n".join(lines)


def of_registration(name: str, version: str, alias: str, reason: str) -> str:
    """The decision about a registered version, in Markdown.

    Args:
        name: of the registered model.
        version: its number.
        alias: that it got.
        reason: for the alias.
    """
    return f"Registered as `models:/{name}/{version}`: {alias} ({reason})."


def of_sweep(best: tuple[float, int] | None, control: float | None, failed: int, score: Metric) -> str:
    """The outcome of a sweep, in Markdown.

    Args:
        best: validation score and number of the best trial; None if none finished.
        control: validation score of the control; None if there is none or it failed.
        failed: number of trials that failed.
        score: first metric of the task.
    """
    lines = []
    if best:
        value, number = best
        lines.append(f"Best trial: {number}, {score.title} on validation {value:.{score.digits}f}.")
    if control is not None:
        lines.append(f"Control (weight 0, the same pairs): {control:.{score.digits}f}.")
    if failed:
        lines.append(f"Failed trials: {failed}.")
    return "\n\n".join([*lines, "One seed: no evidence by itself."] if best else lines or ["No trial finished."])
