"""Whether the last ``dvc repro`` gave the bytes that the committed dvc.lock names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.lineage import committed_text

LOCK = Path("dvc.lock")
_MADE = ("data/", "results/")
"""Dependencies that are outputs of earlier stages."""

SPREAD_DB = 0.15
"""A bound on the difference of a score between instruction sets, for the built-in data: benchmarks/repeat.py measured
0.14 at most on one processor, and two machines differed by 0.10."""


def repeated() -> str | None:
    """One line: whether dvc.lock is as in the last commit, and if not, what that says; None where none is committed."""
    committed = committed_text(LOCK)
    if committed is None or not LOCK.exists():
        return None
    before, here = (yaml.safe_load(text).get("stages") or {} for text in (committed, LOCK.read_text()))
    return compared(before, here, _instructions())


def compared(committed: Mapping[str, Any], here: Mapping[str, Any], instructions: str) -> str:
    """The line, of the stages of two lock files.

    Args:
        committed, here: stage -> its entry, as in dvc.lock.
        instructions: what this processor computes with.
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
        f"{instructions}), build of torch, or number of workers or threads"
    )
    return f"{line}; scores then differ by up to {SPREAD_DB} dB" if _is_measured(here) else line


def _inputs(stage: Mapping[str, Any]) -> tuple[object, object]:
    """What a stage is given from outside the pipeline: hashes of code by path, and params."""
    deps = {dep["path"]: dep["md5"] for dep in stage.get("deps", []) if not dep["path"].startswith(_MADE)}
    return deps, stage.get("params")


def _is_measured(stages: Mapping[str, Any]) -> bool:
    """Whether the bound is for what was run: the task denoise on the built-in photographs."""
    params = {name: stage.get("params", {}).get("params.yaml", {}) for name, stage in stages.items()}
    source = params.get("fetch", {}).get("fetch", {}).get("source")
    return source == "builtin" and params.get("train", {}).get("task") == "denoise"


def _outputs(stage: Mapping[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in stage.get("outs", [])}


def _instructions() -> str:
    """As torch names them, and as oneDNN, which computes the convolutions, was told to use at most."""
    import torch

    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN at most {limit}" if limit else "")
