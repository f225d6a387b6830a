"""``eqreg restore`` with many images: it goes on after bad ones, goes on after a kill, and says what it did."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from components.data.readers.images import decode_image
from components.networks import build_network
from pipeline.commands.restore import restore
from pipeline.commands.restoring import places
from pipeline.errors import UserError
from pipeline.model_file import save_model
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.proxy import Proxy
from tests.pipeline.services import Bucket

pytestmark = pytest.mark.process

NETWORK = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}


@pytest.fixture
def model(project: Project) -> str:
    """A model file whose network gives back its image."""
    save_model(Path("model.safetensors"), build_network(**NETWORK), {"network": NETWORK, "task": "denoise"})  # type: ignore[arg-type]
    return "model.safetensors"


def _save(path: Path, seed: int = 0, size: tuple[int, int] = (20, 31)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def _read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _written(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", "restore", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_what_cannot_be_restored_is_listed_and_the_rest_is_restored(model: str) -> None:
    pixels = {name: _save(Path("in") / name, seed) for seed, name in enumerate(("a.png", "sub/c.png", "z.png"))}
    (Path("in") / "b.png").write_bytes((Path("in") / "a.png").read_bytes()[:200])
    (Path("in") / "d.jpg").write_text("no image")
    ended = _run("in", "out", "--model", model, "--report", "report.csv")
    assert ended.returncode == 1, ended.stderr
    assert "3 restored, 2 failed: out" in ended.stdout
    for name in ("in/b.png", "in/d.jpg"):
        assert f"  failed: {name}: not a readable image" in ended.stdout
    assert _written("out") == ["a.png", "sub/c.png", "z.png"]
    for name, expected in pixels.items():
        assert np.array_equal(_read(Path("out") / name), expected)
    with Path("report.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "in/a.png": "restored", "in/b.png": "failed", "in/d.jpg": "failed", "in/sub/c.png": "restored",
        "in/z.png": "restored",
    }  # fmt: skip
    assert rows["in/sub/c.png"]["result"] == "out/sub/c.png"
    assert "not a readable image" in rows["in/b.png"]["reason"]


def test_a_second_run_restores_what_is_new_or_changed_alone(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        _save(Path("in") / f"{name}.png", seed)
    assert restore("in", "out", model) == 0
    capsys.readouterr()
    times = {name: Path("out", name).stat().st_mtime_ns for name in _written("out")}
    changed = _save(Path("in/b.png"), 7)
    Path("out/c.png").unlink()
    new = _save(Path("in/d.png"), 8)
    assert restore("in", "out", model) == 0
    assert "3 restored, 1 done before: out" in capsys.readouterr().out
    assert Path("out/a.png").stat().st_mtime_ns == times["a.png"]
    assert np.array_equal(_read("out/b.png"), changed)
    assert np.array_equal(_read("out/d.png"), new)
    assert _written("out") == ["a.png", "b.png", "c.png", "d.png"]
    Path("out/a.png").write_bytes(b"damaged since")
    restore("in", "out", model)
    assert "1 restored, 3 done before: out" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["model", "options"])
def test_another_model_or_other_options_restore_all_again(
    model: str, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    for seed, name in enumerate("ab"):
        _save(Path("in") / f"{name}.png", seed)
    restore("in", "out", model)
    capsys.readouterr()
    if change == "model":
        network = build_network(**NETWORK)  # type: ignore[arg-type]
        nn.init.normal_(next(network.parameters()), std=0.1)
        save_model(Path(model), network, {"network": NETWORK, "task": "denoise"})
    restore("in", "out", model, self_ensemble=4 if change == "options" else 1)
    assert "2 restored: out" in capsys.readouterr().out


def test_a_run_that_was_killed_goes_on_and_leaves_restored_images_alone(model: str) -> None:
    for seed in range(12):
        _save(Path("in") / f"{seed:02}.png", seed, (300, 400))
    arguments = ["in", "out", "--model", model, "--self-ensemble", "8"]
    command = [sys.executable, "-m", "pipeline.cli", "restore", *arguments]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not Path("out").is_dir() or len(_written("out")) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    Path("out/.07.png.99.partial").write_bytes(b"as if it had been killed while it wrote")
    ended = _run(*arguments)
    assert ended.returncode == 0, ended.stderr
    assert " done before: out" in ended.stdout
    assert _written("out") == [f"{seed:02}.png" for seed in range(12)]


def test_two_runs_into_one_folder_do_not_write_at_once(model: str) -> None:
    from pipeline.commands.restoring.memory import memory_of

    for name in "ab":
        _save(Path("in") / f"{name}.png")
    with memory_of("out"), pytest.raises(UserError, match="out: another eqreg restore writes there; wait until"):
        restore("in", "out", model)


def test_files_patterns_and_folders_together(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.png", "in/sub/b.png", "in/sub/c.jpg", "more/d.png", "e.png"):
        _save(Path(name))
    assert restore(["in/**/*.png", "more", "e.png"], "out", model) == 0
    assert _written("out") == ["a.png", "d.png", "e.png", "sub/b.png"]
    with pytest.raises(UserError, match=r"in/\*\.gif: no image matches"):
        restore(["in/*.gif"], "out", model)
    with pytest.raises(UserError, match=r"one\.png: names one file; for 2 images name a folder"):
        restore(["e.png", "in/a.png"], "one.png", model)


@pytest.mark.parametrize(
    ("form", "names"),
    [("same", ["a.jpg", "b.tif"]), ("webp", ["a.webp", "b.webp"]), ("tiff", ["a.tif", "b.tif"])],
)
def test_the_format_of_a_folder_is_what_is_asked_for(model: str, form: str, names: list[str]) -> None:
    _save(Path("in/a.jpg"))
    _save(Path("in/b.tif"))
    restore("in", "out", model, form=form)
    assert _written("out") == names
    for name in names:
        wanted = {"jpg": "JPEG", "tif": "TIFF", "webp": "WEBP"}[name[2:]]
        assert decode_image(Path("out", name)).format == wanted


def test_a_format_that_is_none_or_another_than_the_suffix_is_refused(model: str) -> None:
    _save(Path("a.png"))
    with pytest.raises(UserError, match="--format gif: it is none of png, tiff, jpg, webp, bmp, same"):
        restore("a.png", "b.png", model, form="gif")
    with pytest.raises(UserError, match=r"--format tiff: b\.png has the suffix of another format"):
        restore("a.png", "b.png", model, form="tiff")


def test_depth_alpha_profile_and_exif_are_kept_or_named(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Path("in").mkdir()
    Image.fromarray(ramp).save("in/deep.png")
    colour = np.dstack([np.full((20, 30, 3), 99, np.uint8), np.full((20, 30), 7, np.uint8)])
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(colour).save("in/alpha.png", exif=exif, icc_profile=b"not parsed by anyone")
    Image.fromarray(colour[..., :3]).quantize(4).save("in/palette.png")
    restore("in", "out", model)
    said = capsys.readouterr().out
    assert np.array_equal(decode_image(Path("out/deep.png")).pixels, ramp)
    kept = decode_image(Path("out/alpha.png"))
    assert kept.alpha is not None
    assert (kept.alpha == 7).all()
    assert kept.icc == b"not parsed by anyone"
    assert kept.exif is not None
    assert b"a camera" in kept.exif
    assert "not in the results of 1 image: palette: written as RGB" in said
    restore("in", "as_jpeg", model, form="jpg")
    said = capsys.readouterr().out
    assert "not in the results of 1 image: alpha" in said
    assert "not in the results of 1 image: 16 bits (8 are kept)" in said


def test_a_turned_photograph_comes_out_upright_and_is_not_turned_again(model: str) -> None:
    pixels = _save(Path("a.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save("turned.png", exif=exif)
    restore("turned.png", "out.png", model)
    with Image.open("out.png") as image:
        assert image.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(image), np.rot90(pixels, -1))


def test_images_of_a_bucket_go_to_another_prefix_of_it(model: str, bucket: Bucket, aws: pytest.MonkeyPatch) -> None:
    pixels = {name: _save(Path("in") / name, seed) for seed, name in enumerate(("a.png", "sub/b.png"))}
    for name in pixels:
        bucket.put(f"in/{name}", (Path("in") / name).read_bytes())
    bucket.put("in/notes.txt", b"notes")
    source, target = bucket.address("in"), bucket.address("out")
    assert restore(source, target, model) == 0
    assert restore(f"{source}/a.png", "one.png", model) == 0
    for name, expected in pixels.items():
        assert np.array_equal(
            decode_image(bucket.client.get_object(Bucket=bucket.name, Key=f"out/{name}")["Body"].read()).pixels,
            expected,
        )
    assert np.array_equal(_read("one.png"), pixels["a.png"])


def test_a_deep_tree_of_a_bucket_is_listed_once_and_read_by_one_client(
    model: str, bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    places.bucket_store.cache_clear()
    names = [f"{'/'.join('abcd'[: depth + 1])}/{depth}.png" for depth in range(4)]
    for seed, name in enumerate(names):
        _save(Path(name), seed)
        bucket.put(f"in/{name}", Path(name).read_bytes())

    def listings() -> int:
        return sum("list-type=2" in line for line in proxy.requests)

    assert restore(bucket.address("in"), bucket.address("out"), model) == 0
    assert listings() == 1  # of the inputs: nothing is on record of the outputs
    bucket.delete("out/a/b/1.png")
    assert restore(bucket.address("in"), bucket.address("out"), model) == 0
    assert listings() == 3
    assert f"1 restored, 3 done before: {bucket.address('out')}" in capsys.readouterr().out
    assert places.bucket_store.cache_info().misses == 2  # a client for the inputs, and one for the outputs


def test_a_device_that_torch_cannot_use_is_named(model: str) -> None:
    _save(Path("a.png"))
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(UserError, match=f"--device {device}: torch cannot use it here"):
            restore("a.png", "b.png", model, device=device)


def test_a_self_ensemble_of_8_is_the_mean_over_the_rotations_and_mirror_images(project: Project) -> None:
    network, generator = build_network(**NETWORK), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    save_model(Path("model.safetensors"), network.eval(), {"network": NETWORK, "task": "denoise"})
    pixels = _save(Path("a.png"))
    restore("a.png", "b.png", "model.safetensors", self_ensemble=8)
    image, results = torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))[None], []
    with torch.inference_mode():
        for flips in ((), (3,)):
            for turns in range(4):
                moved = torch.rot90(image.flip(flips), turns, (2, 3))
                results.append(torch.rot90(network(moved), -turns, (2, 3)).flip(flips))
    mean = torch.stack(results).mean(0)[0].clamp(0, 1).numpy().transpose(1, 2, 0) * 255
    assert np.abs(_read("b.png") - mean).max() <= 0.5 + 1e-2
