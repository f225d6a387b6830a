"""``eqreg classify``: a row for each image, sorted by name, with the classes that the model file names."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from components.data.readers.images import decode_image
from components.networks import build_network
from pipeline.commands.classify import BATCH, classify
from pipeline.errors import UserError
from pipeline.model_file import save_model
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.pipeline.conftest import ROOT, Project
from tests.pipeline.services import Bucket

pytestmark = pytest.mark.process

NETWORK: dict[str, Any] = {"name": "resnet", "width": 8, "depth": 2, "norm": "none", "in_channels": 3, "classes": 3}
CLASSES = ["apple", "pear, green", "plum"]


def _network() -> nn.Module:
    network, generator = build_network(**NETWORK), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


@pytest.fixture
def model(project: Project) -> str:
    metadata = {"network": NETWORK, "task": "classify", "classes": CLASSES, "image_size": [16, 16]}
    save_model(Path("model.safetensors"), _network(), metadata)
    return "model.safetensors"


def _save(path: str, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = (random.integers(0, 256, (*size, 3)) * random.integers(0, 2, 3)).astype(np.uint8)  # of some colour
    Image.fromarray(pixels).save(path)
    return pixels


def _expected(pixels: np.ndarray) -> np.ndarray:
    """Probabilities of the classes, ``(3,)``."""
    image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    with torch.inference_mode():
        found: np.ndarray = torch.softmax(_network()(image)[0].double(), 0).numpy()
    return found


def _rows(path: str) -> list[list[str]]:
    return list(csv.reader(Path(path).read_text(encoding="utf-8").splitlines()))


def test_each_image_gets_the_classes_that_the_network_gives(model: str) -> None:
    """More images than the network gets at once."""
    images = {f"in/{folder}/{n}.png": _save(f"in/{folder}/{n}.png", seed=n) for folder in "ba" for n in range(BATCH)}
    assert classify(Path("in"), model, Path("new/out.csv"), top=2) == 0
    header, *rows = _rows("new/out.csv")
    assert header == ["file", "label", "probability", "label_2", "probability_2"]
    assert [row[0] for row in rows] == sorted(name.removeprefix("in/") for name in images)
    for name, *pairs in rows:
        probabilities = _expected(images[f"in/{name}"])
        first, second = np.argsort(-probabilities)[:2]
        assert pairs[::2] == [CLASSES[first], CLASSES[second]]
        assert [float(each) for each in pairs[1::2]] == pytest.approx(probabilities[[first, second]], abs=2e-6)
    assert len({row[2] for row in rows}) > 5
    assert [file.name for file in Path("new").iterdir()] == ["out.csv"]


def test_other_sizes_are_resized_and_it_is_said(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    _save("in/1.png")
    _save("in/2.png", (40, 60))
    Image.fromarray(np.full((33, 20), 200, dtype=np.uint8)).save("in/3.png")  # grey
    classify(Path("in"), model, Path("out.csv"))
    said = "3 images classified: out.csv; 2 of them resized to 16x16 pixels, the size of training, and cropped to it"
    assert said in capfd.readouterr().out
    header, *rows = _rows("out.csv")
    assert len(header) == 1 + 2 * 3
    assert [row[0] for row in rows] == ["1.png", "2.png", "3.png"]
    grey = _expected(np.full((16, 16, 3), 200, dtype=np.uint8))
    assert rows[2][1] == CLASSES[int(grey.argmax())]


def test_unreadable_images_are_listed_and_the_others_are_in_the_file(model: str) -> None:
    """In a process of its own, for its exit code."""
    for number in range(3):
        _save(f"in/{number}.png", seed=number)
    Path("in/1.png").write_bytes(Path("in/1.png").read_bytes()[:80])
    Path("in/4.jpg").write_text("no image")
    Path("out.csv").write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "classify", "in", "--model", model, "--out", "out.csv"],
        capture_output=True,
        text=True,
        cwd=".",
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1, done.stderr
    assert [row[0] for row in _rows("out.csv")] == ["file", "0.png", "2.png"]
    assert "in/1.png: not a readable image" in done.stdout
    assert "in/4.jpg: not a readable image" in done.stdout
    assert "2 images classified: out.csv; 2 cannot be read" in done.stdout


def _labels(path: str) -> dict[str, str]:
    return {row[0]: row[1] for row in _rows(path)[1:]}


def test_files_patterns_and_folders_are_classified_as_restore_takes_them(model: str) -> None:
    """Names relative to one source; of several, whole paths, since two may have files of one name."""
    names = ("in/1.png", "in/sub/2.png", "in/sub/3.jpg", "more/1.png", "one.png")
    expected = {name: CLASSES[int(_expected(_save(name, seed=n)).argmax())] for n, name in enumerate(names)}
    expected["in/sub/3.jpg"] = CLASSES[int(_expected(decode_image(Path("in/sub/3.jpg")).pixels).argmax())]
    assert classify("in/**/*.png", model, Path("pattern.csv"), top=1) == 0
    assert _labels("pattern.csv") == {"1.png": expected["in/1.png"], "sub/2.png": expected["in/sub/2.png"]}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "classify", "in/sub/*", "more", "one.png", "--model", model],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert _labels("predictions.csv") == {name: expected[name] for name in names[1:]}


def test_the_images_of_a_bucket_have_the_names_below_the_prefix(model: str, bucket: Bucket) -> None:
    names = ("1.png", "sub/2.png")
    expected = {name: CLASSES[int(_expected(_save(name, seed=n)).argmax())] for n, name in enumerate(names)}
    for name in names:
        bucket.put(f"deep/in/{name}", Path(name).read_bytes())
    bucket.put("deep/in/notes.txt", b"notes")
    bucket.put("deep/inside/3.png", Path("1.png").read_bytes())
    source = bucket.address("deep/in")
    assert classify(source, model, Path("out.csv"), top=1) == 0
    assert _labels("out.csv") == expected
    assert classify([f"{source}/sub/2.png", "1.png"], model, Path("both.csv"), top=1) == 0
    assert _labels("both.csv") == {f"{source}/sub/2.png": expected["sub/2.png"], "1.png": expected["1.png"]}
    bucket.put("deep/in/cut.png", Path("1.png").read_bytes()[:60])
    assert classify(source, model, Path("rest.csv"), top=1) == 1
    assert _labels("rest.csv") == expected
    with pytest.raises(UserError, match=r"^s3://.*/empty: no image there \(png, jpg, bmp, tif, webp, DICOM\)$"):
        classify(bucket.address("empty"), model, Path("none.csv"))
    with pytest.raises(UserError, match=r"gone\.png: none of 1 images can be read"):
        classify(f"{source}/gone.png", model, Path("none.csv"))


def test_dicom_files_are_left_out_and_counted(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    _save("in/1.png")
    Path("in/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    assert classify("in", model, Path("out.csv")) == 0
    assert "1 images classified: out.csv; 1 of another kind left out" in capfd.readouterr().out
    assert [row[0] for row in _rows("out.csv")] == ["file", "1.png"]
    Path("in/1.png").unlink()
    with pytest.raises(UserError, match=r"^in/IM0001: a CT slice, and the model recognises images$"):
        classify("in", model, Path("none.csv"))


def test_a_registered_model_names_its_classes_and_serves_them(model: str, store: Store) -> None:
    pixels = _save("one.png", (32, 16), seed=5)
    store = Store("classify", store.uri)
    registry = Registry(store)
    version = registry.add(store.begin("run", {}, {}), _network(), "none", {}, Path(model))
    uri = f"models:/{registry.name}/{version.number}"
    assert classify(Path("one.png"), uri, Path("out.csv"), top=1) == 0
    probabilities = _expected(pixels[8:24])
    assert _rows("out.csv") == [
        ["file", "label", "probability"],
        ["one.png", CLASSES[int(probabilities.argmax())], f"{probabilities.max():.6f}"],
    ]
    table = pd.DataFrame({"image": [Path("one.png").read_bytes()]})
    scores = mlflow.pyfunc.load_model(uri).predict(table)
    assert list(scores.columns) == CLASSES
    assert torch.softmax(torch.tensor(scores.to_numpy()[0], dtype=torch.float64), 0).numpy() == pytest.approx(
        probabilities, abs=1e-5
    )


def test_without_names_of_classes_their_numbers_are_given(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """As in a model file of an earlier release."""
    save_model(Path("old.safetensors"), _network(), {"network": NETWORK, "task": "classify"})
    pixels = _save("in/1.png", (20, 31))
    classify(Path("in"), "old.safetensors", Path("out.csv"), top=1)
    assert _rows("out.csv")[1][1] == str(int(_expected(pixels).argmax()))
    assert "the model does not say the size of its training images" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("source", "out", "model", "message"),
    [
        ("nowhere", "out.csv", "model.safetensors", "nowhere: there is no such file or folder"),
        ("empty", "out.csv", "model.safetensors", "empty: no image in this folder"),
        ("in", "out.txt", "model.safetensors", "--out out.txt: name a file with the suffix .csv"),
        ("in", "empty", "model.safetensors", "--out empty: name a file with the suffix .csv"),
        ("in", "out.csv", "nowhere.safetensors", "--model nowhere.safetensors: neither models:/NAME@ALIAS nor a file"),
        ("in", "out.csv", "image.safetensors", "--model image.safetensors: it restores images and names no classes"),
        ("bad", "out.csv", "model.safetensors", "bad: none of 1 images can be read, and out.csv is not written"),
        ("in", "file/out.csv", "model.safetensors", "file: cannot be written"),
        ("in/*.gif", "out.csv", "model.safetensors", "in/*.gif: no image matches (png, jpg, bmp, tif, webp, DICOM)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    project: Project, model: str, source: str, out: str, message: str
) -> None:
    settings = {"name": "dncnn", "width": 4, "depth": 2, "norm": "none"}
    save_model(Path("image.safetensors"), build_network(**settings), {"network": settings})  # type: ignore[arg-type]
    metadata = {"network": NETWORK, "task": "classify", "classes": CLASSES, "image_size": [16, 16]}
    save_model(Path("model.safetensors"), _network(), metadata)
    _save("in/1.png")
    Path("empty").mkdir()
    Path("file").write_text("a file")
    Path("bad").mkdir()
    Path("bad/1.png").write_text("no image")
    with pytest.raises(UserError) as caught:
        classify(source, model, Path(out))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("out.csv").exists()
