"""Checks whether the last ``dvc repro`` reproduced the outputs of the committed dvc.lock byte for byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.provenance.lineage import committed_text

LOCK = Path("dvc.lock")
_MADE = ("data/", "results/")
"""Folders of dependencies that are outputs of earlier stages."""

SPREAD_DB = 0.15
"""Bound on the difference of a score between instruction sets, in dB, for the built-in data.

benchmarks/repeat.py measured at most 0.14 on one processor, and two machines differed by 0.10.
"""


def same_bytes() -> str | None:
    """Returns one line that compares dvc.lock with the last commit; None if no dvc.lock is committed or present."""
    committed = committed_text(LOCK)
    if committed is None or not LOCK.exists():
        return None
    before, here = (yaml.safe_load(text).get("stages") or {} for text in (committed, LOCK.read_text()))
    return compared(before, here, _instructions)


def compared(committed: Mapping[str, Any], here: Mapping[str, Any], instructions: Callable[[], str]) -> str:
    """Returns the line that compares the stages of two lock files.

    Args:
        committed: stage -> its entry in the committed dvc.lock.
        here: stage -> its entry in the present dvc.lock.
        instructions: returns the instruction set of this processor; it is called only if outputs differ.
    """
    if {name: _inputs(stage) for name, stage in committed.items()} != {name: _inputs(s) for name, s in here.items()}:
        return "not compared: code, data or params are others than in the committed dvc.lock"
    others = [name for name in here if _outputs(committed[name]) != _outputs(here[name])]
    if not others:
        return "dvc.lock is as in the last commit: every output has the same bytes"
    if others[0] == "fetch":
        return "not compared: the files at fetch.source are others than those of the committed dvc.lock"
    line = (
        f"other bytes than in the committed dvc.lock from {others[0]} on: another instruction set (here "
        f"{instructions()}), build of torch, or number of workers or threads"
    )
    return f"{line}; scores then differ by up to {SPREAD_DB} dB" if _is_measured(here) else line


def _inputs(stage: Mapping[str, Any]) -> tuple[object, object]:
    """Returns the inputs of a stage from outside the pipeline: hashes of the code by path, and the params."""
    deps = {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if not dep["path"].startswith(_MADE)}
    return deps, stage.get("params")


def _is_measured(stages: Mapping[str, Any]) -> bool:
    """Returns whether ``SPREAD_DB`` applies to the run: the task denoise on the built-in photographs."""
    params = {name: stage.get("params", {}).get("params.yaml", {}) for name, stage in stages.items()}
    source = params.get("fetch", {}).get("fetch", {}).get("source")
    return source == "builtin" and params.get("train", {}).get("task") == "denoise"


def _outputs(stage: Mapping[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in stage.get("outs", [])}


def _instructions() -> str:
    """Returns the instruction set as torch names it, and the limit set for oneDNN, which computes the convolutions."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN at most {limit}" if limit else "")
