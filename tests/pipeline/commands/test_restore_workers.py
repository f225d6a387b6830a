"""``eqreg restore --workers N``: actors restore as one process does, and a lost one costs nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from components.networks import build_network
from pipeline.commands.restore import restore
from pipeline.errors import UserError
from pipeline.model_file import save_model
from tests.components.inference.dicom_files import ct_bytes
from tests.pipeline.conftest import Project

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]

NETWORK = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}


@pytest.fixture
def model(project: Project) -> str:
    """A model file, and a folder with eight images and one that is none."""
    save_model(Path("model.safetensors"), build_network(**NETWORK), {"network": NETWORK, "task": "denoise"})  # type: ignore[arg-type]
    Path("in/sub").mkdir(parents=True)
    for seed in range(8):
        pixels = np.random.default_rng(seed).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"in/sub/{seed}.png")
    Path("in/bad.png").write_text("no image")
    return "model.safetensors"


def _files(folder: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}


def test_workers_restore_as_one_process_does(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore("in", "alone", model, self_ensemble=4) == 1
    assert restore("in", "out", model, self_ensemble=4, workers=2) == 1
    assert len(_files("alone")) == 8
    assert _files("out") == _files("alone")
    said = capsys.readouterr().out
    assert "8 restored, 1 failed: out" in said
    assert "failed: in/bad.png: not a readable image" in said
    assert restore("in", "out", model, self_ensemble=4, workers=2) == 1
    assert "0 restored, 8 done before, 1 failed: out" in capsys.readouterr().out


def test_workers_restore_ct_slices_too(project: Project) -> None:
    settings = {**NETWORK, "in_channels": 3, "out_channels": 1}
    save_model(Path("ct.safetensors"), build_network(**settings), {"network": settings, "task": "ct_mar"})  # type: ignore[arg-type]
    stored = np.full((40, 40), 1000, dtype=np.uint16)
    stored[20:23, 20:23] = 4000
    Path("series").mkdir()
    for number in range(2):
        Path(f"series/{number}.dcm").write_bytes(ct_bytes(stored, SOPInstanceUID=f"1.2.3.{number}"))
    assert restore("series", "alone", "ct.safetensors", metal_threshold=2000) == 0
    assert restore("series", "out", "ct.safetensors", metal_threshold=2000, workers=1) == 0
    assert _files("out") == _files("alone")
    assert len(_files("out")) == 2


def _kill_a_worker() -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::_Worker"):
                time.sleep(0.3)
                process.kill()
                return
        time.sleep(0.05)


def test_a_worker_that_is_killed_is_started_again_and_its_image_restored(model: str) -> None:
    killer = threading.Thread(target=_kill_a_worker)
    killer.start()
    assert restore("in", "out", model, self_ensemble=8, workers=1) == 1
    killer.join()
    assert len(_files("out")) == 8


def test_a_model_that_a_worker_cannot_use_is_refused_as_in_one_process(model: str) -> None:
    with pytest.raises(UserError, match="--device meta:7x: torch cannot use it here"):
        restore("in", "out", model, workers=1, device="meta:7x")
