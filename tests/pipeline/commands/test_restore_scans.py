"""``eqreg restore`` of DICOM series: names kept, all slices there, no patient's name anywhere but in the files."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.uid import RLELossless
from torch import nn

from components.networks import build_network
from pipeline.commands.restore import restore
from pipeline.errors import UserError
from pipeline.model_file import save_model
from pipeline.tracking.models.registry import Registry
from pipeline.tracking.store import Store
from tests.components.inference.dicom_files import SECRET, ct_bytes, hounsfield, read
from tests.pipeline.conftest import Project

pytestmark = pytest.mark.process

NETWORK: dict[str, Any] = {
    "name": "dncnn",
    "width": 4,
    "depth": 2,
    "norm": "none",
    "in_channels": 3,
    "out_channels": 1,
}


def _network() -> nn.Module:
    network, generator = build_network(**NETWORK), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.eval()


@pytest.fixture
def model(project: Project) -> str:
    save_model(Path("model.safetensors"), _network(), {"network": NETWORK, "task": "ct_mar"})
    return "model.safetensors"


def _slice(metal: int = 3, shape: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A body of water in air, with a square of metal; the stored values (intercept -1024)."""
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[5:-5, 6:-6] = 40
    hu[20 : 20 + metal, 20 : 20 + metal] = 3000
    return (hu + 1024).astype(np.uint16)


def _series(folder: str, count: int = 3) -> list[Path]:
    """Slices in a subfolder, named as scanners do; the last one has no metal."""
    names = ["IM000001", "1.2.840.113.2", "slice.dcm", "z.IMA", "5"][:count]
    files = [Path(folder) / "series" / name for name in names]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = _slice(0 if number == count - 1 else 3 + number)
        file.write_bytes(ct_bytes(stored, SOPInstanceUID=f"1.2.3.4.{number}", InstanceNumber=str(number)))
    return files


def _restore(source: str, target: str, model: str, mask: str | None = None, **options: Any) -> int:
    return restore(source, target, model, 64, 16, 1, Path(mask) if mask else None, **options)


