"""Many chunks are packed by several processes, with the bytes of one."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.paths import PACKED
from pipeline.stages.fetch import fetch
from pipeline.stages.preprocess import preprocess
from tests.pipeline.conftest import Project
from tests.pipeline.services import files_below

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


def test_many_chunks_on_ray_give_the_bytes_of_one_process(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("source").mkdir()
    for number in range(24):
        name = f"{'aaab'[number % 4] if number % 8 else 'c'}{number:02d}.png"
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(20, 200, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("source") / name)
    monkeypatch.setattr("pipeline.stages.preprocess.CHUNK_ITEMS", {"images": 2})
    changes = {
        "fetch.source": "source",
        "preprocess.crop": 32,
        "preprocess.realizations": {"train": 1, "val": 1, "test": 1},
        "preprocess.splits": {"train": ["a*"], "val": ["b*"], "test": ["c*"]},
        "train.patch_size": 16,
    }
    project.set(changes)
    fetch(project.params())
    preprocess(project.params())  # more than FEW chunks: Ray
    on_ray = files_below(PACKED)
    monkeypatch.setattr("pipeline.cluster.parallel_map.FEW", 1000)
    preprocess(project.params())
    assert files_below(PACKED) == on_ray
    assert len(on_ray) > 15
