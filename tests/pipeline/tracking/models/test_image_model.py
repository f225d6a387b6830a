"""A registered version is an image model: in a process without our code, beside other versions, and as a server."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from components.inference.contract import Contract
from components.networks import build_network
from pipeline.tracking.models import image_model
from pipeline.tracking.models.image_model import copy_code, requirements
from pipeline.tracking.models.loading import load_version
from pipeline.tracking.models.model_card import model_card
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.components.inference.dicom_files import ct_bytes, read
from tests.pages import python_blocks
from tests.pipeline.conftest import Project
from tests.pipeline.mlflow_server import MlflowServer

pytestmark = pytest.mark.process

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 29, 3), dtype=np.uint8)


def _network(**settings: Any) -> nn.Module:
    network = build_network(**{"name": "dncnn", "width": 4, "depth": 2, "norm": "none", **settings})
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


def _expected(pixels: np.ndarray) -> np.ndarray:
    """The network's own result, ``(H, W, 3)`` uint8."""
    with torch.inference_mode():
        restored = _network()(torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)[None])[0]
    levels: np.ndarray = (restored.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return levels


def _add(registry: Registry, network: nn.Module | None = None) -> str:
    run_id = registry.store.parent_run({"eqreg.lineage": "0123456789ab"})
    version = registry.add(run_id, network or _network(), "aa", {})
    mlflow.set_tracking_uri(registry.store.uri)
    return f"models:/{registry.name}/{version.number}"


def _file(pixels: np.ndarray = PIXELS, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def _pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.fixture
def registry(store: Store) -> Registry:
    """A registry without models."""
    return Registry(store)


_WITHOUT_US = """
import sys
for name in ("components", "pipeline", "tests"):
    sys.modules[name] = None  # an import of it fails
import mlflow, numpy, types, torch
uri, file, after = sys.argv[1:]
sys.modules["components"] = types.ModuleType("components")  # the consumer's own package of this name
sys.modules["components"].inference = "mine"
model = mlflow.pyfunc.load_model(uri)
open(after, "wb").write(model.predict([open(file, "rb").read()])[0])
assert mlflow.pytorch.load_model(uri)(torch.rand(2, 3, 37, 29)).shape == (2, 3, 37, 29)
assert sys.modules["components"].inference == "mine"
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_process_without_our_code_restores_files_with_either_flavour(registry: Registry, tmp_path: Path) -> None:
    uri = _add(registry)
    (tmp_path / "in.png").write_bytes(_file())
    finished = subprocess.run(
        [sys.executable, "-c", _WITHOUT_US, uri, str(tmp_path / "in.png"), str(tmp_path / "out.png")],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "MLFLOW_TRACKING_URI": registry.store.uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "Warning" not in finished.stderr
    restored = _pixels((tmp_path / "out.png").read_bytes())
    assert np.abs(restored.astype(int) - _expected(PIXELS)).max() <= 1
    assert {"ray", "optuna", "skimage", "boto3"} & set(finished.stdout.split()) == set()


def test_two_versions_of_different_code_live_in_one_process(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one as if a later release had inverted all images."""

    def later_code(folder: Path, contract: Contract) -> str:
        package = copy_code(folder, contract)
        later = f"{package}_later"
        (folder / package).rename(folder / later)
        for path in (folder / later).rglob("*.py"):
            path.write_text(path.read_text().replace(package, later))
        restorer = folder / later / "inference/restorer.py"
        restorer.write_text(restorer.read_text().replace("values = np.clip(restored, 0, 1)", "values = 1 - restored"))
        return later

    first = _add(registry)
    for shape in ((1, 1, 3), (2, 5, 3), (1, 300, 3)):  # the exported program refuses them
        assert mlflow.pyfunc.load_model(first).predict(np.zeros(shape, np.uint8)).shape == shape
    monkeypatch.setattr(image_model, "copy_code", later_code)
    second = _add(registry)
    one, other = (mlflow.pyfunc.load_model(uri) for uri in (first, second))
    for _ in range(2):
        kept, inverted = (model.predict(PIXELS).astype(int) for model in (one, other))
        assert np.abs(kept - _expected(PIXELS)).max() <= 1
        clipped = (kept > 0) & (kept < 255)
        assert (np.abs(kept + inverted - 255)[clipped] <= 1).all()


def test_the_device_is_that_of_the_model_config(registry: Registry) -> None:
    """On "meta", which every machine has, and whose tensors meet no others."""
    uri = _add(registry, _network(name="unet", depth=3, norm="batch"))
    model = mlflow.pyfunc.load_model(uri, model_config={"device": "meta"}).unwrap_python_model().model
    tensors = [*model.restorer.network.parameters(), *model.restorer.network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises(ValueError, match="give float values in"):
        mlflow.pyfunc.load_model(uri).predict(np.full((1, 3, 8, 8), 7.0))
    with pytest.raises(Exception, match="device cuda:99: torch cannot use it here"):
        mlflow.pyfunc.load_model(uri, model_config={"device": "cuda:99"})


def test_the_contract_is_in_the_versions_metadata(registry: Registry) -> None:
    uri = _add(registry, _network(in_channels=4, out_channels=3))
    expected = Contract.of_channels("denoise", 4, 3)
    assert load_version(uri, registry.store.uri, "cpu").contract == expected
    metadata = mlflow.models.get_model_info(uri).metadata
    assert metadata is not None
    assert Contract.from_dict(metadata["eqreg.contract"]) == expected


_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "inpaint": ({"in_channels": 4, "out_channels": 3}, "eqreg restore PHOTO.png CLEAN.png"),
    "ct_mar": ({"in_channels": 3, "out_channels": 1}, "eqreg restore SLICE.dcm CLEAN.dcm"),
    "classify": ({"name": "resnet", "classes": 2}, "eqreg classify FOLDER --out predictions.csv"),
}


@pytest.mark.parametrize("task", _KINDS)
def test_the_lines_of_a_card_run_for_every_kind_of_model(
    store: Store, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, command = _KINDS[task]
    network, registry = _network(**settings), Registry(Store(task, store.uri))
    uri = _add(registry, network)
    measured = {"seconds_per_megapixel": 1, "peak_bytes_per_megapixel": None, "machine": "this one"}
    facts = {
        "task": task,
        "network": {"name": "dncnn", **settings},
        "training": {"degradation": None, "colour": "rgb", "penalty": {}},
        "others": [],
        "data": {"hash": "aa"},
        "metrics": {"test": {}},
        "titles": [],
        "options": " --mask MASK.png" if task == "inpaint" else "",
        "cost": {"parameters": 1, "multiply_adds_per_pixel": 1, "file_bytes": 1, "measured": measured},
        "contract": Contract.of_network(network, task).as_dict(),
    }
    card = model_card(facts, registry.name, uri.rpartition("/")[2], {})
    assert f"Or `{command} --model {uri}{facts['options']}`" in card
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(lines.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    Path("PHOTO.png").write_bytes(_file())
    Path("MASK.png").write_bytes(_file(np.where(PIXELS[..., 0] > 200, 255, 0).astype(np.uint8)))
    stored = np.full((32, 24), 1000, dtype=np.uint16)
    stored[8:10, 8:10] = 4000
    Path("SLICE.dcm").write_bytes(ct_bytes(stored))
    names: dict[str, Any] = {}
    exec(lines.replace("ADDRESS", store.uri), names)
    if task == "classify":
        assert len(names["scores"]) == 2
    elif task == "ct_mar":
        changed = read(Path("CLEAN.dcm").read_bytes()).pixel_array != stored
        assert changed.any()
        assert not changed[stored == 4000].any()
    else:
        changed = (_pixels(Path("CLEAN.png").read_bytes()) != PIXELS).any(axis=2)
        assert changed.any()
        assert not changed[PIXELS[..., 0] <= 200].any()


def test_a_version_names_no_folder_of_the_machine_that_registered_it(registry: Registry, project: Project) -> None:
    _add(registry)
    (description,) = (project.folder / "mlartifacts").rglob("MLmodel")
    lines = [line for line in description.read_text().splitlines() if not line.startswith("artifact_path")]
    assert not [line for line in lines if re.search(r"/tmp|/home|/root", line)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "more"), [(3, 3, set()), (1, 1, set()), (4, 3, {"scipy"}), (3, None, set())]
)
def test_a_version_requires_what_its_code_imports(
    tmp_path: Path, inputs: int, outputs: int | None, more: set[str]
) -> None:
    package = copy_code(tmp_path, Contract.of_channels("denoise", inputs, outputs, classes=3))
    assert re.fullmatch(r"eqreg_image_model_[0-9a-f]{12}", package)
    required = requirements(tmp_path / package)
    assert {line.partition("==")[0] for line in required} == {"mlflow", "numpy", "pillow", "tifffile", "torch"} | more
    assert not [line for line in required if "+" in line]


def _run_page(page: str, part: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: str) -> None:
    """Runs the block of Python in a page that has a part, in a folder with a photograph."""
    (lines,) = (block.text for block in python_blocks(page) if part in block.text)
    for old, new in changes.values():
        assert old in lines
        lines = lines.replace(old, new)
    monkeypatch.chdir(folder)
    Path("photo.jpg").write_bytes(_file(form="JPEG"))
    exec(lines, names := {})
    (folder / "restored").write_bytes(names.get("restored", b""))


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/deploy.md"])
def test_the_pages_restore_a_photograph(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """Their very lines, with the address of this test's store."""
    uri = _add(registry)
    registry.point("champion", uri.rpartition("/")[2])
    _run_page(
        page,
        "mlflow.pyfunc.load_model",
        monkeypatch,
        tmp_path,
        **({"store": ("sqlite:////path/to/mlflow.db", registry.store.uri)} if page != "README.md" else {}),
    )
    restored = (tmp_path / "restored").read_bytes()
    with Image.open(io.BytesIO(restored)) as image:
        assert (image.format, image.size) == ("JPEG", (29, 37))


@pytest.fixture
def server(registry: Registry, tmp_path: Path) -> Iterator[str]:
    """The address of ``mlflow models serve`` with a registered version."""
    arguments = ["models", "serve", "-m", _add(registry), "--env-manager", "local"]
    with MlflowServer(arguments, tmp_path, {"MLFLOW_TRACKING_URI": registry.store.uri}) as server:
        yield server.address


def _ask(address: str, body: object) -> tuple[int, Any]:
    """Sends a request; gives the status and the answer."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _images(*files: bytes, **params: Any) -> dict[str, Any]:
    rows = [[base64.b64encode(file).decode()] for file in files]
    return {"dataframe_split": {"columns": ["image"], "data": rows}, "params": params}


def test_a_server_restores_files_for_several_clients_and_lives_on_after_bad_ones(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, answer = _ask(server, _images(_file(), _file(PIXELS[:5]), tile=32, overlap=16))
    assert status == 200, answer
    whole, strip = (_pixels(base64.b64decode(row["image"])) for row in answer["predictions"])
    assert np.abs(whole.astype(int) - _expected(PIXELS)).max() <= 1
    assert strip.shape == (5, 29, 3)
    huge = io.BytesIO()
    Image.new("1", (10000, 10000)).save(huge, "PNG")
    bad = {
        "damaged": (_images(_file()[:500]), "image 1: not a readable image"),
        "bomb": (_images(huge.getvalue()), "10000x10000 pixels, the limit is"),
        "large": (_images(b"A" * (150 << 20)), "at most 100 MiB of encoded images in one request"),
        "column": ({"dataframe_split": {"columns": ["x"], "data": [["a"]]}}, "give encoded images as bytes or base64"),
        "range": ({"inputs": [[[[200.0, 100.0]]] * 3]}, "give float values in"),
        "parameter": (_images(_file(), tile=100), "tile 100 and overlap 64 must be multiples of 16"),
    }
    for name, (body, message) in bad.items():
        status, answer = _ask(server, body)
        assert status == 400, name
        assert re.search(r"Error: .*" + re.escape(message), json.loads(answer)["message"]), (name, answer[:300])
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: _ask(server, _images(_file(np.roll(PIXELS, number, 0)))), range(8)))
    for number, (status, answer) in enumerate(answers):
        assert status == 200
        restored = _pixels(base64.b64decode(answer["predictions"][0]["image"]))
        assert np.abs(restored.astype(int) - _expected(np.roll(PIXELS, number, 0))).max() <= 1
    floats = PIXELS.transpose(2, 0, 1)[None] / 255
    status, answer = _ask(server, {"inputs": floats.tolist()})
    assert status == 200
    restored = np.asarray(answer["predictions"])[0].transpose(1, 2, 0)
    assert np.abs(np.clip(restored, 0, 1) * 255 - _expected(PIXELS)).max() <= 1
    _run_page("docs/how-to/deploy.md", "/invocations", monkeypatch, tmp_path, server=("http://127.0.0.1:5001", server))
    assert _pixels((tmp_path / "clean.jpg").read_bytes()).shape == PIXELS.shape