def test_a_series_keeps_its_names_and_every_slice(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    files = _series("in")
    Path("in/series/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    Path("in/notes").write_text("no scan")
    assert _restore("in", "out", model, report=Path("report.csv")) == 0
    assert sorted(file.name for file in Path("out/series").iterdir()) == sorted(file.name for file in files)
    for number, file in enumerate(files):
        before, after = file.read_bytes(), (Path("out/series") / file.name).read_bytes()
        metal = hounsfield(before) > 2500
        changed = hounsfield(after) != hounsfield(before)
        assert changed.any() == (number < 2)
        assert not changed[metal].any()
        assert read(after).SourceImageSequence[0].ReferencedSOPInstanceUID == f"1.2.3.4.{number}"
        assert read(after).InstanceNumber == number
        assert read(after).PatientName == SECRET
    assert len({read(file.read_bytes()).SeriesInstanceUID for file in Path("out/series").iterdir()}) == 1
    said = capfd.readouterr().out
    assert "3 restored: out" in said
    assert "of 2 slices: the LI image was made from the slice itself, as there is no sinogram" in said
    assert "of 1 slice: no metal: pixels unchanged, written as a derived image" in said
    rows = list(csv.DictReader(Path("report.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["restored"] * 3
    assert {row["notes"].split(",")[0] for row in rows} == {
        "the LI image was made from the slice itself",
        "no metal: pixels unchanged",
    }


def test_a_second_run_does_nothing_and_another_threshold_all_again(
    model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    _series("in")
    _restore("in", "out", model)
    first = {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    _restore("in", "out", model)
    assert "0 restored, 3 done before" in capfd.readouterr().out
    assert {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()} == first
    _restore("in", "out", model, metal_threshold=2999)
    assert "3 restored" in capfd.readouterr().out
    with pytest.raises(UserError, match="--metal-threshold -2000: use Hounsfield units above -1000"):
        _restore("in", "out", model, metal_threshold=-2000)


@pytest.mark.parametrize("name", ["slice.png", "slice.dcm.png"])
def test_metal_may_be_given_by_a_folder_of_masks(model: str, name: str) -> None:
    Path("in").mkdir()
    Path("masks").mkdir()
    Path("in/slice.dcm").write_bytes(ct_bytes(_slice(0)))
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[10:14, 12:20] = 255
    Image.fromarray(mask).save(f"masks/{name}")
    _restore("in", "out", model, "masks")
    before, after = (hounsfield(Path(f"{folder}/slice.dcm").read_bytes()) for folder in ("in", "out"))
    assert np.array_equal(before[mask > 0], after[mask > 0])
    assert (before != after)[mask == 0].any()
    assert "a given mask, 32 pixels" in read(Path("out/slice.dcm").read_bytes()).DerivationDescription
    Image.fromarray(mask[1:]).save(f"masks/{name}")
    with pytest.raises(UserError, match=r"in/slice\.dcm: the mask has 48x39 pixels, its slice 48x40"):
        _restore("in/slice.dcm", "other.dcm", model, f"masks/{name}")


def test_one_bad_slice_is_listed_and_the_others_are_restored(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    files = _series("in")
    files[1].write_bytes(files[1].read_bytes()[:-100])
    (files[0].parent / "mr.dcm").write_bytes(ct_bytes(_slice(), Modality="MR"))
    assert _restore("in", "out", model) == 2
    said = capfd.readouterr().out
    assert "2 restored, 2 failed" in said
    assert f"failed: {files[1]}: " in said
    assert "modality MR: only CT has Hounsfield units" in said
    assert "Secret" not in said


@pytest.mark.parametrize("content", [b"", b"no DICOM" * 40])
def test_a_slice_without_the_mark_of_dicom_is_not_passed_over(
    model: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (damaged,) = (file for file in _series("in") if file.suffix == ".dcm")
    damaged.write_bytes(content)
    assert _restore("in", "out", model) == 1
    assert f"failed: {damaged}: no DICOM file: the mark DICM is missing" in capfd.readouterr().out
    with pytest.raises(UserError, match="the mark DICM is missing"):
        _restore(str(damaged), "out.dcm", model)


def test_a_slice_is_not_written_under_the_name_of_an_image(model: str) -> None:
    Path("in.dcm").write_bytes(ct_bytes(_slice()))
    with pytest.raises(UserError, match=r"out\.png: a DICOM slice is written as a DICOM file; use for instance \.dcm"):
        _restore("in.dcm", "out.png", model)
    assert not Path("out.png").exists()


def test_the_name_of_the_patient_is_never_printed_or_logged(
    model: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor in the report, the records of what is done, or the names of files."""
    caplog.set_level(logging.DEBUG)
    files = _series("in", 5)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[2].write_bytes(files[2].read_bytes()[:400])
    bad = ct_bytes(_slice(), FrameOfReferenceUID="1.2.9.1234567.1").replace(b"1.2.9.1234567.1", b"Secret^Patient0")
    files[3].write_bytes(bad)
    _restore("in", "out", model, report=Path("report.csv"))
    for file in files:
        try:
            _restore(str(file), f"alone-{file.name}", model)
        except UserError as error:
            logging.getLogger("test").info(str(error))
    shown = [caplog.text, *capfd.readouterr(), Path("report.csv").read_text()]
    shown += [file.read_text() for file in Path(".eqreg").rglob("*") if file.is_file()]
    shown += [str(file) for file in Path().rglob("*")]
    assert "bytes of pixels" in caplog.text
    assert not any("Secret" in text for text in shown)


def test_a_file_alone_is_restored_to_the_given_name_or_into_a_folder(model: str) -> None:
    Path("in.dcm").write_bytes(ct_bytes(_slice(), RLELossless))
    Path("folder").mkdir()
    for target in ("other.dcm", "folder"):
        _restore("in.dcm", target, model)
    assert Path("other.dcm").read_bytes() == Path("folder/in.dcm").read_bytes()
    with pytest.raises(UserError, match="would overwrite the input"):
        _restore("in.dcm", "in.dcm", model)


def test_models_leave_out_what_they_do_not_restore(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    _series("in")
    Image.fromarray(np.zeros((20, 20), dtype=np.uint8)).save("in/preview.png")
    settings = {**NETWORK, "out_channels": 3}
    save_model(Path("image.safetensors"), build_network(**settings), {"network": settings, "task": "denoise"})
    assert _restore("in", "scans", model) == 0
    assert _restore("in", "images", "image.safetensors") == 0
    said = capfd.readouterr().out
    assert "3 restored, 1 of another kind left out: scans" in said
    assert "1 restored, 3 of another kind left out: images" in said
    assert [file.name for file in Path("images").rglob("*") if file.is_file()] == ["preview.png"]
    with pytest.raises(UserError, match=r"preview\.png: no DICOM file, and the model is for CT"):
        _restore("in/preview.png", "out.png", model)
    with pytest.raises(UserError, match="a CT slice, and the model restores images"):
        _restore("in/series", "out", "image.safetensors")


def test_a_registered_model_gives_the_same_file_by_the_command_and_as_an_image_model(model: str, store: Store) -> None:
    """The image model runs its own copy of the code."""
    store = Store("ct_mar", store.uri)
    registry = Registry(store)
    version = registry.add(store.begin("run", {}, {}), _network(), "none", {}, Path(model))
    uri = f"models:/{registry.name}/{version.number}"
    data = ct_bytes(_slice())
    Path("in.dcm").write_bytes(data)
    _restore("in.dcm", "out.dcm", uri)
    image_model = mlflow.pyfunc.load_model(uri)
    served = image_model.predict([data], params={"tile": 64, "overlap": 16})[0]
    assert served == Path("out.dcm").read_bytes()
    requirements = Path(mlflow.artifacts.download_artifacts(f"{uri}/requirements.txt")).read_text()
    assert "pydicom==" in requirements
    assert "scipy" not in requirements
    with pytest.raises(ValueError, match="image 1: no DICOM file") as caught:
        image_model.predict([b"no scan" * 50])
    assert "Secret" not in str(caught.value)
